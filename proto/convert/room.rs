//! What fits into one message that every client of gRPC takes: most stop at 4 MiB unless they are told otherwise.

use prost::Message;

/// The most bytes of all parts of a message together; the rest is for numbers and tags.
pub const MESSAGE: usize = 7 << 19;

/// The most bytes that a field adds to what is in it: its tag, and its length of at most 4 MiB.
pub const FIELD: usize = 5;

/// The place that is left in a message, or in a part of it, in bytes.
#[derive(Debug)]
pub struct Room(pub usize);

impl Room {
    /// Whether one more value of `length` bytes fits. Once one did not, no other does.
    pub fn has(&mut self, length: usize) -> bool {
        self.0 = self.0.saturating_sub(length.saturating_add(FIELD));
        self.0 > 0
    }

    /// Those of `all` that fit, and how many more there are.
    pub fn fill<T>(
        &mut self,
        all: impl ExactSizeIterator<Item = T>,
        length: impl Fn(&T) -> usize,
    ) -> (Vec<T>, u32) {
        let total = all.len();
        let fitting: Vec<T> = all.take_while(|value| self.has(length(value))).collect();
        let more = u32::try_from(total - fitting.len()).unwrap_or(u32::MAX);
        (fitting, more)
    }
}

/// The first of `all` that fit into one message, and how many more there are. The first is always among them, so that
/// whoever asks on for those after the last comes to an end.
pub fn page<T: Message>(mut all: impl ExactSizeIterator<Item = T>) -> (Vec<T>, u32) {
    let mut room = Room(MESSAGE);
    let mut fitting: Vec<T> = all.next().into_iter().collect();
    room.has(fitting.iter().map(Message::encoded_len).sum());
    let (others, more) = room.fill(all, Message::encoded_len);
    fitting.extend(others);
    (fitting, more)
}

/// `all` in as many parts as messages are needed for them, in order; one part where there is nothing.
pub fn parts<T: Message>(all: Vec<T>) -> Vec<Vec<T>> {
    let mut parts = vec![Vec::new()];
    let mut room = Room(MESSAGE);
    for value in all {
        let length = value.encoded_len();
        if !room.has(length) && parts.last().is_some_and(|part| !part.is_empty()) {
            parts.push(Vec::new());
            room = Room(MESSAGE);
            room.has(length);
        }
        if let Some(part) = parts.last_mut() {
            part.push(value);
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::proto::v1;

    /// What clients of gRPC take.
    const USUAL: usize = 4 << 20;

    fn problems(lengths: &[usize]) -> Vec<v1::Problem> {
        let problem = |(n, length): (usize, &usize)| v1::Problem {
            node: format!("{n:09}"),
            item: None,
            message: "x".repeat(*length),
        };
        lengths.iter().enumerate().map(problem).collect()
    }

    fn answer(problems: Vec<v1::Problem>) -> usize {
        v1::GetControllerStatusResponse { problems, ..Default::default() }.encoded_len()
    }

    #[test]
    fn a_value_that_is_too_long_alone_comes_alone() {
        let all = || problems(&[10, USUAL, 10]);
        assert_eq!(page(all().into_iter().skip(1)), (all()[1..2].to_vec(), 1));
        assert_eq!(parts(all()), [&all()[..1], &all()[1..2], &all()[2..]]);
        assert_eq!(page(Vec::<v1::Problem>::new().into_iter()), (Vec::new(), 0));
        assert_eq!(parts(Vec::<v1::Problem>::new()), [Vec::new()]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn pages_and_parts_fit_and_have_all(lengths in prop::collection::vec(0_usize..1 << 20, 0..20)) {
            let all = problems(&lengths);
            let mut seen = Vec::new();
            loop {
                let (fitting, more) = page(all.iter().skip(seen.len()).cloned());
                prop_assert!(answer(fitting.clone()) < USUAL);
                seen.extend(fitting);
                prop_assert_eq!(seen.len() + usize::try_from(more).unwrap(), all.len());
                if more == 0 {
                    break;
                }
            }
            prop_assert_eq!(&seen, &all);
            let parts = parts(all.clone());
            prop_assert!(parts.iter().all(|part| answer(part.clone()) < USUAL));
            prop_assert_eq!(parts.concat(), all);
        }
    }
}

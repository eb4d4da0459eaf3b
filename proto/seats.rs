//! How many connections each source may have.

use std::collections::BTreeMap;

use super::source::Source;

/// The connections that there are, by source. A source may have as many as are left for all others: alone it has at
/// most half of all, and however many sources take what they can, there is something for one more.
#[derive(Debug)]
pub struct Seats {
    left: usize,
    taken: BTreeMap<Source, usize>,
}

impl Seats {
    /// Room for `most` connections in all.
    pub fn new(most: usize) -> Self {
        Self { left: most, taken: BTreeMap::new() }
    }

    /// Takes one for `source`. Returns whether it may have one; if so [`Self::free`] it once.
    ///
    /// # Errors
    /// How many it has.
    pub fn take(&mut self, source: Source) -> Result<(), usize> {
        let has = self.taken.get(&source).copied().unwrap_or_default();
        if has >= self.left {
            return Err(has);
        }
        self.left -= 1;
        self.taken.insert(source, has + 1);
        Ok(())
    }

    /// Gives one of `source` back.
    pub fn free(&mut self, source: Source) {
        let Some(taken) = self.taken.get_mut(&source) else { return };
        *taken -= 1;
        self.left += 1;
        if *taken == 0 {
            self.taken.remove(&source);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use proptest::prelude::*;

    use super::*;

    fn source(number: u32) -> Source {
        IpAddr::from(Ipv4Addr::from_bits(number)).into()
    }

    #[test]
    fn whoever_takes_all_it_can_leaves_as_much_for_others() {
        let mut seats = Seats::new(900);
        let mut take_all = |number| (0..1_000).filter(|_| seats.take(source(number)).is_ok()).count();
        assert_eq!([take_all(1), take_all(2), take_all(3)], [450, 225, 113]);
    }

    proptest! {
        #[test]
        fn there_is_room_for_one_more_and_what_is_freed_comes_back(
            most in 1..60_usize,
            steps in proptest::collection::vec((0..6_u32, any::<bool>()), 0..300),
        ) {
            let mut seats = Seats::new(most);
            let mut has = [0_usize; 6];
            for (number, takes) in steps {
                let of = &mut has[number as usize];
                if takes {
                    match seats.take(source(number)) {
                        Ok(()) => *of += 1,
                        Err(told) => prop_assert_eq!(told, *of),
                    }
                } else if *of > 0 {
                    seats.free(source(number));
                    *of -= 1;
                }
                let all: usize = has.iter().sum();
                prop_assert_eq!(seats.left, most - all);
                if all < most {
                    prop_assert_eq!(seats.take(source(99)), Ok(()));
                    seats.free(source(99));
                }
            }
            for (number, of) in has.into_iter().enumerate() {
                (0..of).for_each(|_| seats.free(source(u32::try_from(number).unwrap())));
            }
            prop_assert!(seats.taken.is_empty() && seats.left == most);
        }
    }
}

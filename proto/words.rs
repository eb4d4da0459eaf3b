//! Values as people write them.

use std::time::Duration;

/// A span of time as people write it, by its two largest units.
pub fn span(span: Duration) -> String {
    let seconds = span.as_secs();
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..86400 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {} h", seconds / 86400, seconds % 86400 / 3600),
    }
}

/// A short span of time as people write it.
pub fn fine(span: Duration) -> String {
    match span.as_micros() {
        micros @ 0..1_000 => format!("{micros} µs"),
        micros @ 1_000..100_000 => format!("{}.{} ms", micros / 1_000, micros % 1_000 / 100),
        micros @ 100_000..10_000_000 => format!("{} ms", micros / 1_000),
        _ => self::span(span),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_have_two_units() {
        for (seconds, words) in [
            (0, "0 s"),
            (59, "59 s"),
            (60, "1 min 0 s"),
            (3_599, "59 min 59 s"),
            (3_660, "1 h 1 min"),
            (90_000, "1 d 1 h"),
        ] {
            assert_eq!(span(Duration::from_secs(seconds)), words);
        }
    }

    #[test]
    fn short_spans_have_two_figures_or_more() {
        for (micros, words) in [
            (0, "0 µs"),
            (999, "999 µs"),
            (1_050, "1.0 ms"),
            (99_900, "99.9 ms"),
            (100_999, "100 ms"),
            (12_000_000, "12 s"),
        ] {
            assert_eq!(fine(Duration::from_micros(micros)), words);
        }
    }
}

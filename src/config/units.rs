//! Durations and sizes in the form of the configuration: a whole number and a unit.

use std::time::Duration;

/// Units of durations in milliseconds, in ascending order.
const DURATIONS: [(&str, u64); 6] =
    [("ms", 1), ("s", 1000), ("min", 60_000), ("h", 3_600_000), ("day", 86_400_000), ("days", 86_400_000)];

/// Units of sizes in bytes.
const SIZES: [(&str, u64); 7] = [
    ("B", 1),
    ("kB", 1000),
    ("KiB", 1 << 10),
    ("MB", 1_000_000),
    ("MiB", 1 << 20),
    ("GB", 1_000_000_000),
    ("GiB", 1 << 30),
];

/// The allowed form of a duration, for messages.
pub(crate) const DURATION_FORM: &str = "a whole number and ms, s, min, h or days";
/// The allowed form of a size, for messages.
pub(crate) const SIZE_FORM: &str = "a whole number and B, kB, KiB, MB, MiB, GB or GiB";

fn parse(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let (number, unit) = text.split_at(digits);
    let (_, factor) = units.iter().find(|(name, _)| *name == unit.trim_start())?;
    number.parse::<u64>().ok()?.checked_mul(*factor)
}

/// Reads `50 ms`, `5 s`, `30 min`, `2 h` or `7 days`.
pub fn parse_duration(text: &str) -> Option<Duration> {
    parse(text, &DURATIONS).map(Duration::from_millis)
}

/// Reads `512 B`, `256 KiB`, `1 MiB`, `1 GiB`, `100 kB`, `5 MB` or `1 GB`.
pub fn parse_size(text: &str) -> Option<u64> {
    parse(text, &SIZES)
}

fn show(amount: u64, units: &[(&str, u64)]) -> String {
    let unit = units.iter().rfind(|(_, factor)| amount >= *factor && amount.is_multiple_of(*factor));
    let (name, factor) = unit.or(units.first()).copied().unwrap_or(("", 1));
    format!("{} {name}", amount / factor)
}

/// Writes a duration in the largest unit that divides it.
pub fn show_duration(duration: Duration) -> String {
    match duration.as_millis() as u64 {
        0 => "0 s".into(),
        86_400_000 => "1 day".into(),
        ms => show(ms, &DURATIONS),
    }
}

/// Writes a size in the largest binary unit that divides it.
pub fn show_size(bytes: u64) -> String {
    show(bytes, &[SIZES[0], SIZES[2], SIZES[4], SIZES[6]])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_have_units() {
        for (text, ms) in [
            ("0 s", 0),
            ("50 ms", 50),
            ("5s", 5000),
            (" 30  min ", 1_800_000),
            ("2 h", 7_200_000),
            ("1 day", 86_400_000),
            ("7 days", 604_800_000),
        ] {
            assert_eq!(parse_duration(text), Some(Duration::from_millis(ms)), "{text}");
        }
        for bad in [
            "",
            "5",
            "s",
            "-5 s",
            "1.5 s",
            "5 sec",
            "5 S",
            "5 s 3 ms",
            "99999999999999999999 s",
            "9999999999999999999 s",
        ] {
            assert_eq!(parse_duration(bad), None, "{bad}");
        }
    }

    #[test]
    fn sizes_have_units() {
        for (text, bytes) in [
            ("512 B", 512),
            ("100 kB", 100_000),
            ("256 KiB", 262_144),
            ("5 MB", 5_000_000),
            ("1MiB", 1_048_576),
            ("1 GB", 1_000_000_000),
            ("1 GiB", 1_073_741_824),
        ] {
            assert_eq!(parse_size(text), Some(bytes), "{text}");
        }
        for bad in ["", "1", "1 K", "1 kib", "0x10 B", "1_000 B", "99999999999 GiB"] {
            assert_eq!(parse_size(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_largest_unit_that_fits_is_shown() {
        for (ms, shown) in [(0, "0 s"), (50, "50 ms"), (90_000, "90 s"), (86_400_000, "1 day"), (604_800_000, "7 days")]
        {
            assert_eq!(show_duration(Duration::from_millis(ms)), shown);
        }
        for (bytes, shown) in [(0, "0 B"), (1000, "1000 B"), (1536, "1536 B"), (2048, "2 KiB"), (1 << 30, "1 GiB")] {
            assert_eq!(show_size(bytes), shown);
        }
    }
}

//! The local time zone, for texts that people read.

use std::ffi::{OsStr, OsString};
use std::path::{Component, Path, PathBuf};
use std::time::{Duration, Instant};

use jiff::tz::TimeZone;
use parking_lot::Mutex;

/// How long a time zone is kept before it is read again, because it may change.
const KEPT: Duration = Duration::from_secs(300);

static LAST: Mutex<Option<(Instant, TimeZone)>> = Mutex::new(None);

/// The time zone of this machine, from `TZ` or `/etc/localtime`.
pub(crate) fn local() -> TimeZone {
    let mut last = LAST.lock();
    if let Some((since, zone)) = &*last
        && since.elapsed() < KEPT
    {
        return zone.clone();
    }
    let zone = read(std::env::var_os("TZ")).unwrap_or_else(TimeZone::system);
    *last = Some((Instant::now(), zone.clone()));
    zone
}

/// Reads only the one file with the time zone. jiff would look for the zone's name among the six hundred files of the
/// database and open each of them. At the start on a Pi, from its card, that takes longer than everything else that the
/// gateway does. A value that is not the name of a file is left to jiff.
fn read(tz: Option<OsString>) -> Option<TimeZone> {
    let path = match tz {
        None => PathBuf::from("/etc/localtime"),
        Some(name) => {
            let base = std::env::var_os("TZDIR").filter(|base| !base.is_empty());
            Path::new(base.as_deref().unwrap_or(OsStr::new("/usr/share/zoneinfo"))).join(in_database(&name)?)
        }
    };
    TimeZone::tzif("", &std::fs::read(path).ok()?).ok()
}

/// The path of a name such as `Europe/Berlin`, unless it would lead out of the database.
fn in_database(name: &OsStr) -> Option<&Path> {
    let name = Path::new(name);
    let is_plain = |part: Component<'_>| matches!(part, Component::Normal(_));
    (name.components().count() > 0 && name.components().all(is_plain)).then_some(name)
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;

    #[test]
    fn the_zone_is_the_one_that_the_machine_has() {
        for second in [1_768_000_000, 1_784_000_000] {
            let moment = Timestamp::from_second(second).unwrap();
            let [ours, jiffs] = [local(), TimeZone::system()].map(|zone| moment.to_zoned(zone).offset());
            assert_eq!(ours, jiffs, "{second}");
        }
    }

    #[test]
    fn names_are_files_and_what_is_none_is_left_to_others() {
        let winter = Timestamp::from_second(1_768_000_000).unwrap();
        let berlin = read(Some("Europe/Berlin".into())).unwrap();
        assert_eq!(winter.to_zoned(berlin).offset().seconds(), 3600);
        for other in ["", "CET-1CEST", "../passwd", "/etc/passwd", ":Europe/Berlin", "Europe", "No/Such"] {
            assert!(read(Some(other.into())).is_none(), "{other}");
        }
    }
}

use std::sync::Arc;

use super::reading::read;
use super::*;
use crate::status::Change;
use crate::time::TestClock;

fn scribe(dir: &Path, clock: &Arc<TestClock>) -> Scribe {
    Scribe { dir: dir.into(), boot: "b1".into(), clock: clock.clone(), writers: HashMap::new(), failing: false }
}

fn snapshot(state: SensorState, recent: &[(u64, bool, u64)]) -> SensorSnapshot {
    let change = |(seq, on, boot_ms): &(u64, bool, u64)| Change { seq: *seq, on: *on, boot_ms: *boot_ms };
    SensorSnapshot {
        simulated: false,
        name: "loft".into(),
        pin: 17,
        topic: "loft".into(),
        state,
        since_boot_ms: None,
        seq: recent.last().map_or(0, |last| last.0),
        lost_edges: 0,
        refused: 0,
        stuck: false,
        fault: None,
        finding: None,
        edges: Default::default(),
        recent: recent.iter().map(change).collect(),
    }
}

fn states(events: &[Event]) -> Vec<(u64, EventState, Option<i64>)> {
    events.iter().map(|event| (event.n, event.state, event.unix_ms)).collect()
}

#[test]
fn history_goes_on_over_restarts_and_is_paged() {
    let dir = tempfile::tempdir().unwrap();
    let clock = TestClock::new(10_000, 0);
    clock.synchronise(1_010_000);
    let mut first = scribe(dir.path(), &clock);
    first.note(&[snapshot(SensorState::Off, &[(1, false, 1)])]);
    // two changes between two calls
    first.note(&[snapshot(SensorState::Off, &[(1, false, 1), (2, true, 2_000), (3, false, 3_000)])]);
    first.note(&[snapshot(SensorState::Offline, &[(1, false, 1), (2, true, 2_000), (3, false, 3_000)])]);
    drop(first);
    let mut second = scribe(dir.path(), &clock);
    second.note(&[snapshot(SensorState::Offline, &[])]);
    second.note(&[snapshot(SensorState::On, &[(1, true, 9_000)])]);
    let all = read(dir.path(), "loft", None, 0, 100).unwrap();
    let expected = [
        (1, EventState::Off, Some(1_000_001)),
        (2, EventState::On, Some(1_002_000)),
        (3, EventState::Off, Some(1_003_000)),
        (4, EventState::Offline, Some(1_010_000)),
        (5, EventState::On, Some(1_009_000)),
    ];
    assert_eq!(states(&all), expected);
    assert_eq!(read(dir.path(), "loft", None, 2, 2).unwrap(), all[2..4]);
    assert_eq!(read(dir.path(), "loft", Some(1_003_000), 0, 100).unwrap(), all[2..]);
    assert!(read(dir.path(), "other", None, 0, 100).unwrap().is_empty());
}

#[test]
fn times_are_repaired_once_the_clock_is_right() {
    let dir = tempfile::tempdir().unwrap();
    let clock = TestClock::new(10_000, 0);
    let mut scribe = scribe(dir.path(), &clock);
    scribe.note(&[snapshot(SensorState::On, &[(1, true, 9_000)])]);
    assert_eq!(states(&read(dir.path(), "loft", None, 0, 9).unwrap()), [(1, EventState::On, None)]);
    assert!(read(dir.path(), "loft", Some(0), 0, 9).unwrap().is_empty());
    clock.synchronise(5_010_000);
    scribe.sync();
    assert_eq!(states(&read(dir.path(), "loft", None, 0, 9).unwrap()), [(1, EventState::On, Some(5_009_000))]);
}

#[test]
fn torn_and_damaged_lines_are_skipped() {
    let dir = tempfile::tempdir().unwrap();
    let clock = TestClock::new(10_000, 0);
    scribe(dir.path(), &clock).note(&[snapshot(SensorState::On, &[(1, true, 9_000)])]);
    let mut file = OpenOptions::new().append(true).open(current(dir.path(), "loft")).unwrap();
    file.write_all(b"\0\0\0\n{\"n\":\n{\"n\":2,\"state\":\"o").unwrap();
    scribe(dir.path(), &clock).note(&[snapshot(SensorState::Off, &[(1, false, 9_500)])]);
    let all = read(dir.path(), "loft", None, 0, 9).unwrap();
    assert_eq!(states(&all), [(1, EventState::On, None), (2, EventState::Off, None)]);
}

#[test]
fn files_are_bounded() {
    let dir = tempfile::tempdir().unwrap();
    let clock = TestClock::new(10_000, 0);
    let mut scribe = scribe(dir.path(), &clock);
    let count = 3 * MAX_FILE / 60;
    for seq in 1..=count {
        scribe.note(&[snapshot(SensorState::On, &[(seq, seq % 2 == 0, seq)])]);
    }
    let size = |path: PathBuf| fs::metadata(path).unwrap().len();
    assert!(size(current(dir.path(), "loft")) <= MAX_FILE && size(old(dir.path(), "loft")) <= MAX_FILE);
    let all = read(dir.path(), "loft", None, 0, usize::MAX).unwrap();
    assert!(all.len() > 5_000 && all.last().unwrap().n == count);
    assert!(all.windows(2).all(|pair| pair[1].n == pair[0].n + 1));
}

#[test]
fn lines_that_others_have_written_are_read_too() {
    let dir = tempfile::tempdir().unwrap();
    let text = concat!(
        "{ \"state\": \"on\", \"boot\": \"b\\u0031\", \"boot_ms\": 5, \"n\": 3 }\r\n",
        "{\"n\":4,\"state\":\"off\",\"boot\":\"b1\",\"boot_ms\":6,\"unix_ms\":null}\n",
        "{\"n\":99999999999999999999,\"state\":\"off\",\"boot\":\"b1\",\"boot_ms\":6,\"unix_ms\":null}\n",
        "{ \"offset_ms\": 1000, \"boot\": \"b1\" }\n",
        "{\"n\":5,\"state\":\"on\",\"boot\":\"b2\",\"boot_ms\":7,\"unix_ms\":null}",
    );
    fs::write(current(dir.path(), "loft"), text).unwrap();
    let all = read(dir.path(), "loft", None, 0, 9).unwrap();
    let expected = [(3, EventState::On, Some(1005)), (4, EventState::Off, Some(1006)), (5, EventState::On, None)];
    assert_eq!(states(&all), expected);
    assert_eq!(all[0].boot, "b1");
    let end = |boot| reading::end(dir.path(), "loft", boot).unwrap();
    let last = Some((5, EventState::On));
    assert_eq!(end("b1"), HistoryEnd { last, lacks_time: false }, "a later line gives the time");
    assert_eq!(end("b2"), HistoryEnd { last, lacks_time: true });
}

#[test]
fn a_file_that_becomes_the_older_one_while_it_is_read_is_neither_missed_nor_told_twice() {
    let dir = tempfile::tempdir().unwrap();
    let line = |n: u64| format!("{{\"n\":{n},\"state\":\"on\",\"boot\":\"b\",\"boot_ms\":{n},\"unix_ms\":{n}}}\n");
    fs::write(current(dir.path(), "loft"), line(1) + &line(2)).unwrap();
    // both names are the same file for whoever has opened one before the change and the other behind it
    fs::hard_link(current(dir.path(), "loft"), old(dir.path(), "loft")).unwrap();
    let all = read(dir.path(), "loft", None, 0, 9).unwrap();
    assert_eq!(states(&all), [(1, EventState::On, Some(1)), (2, EventState::On, Some(2))]);
}

#[test]
fn what_was_written_before_a_restart_gets_its_time_in_the_same_boot() {
    let dir = tempfile::tempdir().unwrap();
    let clock = TestClock::new(10_000, 0);
    scribe(dir.path(), &clock).note(&[snapshot(SensorState::On, &[(1, true, 2_000)])]);
    let mut second = scribe(dir.path(), &clock);
    second.note(&[snapshot(SensorState::On, &[])]);
    clock.synchronise(1_010_000);
    assert!(second.has_unsynced());
    second.sync();
    assert_eq!(states(&read(dir.path(), "loft", None, 0, 9).unwrap()), [(1, EventState::On, Some(1_002_000))]);
    // it is known now, and of another boot nothing can be learned
    for boot in ["b1", "b2"] {
        let mut later = Scribe { boot: boot.into(), ..scribe(dir.path(), &clock) };
        later.note(&[snapshot(SensorState::On, &[])]);
        assert!(!later.has_unsynced(), "{boot}");
    }
}

/// Notes a snapshot while another file stands in the place of the sensor's, and expects that this fails.
fn fails_with(scribe: &mut Scribe, file: File, snapshot: &SensorSnapshot) {
    let good = std::mem::replace(&mut scribe.writers.get_mut("loft").unwrap().file, file);
    scribe.note(std::slice::from_ref(snapshot));
    assert!(scribe.failing);
    scribe.writers.get_mut("loft").unwrap().file = good;
}

#[test]
fn a_line_that_a_full_disk_has_cut_costs_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let clock = TestClock::new(10_000, 0);
    let mut scribe = scribe(dir.path(), &clock);
    scribe.note(&[snapshot(SensorState::On, &[(1, true, 1)])]);
    let both = snapshot(SensorState::Off, &[(1, true, 1), (2, false, 2)]);
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    scribe.writers.get_mut("loft").unwrap().file.write_all(br#"{"n":2,"sta"#).unwrap();
    fails_with(&mut scribe, full, &both);
    scribe.note(&[both]);
    assert!(!scribe.failing);
    let all = read(dir.path(), "loft", None, 0, 9).unwrap();
    assert_eq!(all.iter().map(|event| event.n).collect::<Vec<_>>(), [1, 2]);
}

#[test]
fn what_was_written_before_the_disk_was_full_is_not_written_again() {
    let dir = tempfile::tempdir().unwrap();
    let clock = TestClock::new(10_000, 0);
    let mut scribe = scribe(dir.path(), &clock);
    scribe.note(&[snapshot(SensorState::On, &[(1, true, 1)])]);
    // takes some lines and then no more
    let (narrow, _other) = std::os::unix::net::UnixStream::pair().unwrap();
    narrow.set_nonblocking(true).unwrap();
    let changes: Vec<_> = (1..=9_000).map(|seq| (seq, seq % 2 == 1, seq)).collect();
    let many = snapshot(SensorState::Off, &changes);
    fails_with(&mut scribe, std::os::fd::OwnedFd::from(narrow).into(), &many);
    scribe.note(&[many]);
    let all = read(dir.path(), "loft", None, 1, 9_000).unwrap();
    assert!(all.len() > 1 && all.first().unwrap().n > 2 && all.last().unwrap().n == 9_000);
}

#[test]
fn a_file_that_was_renamed_and_has_no_successor_yet_gets_one() {
    let dir = tempfile::tempdir().unwrap();
    let clock = TestClock::new(10_000, 0);
    let mut scribe = scribe(dir.path(), &clock);
    scribe.note(&[snapshot(SensorState::On, &[(1, true, 1)])]);
    fs::rename(current(dir.path(), "loft"), old(dir.path(), "loft")).unwrap();
    scribe.writers.get_mut("loft").unwrap().size = MAX_FILE;
    scribe.note(&[snapshot(SensorState::Off, &[(1, true, 1), (2, false, 2)])]);
    let all = read(dir.path(), "loft", None, 0, 9).unwrap();
    assert_eq!(all.iter().map(|event| event.n).collect::<Vec<_>>(), [1, 2]);
}

//! Targets for files of the journal, with the damage that a card can cause.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, OnceLock};

use pigateway::journal::format::{DATA, FileKind, HEADER_COPY, Header, RecordKind, SEGMENT_SUFFIX, SNAPSHOT};
use pigateway::journal::record::{RecordDraft, Scanner, encode, seal};
use pigateway::journal::recovery::{read_header, recover};
use pigateway::journal::settings::JournalSettings;
use pigateway::journal::snapshot::SnapshotTable;
use pigateway::journal::state::JournalState;
use pigateway::journal::storage::Storage;
use pigateway::journal::storage::memory::MemoryStorage;
use pigateway::journal::{Extra, Journal, Limits, WhenFull};
use pigateway::message::{Draft as MessageDraft, Message, Origin, Qos};
use pigateway::time::SystemClock;

use super::Source;
use super::disk::Disk;
use super::meter::paid_by;

const BOUNDS: Limits = Limits { messages: 1000, bytes: 1 << 20, when_full: WhenFull::DropOldest };
const BOOT: u64 = 7;
/// The number of messages in the damaged journal.
const MESSAGES: usize = 80;

fn settings() -> JournalSettings {
    JournalSettings { max_size: 512 << 10, largest_message: 8 << 10, ..JournalSettings::default() }
}

/// Opens a journal with these files and returns its contents. The allowed cost depends only on the size of the files.
fn recovered(files: &Disk) -> Option<JournalState> {
    let (size, before) = (files.size(), files.bytes_read());
    let state = paid_by(size as usize, (2 << 20, 32), || recover(files, &settings(), BOOT, &SystemClock).ok());
    let read = files.bytes_read() - before;
    assert!(read <= (1 << 20) + 32 * size, "{read} bytes were read of {size}");
    state
}

/// The place of a record.
struct Known {
    at: usize,
    end: usize,
    position: u64,
}

/// The files of a typical journal with two consumers, retained messages, sessions, several segments and a snapshot. The
/// messages are large, so that few records fill a segment: an input costs as much time as there are bytes and records.
struct Base {
    files: BTreeMap<String, Vec<u8>>,
    names: Vec<String>,
    /// All records of each segment.
    segments: BTreeMap<String, Vec<Known>>,
    /// The body of each record by its position.
    bodies: HashMap<u64, Vec<u8>>,
}

fn message(topic: &str, number: usize, size: usize) -> Message {
    let payload = vec![number as u8; size];
    Message::new(&MessageDraft {
        topic,
        payload: &payload,
        qos: Qos::AtLeastOnce,
        retain: number.is_multiple_of(3),
        properties: &[],
        expiry: None,
        boot_ms: 5,
        origin: Origin::http(),
    })
}

fn base() -> &'static Base {
    static BASE: OnceLock<Base> = OnceLock::new();
    BASE.get_or_init(|| {
        let files = MemoryStorage::default();
        let opened = Journal::open_in_boot(Arc::new(files.clone()), settings(), Arc::new(SystemClock), BOOT);
        let Ok(journal) = opened else { panic!("an empty journal opens") };
        let consumers = [journal.register("upstream/far", BOUNDS), journal.register("session/esp", BOUNDS)];
        for number in 0..MESSAGES {
            let retained = Extra { retained: number.is_multiple_of(3), ..Extra::default() };
            let topic = format!("loft/{}", number % 7);
            // some are longer than what a start passes over quickly, and some than a page
            let size = [20, 300, 1500, 5000][number % 4] + number;
            // the first consumer settles nothing, so all of its records must be kept
            let _ = journal.append_with(&message(&topic, number, size), &consumers[..1 + number % 2], retained);
            let _ = journal.keep(&format!("esp{}", number % 5), Some(&[1; 30]), true);
            if number.is_multiple_of(10) {
                let (place, mut synced) = (journal.barrier(), journal.synced());
                while *synced.borrow_and_update() < place {
                    std::thread::yield_now();
                }
            }
        }
        journal.close();
        let names: Vec<String> = files.list().unwrap_or_default().into_iter().map(|(name, _)| name).collect();
        let (mut segments, mut bodies) = (BTreeMap::new(), HashMap::new());
        for name in names.iter().filter(|name| name.ends_with(SEGMENT_SUFFIX)) {
            let Ok((header, _)) = read_header(&files, name) else { continue };
            let (mut known, mut scanner) = (Vec::new(), Scanner::new(&files, name, &header, header.size));
            while let Some((at, record)) = scanner.next_record() {
                let (at, end) = (at as usize, at as usize + record.padded_len());
                known.push(Known { at, end, position: record.position() });
                bodies.insert(record.position(), record.body().to_vec());
            }
            segments.insert(name.clone(), known);
        }
        assert!(bodies.len() >= MESSAGES && segments.len() >= 2, "{} in {}", bodies.len(), segments.len());
        let files = names.iter().map(|name| (name.clone(), files.contents(name))).collect();
        Base { files, names, segments, bodies }
    })
}

/// The places of each file that an input damages.
type Hits<'a> = BTreeMap<&'a str, Vec<(usize, usize)>>;

/// Damages the files as an input says.
fn damaged<'a>(base: &'a Base, files: &Disk, data: &[u8]) -> Hits<'a> {
    let mut hits = Hits::new();
    let mut source = Source(data);
    for _ in 0..8 {
        if source.is_empty() {
            break;
        }
        let name = base.names[usize::from(source.byte()) % base.names.len()].as_str();
        let len = base.files.get(name).map_or(0, Vec::len);
        let (how, place) = (source.byte(), source.number() << 8 | usize::from(source.byte()));
        let at = place % len.max(1);
        let (at, mut bytes) = match how % 5 {
            0 => (at, source.take(32).to_vec()),
            1 => (at / 512 * 512, vec![0; 512]),
            2 => (at / 4096 * 4096, vec![0xff; 4096]),
            // nothing was written from here on
            3 => (at, vec![0; len - at]),
            _ => (at, source.take(usize::from(how)).repeat(64)),
        };
        bytes.truncate(len - at);
        if files.write_at(name, at as u64, &bytes).is_ok() {
            hits.entry(name).or_default().push((at, at + bytes.len()));
        }
    }
    hits
}

/// Damages the files of a gateway: a few bytes, sectors or whole ends of files. A start must end, read and allocate only in
/// proportion to the size of the files, and lose no intact record in front of the damage or behind it. It must find only
/// records that were written.
pub(super) fn damage(data: &[u8]) {
    let base = base();
    let files = Disk::of(&base.files);
    let hits = damaged(base, &files, data);
    let Some(state) = recovered(&files) else { panic!("damage is a reason not to start") };
    let used: BTreeMap<&str, &Header> =
        state.segments().map(|segment| (segment.name.as_str(), &segment.header)).collect();
    for (name, known) in &base.segments {
        let Some(hits) = hits.get(name.as_str()) else {
            // in an intact file are the records that are known of it
            assert!(used.contains_key(name.as_str()), "{name} is not used");
            continue;
        };
        let is_whole = |from: usize, to: usize| hits.iter().all(|(at, end)| *end <= from || *at >= to);
        let has_header = is_whole(0, 72) || is_whole(HEADER_COPY as usize, HEADER_COPY as usize + 72);
        let mut found = HashSet::new();
        if let Some(header) = used.get(name.as_str()) {
            let mut scanner = Scanner::new(&files, name, header, header.size);
            while let Some((_, record)) = scanner.next_record() {
                let written = base.bodies.get(&record.position());
                assert_eq!(written.map(Vec::as_slice), Some(record.body()), "{name} at {}", record.position());
                found.insert(record.position());
            }
        }
        for known in known.iter().filter(|known| has_header && is_whole(known.at, known.end)) {
            assert!(found.contains(&known.position), "{name} at {}", known.at);
        }
    }
    assert!(used.keys().all(|name| base.segments.contains_key(*name)), "a segment that nobody has written");
}

fn kind(byte: u8) -> RecordKind {
    RecordKind::from_u8(byte % 8 + 1).unwrap_or(RecordKind::Message)
}

/// A number that has a meaning in these files, or any other.
fn ordinal(source: &mut Source<'_>) -> u64 {
    match source.byte() {
        small @ 0..250 => u64::from(small),
        250 => u64::MAX,
        251 => u64::MAX - 1,
        252 => i64::MAX as u64,
        253 => u64::from(u32::MAX),
        _ => source.take(8).iter().fold(0, |all, byte| all << 8 | u64::from(*byte)),
    }
}

/// A file with valid records whose contents no gateway writes. Without a size it is as large as its records need.
fn file(files: &Disk, name: &str, header: Header, size: Option<u64>, source: &mut Source<'_>) {
    let (mut bytes, mut position) = (Vec::new(), header.base);
    for _ in 0..source.byte() % 32 {
        let (kind, flags, boot) = (kind(source.byte()), source.byte() & 7, u32::from(source.byte()));
        let consumers: Vec<(u64, u64)> =
            (0..source.byte() % 4).map(|_| (ordinal(source) % 8, ordinal(source))).collect();
        let length = source.number() % 600;
        let mut body = source.take(length).to_vec();
        if kind == RecordKind::Message && flags & 1 != 0 {
            body = message("loft/a", length, 200 + length).view().as_bytes().to_vec();
        }
        let draft = RecordDraft { kind, flags, boot, body: &[&body] };
        encode(&mut bytes, position, &draft, consumers.into_iter());
        position = position.saturating_add(1 + u64::from(source.byte() % 3));
    }
    seal(&mut bytes, header.seed());
    let needed = (DATA + bytes.len() as u64 + 1).next_multiple_of(4096);
    let header = Header { size: size.unwrap_or(needed), ..header };
    let _ = files.create(name, if size.is_some() { settings().segment_size() } else { needed });
    let _ = files.write_at(name, 0, &header.encode());
    let _ = files.write_at(name, HEADER_COPY, &header.encode());
    let _ = files.write_at(name, DATA, &bytes);
}

/// Valid records with any contents, in segments and a snapshot: cursors, tables, sessions, retained messages, notes and
/// clocks. A start must end, and its cost must fit the size of the files. Everything that was found must be the same after
/// it is written and read again, and the journal must accept new messages.
pub(super) fn records_of_strangers(data: &[u8]) {
    let files = Disk::default();
    let mut source = Source(data);
    let mut is_usual = true;
    for number in 0..u32::from(source.byte() % 3) + 1 {
        let (flags, base) = (source.byte(), ordinal(&mut source));
        let kind = match flags & 7 {
            0 => FileKind::Merged { first: ordinal(&mut source), upto: ordinal(&mut source) },
            1 => FileKind::Merging,
            _ => FileKind::Segment,
        };
        is_usual &= !matches!(kind, FileKind::Merged { .. }) && flags & 24 == 0;
        let generation = if flags & 8 == 0 { u64::from(number) } else { ordinal(&mut source) };
        // small files are much quicker, but only those of the usual size become free for other records
        let size = match flags & 48 {
            0 => None,
            32 => Some(settings().segment_size()),
            _ => Some(ordinal(&mut source)),
        };
        let header = Header { kind, boot: 0, generation, salt: 1, size: 0, base };
        file(&files, &format!("{number:08}{SEGMENT_SUFFIX}"), header, size, &mut source);
    }
    let has_snapshot = source.byte() & 1 == 1;
    if has_snapshot {
        let header = Header { kind: FileKind::Snapshot, boot: 0, generation: 1, salt: 1, size: 0, base: 1 };
        file(&files, SNAPSHOT, header, None, &mut source);
    }
    // starting threads is slow, so this is not done for every input; and headers, merged files and snapshots may claim to
    // replace later files, or have a wrong size
    let before = (data.len() % 16 == 1 && is_usual && !has_snapshot).then(|| files.copy());
    let Some(state) = recovered(&files) else { panic!("whole files are a reason not to start") };
    let table = SnapshotTable::of(&state);
    assert_eq!(
        SnapshotTable::decode(&table.encode()).as_ref(),
        Some(&table),
        "what was found is not what would be written"
    );
    if let Some(before) = before {
        goes_on(before);
    }
}

/// Checks that a journal with these files accepts a message and has it after a restart.
fn goes_on(files: Disk) {
    let files = Arc::new(files);
    let open = || Journal::open_in_boot(files.clone(), settings(), Arc::new(SystemClock), BOOT);
    let Ok(journal) = open() else { panic!("it does not open") };
    let id = journal.register("upstream/new", BOUNDS);
    let waiting = journal.backlog(id).messages;
    let Ok(place) = journal.append(&message("loft/new", 1, 200), &[id]) else { return };
    let mut synced = journal.synced();
    for _ in 0..100_000 {
        if *synced.borrow_and_update() >= place {
            break;
        }
        std::thread::sleep(std::time::Duration::from_micros(100));
    }
    assert!(*synced.borrow() >= place, "the message does not get safe");
    journal.close();
    let Ok(journal) = open() else { panic!("it does not open again") };
    let id = journal.register("upstream/new", BOUNDS);
    assert_eq!(journal.backlog(id).messages, (waiting + 1).min(BOUNDS.messages));
    journal.close();
}

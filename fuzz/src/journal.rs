//! Targets for files of the journal, with the damage that a card can cause.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
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
use super::meter::paid_by;

const BOUNDS: Limits = Limits { messages: 1000, bytes: 1 << 20, when_full: WhenFull::DropOldest };
const BOOT: u64 = 7;

fn settings() -> JournalSettings {
    JournalSettings { max_size: 512 << 10, largest_message: 1 << 10, ..JournalSettings::default() }
}

/// Counts the bytes that are read, because a start that reads its files many times takes too long on a slow card.
#[derive(Debug)]
struct Counted {
    files: MemoryStorage,
    bytes: AtomicU64,
}

impl Storage for Counted {
    fn place(&self) -> String {
        self.files.place()
    }
    fn list(&self) -> io::Result<Vec<(String, u64)>> {
        self.files.list()
    }
    fn read_at(&self, name: &str, offset: u64, buffer: &mut [u8]) -> io::Result<usize> {
        self.bytes.fetch_add(buffer.len() as u64, Ordering::Relaxed);
        self.files.read_at(name, offset, buffer)
    }
    fn write_at(&self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.files.write_at(name, offset, bytes)
    }
    fn create(&self, name: &str, len: u64) -> io::Result<()> {
        self.files.create(name, len)
    }
    fn sync(&self, name: &str) -> io::Result<()> {
        self.files.sync(name)
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.files.rename(from, to)
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.files.remove(name)
    }
}

fn size(files: &MemoryStorage) -> u64 {
    files.list().unwrap_or_default().iter().map(|(_, len)| len).sum()
}

/// Opens a journal with these files and returns its contents. The allowed cost depends only on the size of the files.
fn recovered(files: &MemoryStorage) -> Option<JournalState> {
    let size = size(files);
    let storage = Counted { files: files.clone(), bytes: AtomicU64::new(0) };
    let state = paid_by(size as usize, (2 << 20, 32), || recover(&storage, &settings(), BOOT, &SystemClock).ok());
    let read = storage.bytes.into_inner();
    assert!(read <= (1 << 20) + 32 * size, "{read} bytes were read of {size}");
    state
}

/// The place and the contents of a record.
struct Known {
    file: String,
    at: usize,
    end: usize,
    position: u64,
    body: Vec<u8>,
}

/// The files of a typical journal with two consumers, retained messages, sessions, several segments and a snapshot.
struct Base {
    files: MemoryStorage,
    names: Vec<String>,
    records: Vec<Known>,
    /// The index of each record by its position.
    places: HashMap<u64, usize>,
}

fn message(topic: &str, number: usize) -> Message {
    let payload = vec![number as u8; 200 + number % 700];
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

fn records(files: &MemoryStorage) -> Vec<Known> {
    let mut found = Vec::new();
    for (file, _) in files.list().unwrap_or_default() {
        let Some((header, _)) = read_header(files, &file).ok().filter(|_| file.ends_with(SEGMENT_SUFFIX)) else {
            continue;
        };
        let mut scanner = Scanner::new(files, &file, &header, header.size);
        while let Some((at, record)) = scanner.next_record() {
            let (at, end, body) = (at as usize, at as usize + record.padded_len(), record.body().to_vec());
            found.push(Known { file: file.clone(), at, end, position: record.position(), body });
        }
    }
    found
}

fn base() -> &'static Base {
    static BASE: OnceLock<Base> = OnceLock::new();
    BASE.get_or_init(|| {
        let files = MemoryStorage::default();
        let opened = Journal::open_in_boot(Arc::new(files.clone()), settings(), Arc::new(SystemClock), BOOT);
        let Ok(journal) = opened else { panic!("an empty journal opens") };
        let consumers = [journal.register("upstream/far", BOUNDS), journal.register("session/esp", BOUNDS)];
        for number in 0..400usize {
            let retained = Extra { retained: number.is_multiple_of(3), ..Extra::default() };
            let topic = format!("loft/{}", number % 7);
            // the first consumer settles nothing, so all of its records must be kept
            let _ = journal.append_with(&message(&topic, number), &consumers[..1 + number % 2], retained);
            let _ = journal.keep(&format!("esp{}", number % 5), Some(&[1; 30]), true);
            if number.is_multiple_of(40) {
                let (place, mut synced) = (journal.barrier(), journal.synced());
                while *synced.borrow_and_update() < place {
                    std::thread::yield_now();
                }
            }
        }
        journal.close();
        let names = files.list().unwrap_or_default().into_iter().map(|(name, _)| name).collect();
        let records = records(&files);
        assert!(records.len() >= 400, "{} records", records.len());
        let places = records.iter().enumerate().map(|(at, known)| (known.position, at)).collect();
        Base { files, names, records, places }
    })
}

/// Damages the files of a gateway: a few bytes, sectors or whole ends of files. A start must end, read and allocate only in
/// proportion to the size of the files, and lose no intact record in front of the damage or behind it. It must find only
/// records that were written.
pub(super) fn damage(data: &[u8]) {
    let base = base();
    let files = base.files.copy();
    let mut hit: BTreeMap<&str, Vec<(usize, usize)>> = BTreeMap::new();
    let mut source = Source(data);
    for _ in 0..8 {
        if source.is_empty() {
            break;
        }
        let name = base.names[usize::from(source.byte()) % base.names.len()].as_str();
        let len = files.contents(name).len();
        let (how, place) = (source.byte(), source.number() << 8 | usize::from(source.byte()));
        let at = place % len.max(1);
        let damaged = match how % 5 {
            0 => (at, source.take(32).to_vec()),
            1 => (at / 512 * 512, vec![0; 512]),
            2 => (at / 4096 * 4096, vec![0xff; 4096]),
            // nothing was written from here on
            3 => (at, vec![0; len - at]),
            _ => (at, source.take(usize::from(how)).repeat(64)),
        };
        let (at, mut bytes) = damaged;
        bytes.truncate(len - at);
        if files.write_at(name, at as u64, &bytes).is_ok() {
            hit.entry(name).or_default().push((at, at + bytes.len()));
        }
    }
    let is_whole = |file: &str, from: usize, to: usize| {
        hit.get(file).is_none_or(|hit| hit.iter().all(|(at, end)| *end <= from || *at >= to))
    };
    let Some(state) = recovered(&files) else { panic!("damage is a reason not to start") };
    let mut found: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
    for segment in state.segments() {
        let mut scanner = Scanner::new(&files, &segment.name, &segment.header, segment.header.size);
        while let Some((_, record)) = scanner.next_record() {
            found.insert(record.position(), record.body().to_vec());
        }
    }
    for known in &base.records {
        let has_header =
            is_whole(&known.file, 0, 72) || is_whole(&known.file, HEADER_COPY as usize, HEADER_COPY as usize + 72);
        if has_header && is_whole(&known.file, known.at, known.end) {
            assert_eq!(found.get(&known.position), Some(&known.body), "{} at {}", known.file, known.at);
        }
    }
    for (position, body) in &found {
        assert!(base.places.get(position).is_some_and(|at| base.records[*at].body == *body), "{position}");
    }
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

/// A file with valid records whose contents no gateway writes.
fn file(files: &MemoryStorage, name: &str, header: Header, source: &mut Source<'_>) {
    let (mut bytes, mut position) = (Vec::new(), header.base);
    for _ in 0..source.byte() % 32 {
        let (kind, flags, boot) = (kind(source.byte()), source.byte() & 7, u32::from(source.byte()));
        let consumers: Vec<(u64, u64)> =
            (0..source.byte() % 4).map(|_| (ordinal(source) % 8, ordinal(source))).collect();
        let length = source.number() % 600;
        let mut body = source.take(length).to_vec();
        if kind == RecordKind::Message && flags & 1 != 0 {
            body = message("loft/a", length).view().as_bytes().to_vec();
        }
        let draft = RecordDraft { kind, flags, boot, body: &[&body] };
        encode(&mut bytes, position, &draft, consumers.into_iter());
        position = position.saturating_add(1 + u64::from(source.byte() % 3));
    }
    seal(&mut bytes, header.seed());
    let _ = files.create(name, settings().segment_size());
    let _ = files.write_at(name, 0, &header.encode());
    let _ = files.write_at(name, HEADER_COPY, &header.encode());
    let _ = files.write_at(name, DATA, &bytes);
}

/// Valid records with any contents, in segments and a snapshot: cursors, tables, sessions, retained messages, notes and
/// clocks. A start must end, and its cost must fit the size of the files. Everything that was found must be the same after
/// it is written and read again, and the journal must accept new messages.
pub(super) fn records_of_strangers(data: &[u8]) {
    let files = MemoryStorage::default();
    let mut source = Source(data);
    let size = settings().segment_size();
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
        let size = if flags & 16 == 0 { size } else { ordinal(&mut source) };
        let header = Header { kind, boot: 0, generation, salt: 1, size, base };
        file(&files, &format!("{number:08}{SEGMENT_SUFFIX}"), header, &mut source);
    }
    let has_snapshot = source.byte() & 1 == 1;
    if has_snapshot {
        let header = Header { kind: FileKind::Snapshot, boot: 0, generation: 1, salt: 1, size, base: 1 };
        file(&files, SNAPSHOT, header, &mut source);
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
fn goes_on(files: MemoryStorage) {
    let open = || Journal::open_in_boot(Arc::new(files.clone()), settings(), Arc::new(SystemClock), BOOT);
    let Ok(journal) = open() else { panic!("it does not open") };
    let id = journal.register("upstream/new", BOUNDS);
    let waiting = journal.backlog(id).messages;
    let Ok(place) = journal.append(&message("loft/new", 1), &[id]) else { return };
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

use std::cell::RefCell;
use std::collections::VecDeque;
use std::path::Path;

use proptest::prelude::*;

use super::super::Storage;
use super::super::file::FileStorage;
use super::*;

pub(super) fn count(window: &mut Window) {
    window.writes += 1;
}

/// Makes a temporary directory with a file that contains these bytes.
fn with_file(bytes: &[u8]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("f"), bytes).unwrap();
    dir
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at / 7 + at / 512) as u8).collect()
}

fn open(path: &Path) -> Arc<Opened> {
    let file = OpenOptions::new().read(true).write(true).open(path).unwrap();
    let len = file.metadata().unwrap().len();
    Arc::new(Opened::new(file, len))
}

/// Whether the file system of the temporary directory supports direct writes of one sector.
fn is_direct_here() -> bool {
    let dir = with_file(&[0; 512]);
    let to = OpenOptions::new().write(true).custom_flags(OFlags::DIRECT.bits() as i32).open(dir.path().join("f"));
    let memory = vec![0; 8192];
    let aligned = memory.as_ptr().align_offset(4096);
    to.is_ok_and(|file| file.write_at(&memory[aligned..aligned + 512], 0).is_ok())
}

#[derive(Clone, Debug)]
enum Step {
    Write {
        file: usize,
        at: usize,
        len: usize,
        fill: u8,
    },
    /// Each write begins where the last one ended, as in a growing journal.
    Append {
        file: usize,
        len: usize,
        fill: u8,
    },
    Sync(usize),
    Create(usize),
    Swap,
    Reopen,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let len = prop_oneof![4 => 1..700_usize, 1 => 1..20_000_usize, 1 => Just(512), 1 => 4000..4200_usize];
    let step = prop_oneof![
        6 => (0..2_usize, 0..30_000_usize, len.clone(), any::<u8>())
            .prop_map(|(file, at, len, fill)| Step::Write { file, at, len, fill }),
        12 => (0..2_usize, len, any::<u8>()).prop_map(|(file, len, fill)| Step::Append { file, len, fill }),
        2 => (0..2_usize).prop_map(Step::Sync),
        1 => (0..2_usize).prop_map(Step::Create),
        1 => Just(Step::Swap),
        1 => Just(Step::Reopen),
    ];
    proptest::collection::vec(step, 1..40)
}

const NAMES: [&str; 2] = ["a", "b"];

fn write(storage: &FileStorage, model: &mut Vec<u8>, name: &str, at: usize, bytes: &[u8]) {
    storage.write_at(name, at as u64, bytes).unwrap();
    if model.len() < at + bytes.len() {
        model.resize(at + bytes.len(), 0);
    }
    model[at..at + bytes.len()].copy_from_slice(bytes);
}

fn check(storage: &FileStorage, dir: &Path, model: &[Vec<u8>; 2]) -> Result<(), TestCaseError> {
    for (name, model) in NAMES.into_iter().zip(model) {
        let mut read = vec![0; model.len() + 1];
        let count = storage.read_at(name, 0, &mut read).unwrap();
        prop_assert!(count == model.len() && read[..count] == model[..], "{} as read", name);
        prop_assert!(std::fs::read(dir.join(name)).unwrap() == *model, "{} from outside", name);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn files_are_what_was_written(
        lens in (prop_oneof![Just(32_768_usize), 0..40_000_usize], prop_oneof![Just(8192_usize), 0..40_000_usize]),
        steps in steps(),
        is_off in any::<bool>(),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let open = || if is_off { FileStorage::buffered(dir.path()) } else { FileStorage::new(dir.path()) };
        let lens = [lens.0, lens.1];
        let mut model = lens.map(pattern);
        for (name, model) in NAMES.iter().zip(&model) {
            std::fs::write(dir.path().join(name), model).unwrap();
        }
        let mut storage = open();
        let mut end = [0; 2];
        for step in steps {
            match step {
                Step::Write { file, at, len, fill } => {
                    write(&storage, &mut model[file], NAMES[file], at, &vec![fill; len]);
                    end[file] = at + len;
                }
                Step::Append { file, len, fill } => {
                    write(&storage, &mut model[file], NAMES[file], end[file], &vec![fill; len]);
                    end[file] += len;
                }
                Step::Sync(file) => storage.sync(NAMES[file]).unwrap(),
                Step::Create(file) => {
                    storage.remove(NAMES[file]).unwrap();
                    storage.create(NAMES[file], lens[file] as u64).unwrap();
                    model[file] = vec![0; lens[file]];
                    end[file] = 0;
                }
                Step::Swap => {
                    storage.rename("a", "c").unwrap();
                    storage.rename("b", "a").unwrap();
                    storage.rename("c", "b").unwrap();
                    model.swap(0, 1);
                }
                Step::Reopen => storage = open(),
            }
        }
        check(&storage, dir.path(), &model)?;
        for name in NAMES {
            storage.sync(name).unwrap();
        }
        check(&storage, dir.path(), &model)?;
    }
}

#[test]
fn small_writes_go_past_the_page_cache() {
    let mut model = pattern(64 * 1024);
    let dir = with_file(&model);
    let path = dir.path().join("f");
    let (sectors, file) = (Sectors::default(), open(&path));
    for at in (8192..40_000).step_by(296) {
        sectors.write(&file, || path.clone(), at as u64, &[at as u8; 296]).unwrap();
        model[at..at + 296].fill(at as u8);
        assert!(std::fs::read(&path).unwrap() == model, "at {at}");
    }
    let writes = sectors.window.lock().writes;
    assert_eq!(writes > 100, is_direct_here(), "{writes}");
    assert_eq!(sectors.is_off.load(Ordering::Relaxed), !is_direct_here());
}

#[test]
fn what_is_large_or_ends_beyond_the_last_sector_goes_through_it() {
    let dir = with_file(&pattern(10_000));
    let path = dir.path().join("f");
    let (sectors, file) = (Sectors::default(), open(&path));
    for (at, len) in [(0, 4097), (511, 3587), (9728, 8), (9700, 100), (10_000, 8), (0, 0)] {
        sectors.write(&file, || path.clone(), at, &vec![1; len]).unwrap();
        assert_eq!(sectors.window.lock().writes, 0, "{at} {len}");
    }
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 10_008);
}

#[test]
fn a_file_that_has_the_name_of_another_is_let_alone() {
    let dir = with_file(&[0; 1024]);
    let path = dir.path().join("f");
    let (sectors, file) = (Sectors::default(), open(&path));
    std::fs::rename(&path, dir.path().join("g")).unwrap();
    sectors.write(&file, || path.clone(), 0, &[1; 8]).unwrap();
    std::fs::write(&path, [0; 1024]).unwrap();
    sectors.write(&file, || path.clone(), 8, &[2; 8]).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), [0; 1024]);
    let moved = std::fs::read(dir.path().join("g")).unwrap();
    assert_eq!((&moved[..8], &moved[8..16]), (&[1; 8][..], &[2; 8][..]));
}

#[test]
fn what_is_only_looked_at_is_not_written_to() {
    let dir = with_file(&[0; 1024]);
    let storage = FileStorage::read_only(dir.path());
    assert!(storage.write_at("f", 0, &[1; 8]).is_err());
    assert_eq!(std::fs::read(dir.path().join("f")).unwrap(), [0; 1024]);
}

#[test]
fn only_a_refusal_ends_direct_writes() {
    let sectors = Sectors::default();
    for errno in [Errno::IO, Errno::NOSPC, Errno::ROFS, Errno::ACCESS, Errno::NOENT] {
        assert!(!sectors.refused(&errno.into()), "{errno}");
        assert!(!sectors.is_off.load(Ordering::Relaxed), "{errno}");
    }
    assert!(sectors.refused(&Errno::INVAL.into()));
    assert!(sectors.is_off.load(Ordering::Relaxed));
}

/// A descriptor that gives prepared answers to the first writes and accepts all later ones.
#[derive(Default)]
struct Told {
    answers: RefCell<VecDeque<io::Result<usize>>>,
    calls: RefCell<Vec<(u64, usize)>>,
}

impl FileExt for Told {
    fn read_at(&self, _: &mut [u8], _: u64) -> io::Result<usize> {
        unreachable!("nothing is read here")
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<usize> {
        self.calls.borrow_mut().push((offset, bytes.len()));
        self.answers.borrow_mut().pop_front().unwrap_or(Ok(bytes.len()))
    }
}

#[test]
fn a_short_write_goes_on_with_whole_sectors_only() {
    let told = |answers: Vec<io::Result<usize>>| Told { answers: RefCell::new(answers.into()), ..Told::default() };
    let file = told(vec![Ok(512), Err(Errno::INTR.into())]);
    assert!(write_sectors(&file, &[0; 1536], 512).unwrap());
    assert_eq!(*file.calls.borrow(), [(512, 1536), (1024, 1024), (1024, 1024)]);
    for count in [0, 100, 700] {
        assert!(!write_sectors(&told(vec![Ok(count)]), &[0; 1536], 512).unwrap(), "{count}");
    }
    let error = write_sectors(&told(vec![Ok(512), Err(Errno::IO.into())]), &[0; 1536], 512).unwrap_err();
    assert_eq!(Errno::from_io_error(&error), Some(Errno::IO));
}

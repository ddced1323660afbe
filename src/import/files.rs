//! Finding and reading the files that a configuration names.

use std::io;
use std::path::{Path, PathBuf};

/// Longest file that is read. The files of a broker are small; whatever is longer is not one of them.
const LONGEST: u64 = 16 << 20;

/// Finds files: where the configuration says, else beside it. A configuration that was copied from another machine or out
/// of a container names paths that are not here.
#[derive(Clone, Debug)]
pub(super) struct Files {
    base: PathBuf,
    /// Named on the command line.
    given: Vec<PathBuf>,
}

impl Files {
    pub(crate) fn new(main: &Path, given: &[PathBuf]) -> Files {
        Files { base: main.parent().unwrap_or(Path::new("")).to_owned(), given: given.to_vec() }
    }

    /// Where the file or directory that is named like this really is; `None`: nowhere.
    pub(crate) fn find(&self, named: &str) -> Option<PathBuf> {
        let path = self.base.join(named);
        let same_name = |path: &&PathBuf| path.file_name() == Path::new(named).file_name();
        if let Some(given) = self.given.iter().find(same_name) {
            return Some(given.clone());
        }
        let beside = Path::new(named).file_name().map(|name| self.base.join(name));
        [Some(path), beside].into_iter().flatten().find(|path| path.exists())
    }

    /// The absolute path to write for a file that is named like this, and whether it is there.
    pub(crate) fn locate(&self, named: &str) -> (String, bool) {
        let found = self.find(named);
        let path = found.clone().unwrap_or_else(|| self.base.join(named));
        let path = std::path::absolute(&path).unwrap_or(path);
        (path.to_string_lossy().into_owned(), found.is_some_and(|path| path.is_file()))
    }
}

/// The text of a file, without a byte order mark. What is not UTF-8 is read as Latin-1, as old editors wrote it.
pub(super) fn read(path: &Path) -> io::Result<String> {
    if std::fs::metadata(path)?.len() > LONGEST {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "it is longer than 16 MiB"));
    }
    let bytes = std::fs::read(path)?;
    if bytes.contains(&0) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it is not a text"));
    }
    let text = String::from_utf8(bytes)
        .unwrap_or_else(|error| error.as_bytes().iter().map(|byte| char::from(*byte)).collect());
    Ok(text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text))
}

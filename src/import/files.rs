//! Finds and reads the files that a configuration names.

use std::io;
use std::path::{Path, PathBuf};

/// The longest file that is read, in bytes. A broker's configuration files are small, so a longer file is not one of them.
const LONGEST: u64 = 16 << 20;

/// Finds files at the path that the configuration names, or else beside the configuration. A configuration that was copied
/// from another machine or out of a container names paths that do not exist here.
#[derive(Clone, Debug)]
pub(super) struct Files {
    base: PathBuf,
    /// The files named on the command line.
    given: Vec<PathBuf>,
}

impl Files {
    pub(crate) fn new(main: &Path, given: &[PathBuf]) -> Files {
        Files { base: main.parent().unwrap_or(Path::new("")).to_owned(), given: given.to_vec() }
    }

    /// The actual path of the file or directory that is named like this; `None` if it is not found.
    pub(crate) fn find(&self, named: &str) -> Option<PathBuf> {
        let path = self.base.join(named);
        let same_name = |path: &&PathBuf| path.file_name() == Path::new(named).file_name();
        if let Some(given) = self.given.iter().find(same_name) {
            return Some(given.clone());
        }
        let beside = Path::new(named).file_name().map(|name| self.base.join(name));
        [Some(path), beside].into_iter().flatten().find(|path| path.exists())
    }

    /// The absolute path to write for a file that is named like this, and whether it exists.
    pub(crate) fn locate(&self, named: &str) -> (String, bool) {
        let found = self.find(named);
        let path = found.clone().unwrap_or_else(|| self.base.join(named));
        let path = std::path::absolute(&path).unwrap_or(path);
        (path.to_string_lossy().into_owned(), found.is_some_and(|path| path.is_file()))
    }
}

/// The text of a file, without a byte order mark. A file that is not UTF-8 is read as Latin-1, which old editors wrote.
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

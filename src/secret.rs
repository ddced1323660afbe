//! Files that the configuration names: passwords, certificates and keys.
//!
//! They are read when they are needed, not when the configuration is read. So a file that is added or renewed later is used
//! without a restart, and a missing file affects only the part that needs it.
//!
//! Windows writes text with a byte order mark, in UTF-16 or with CRLF at the ends of lines. All of this is removed.

use std::ffi::OsString;
use std::fmt;
use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// The longest file that is read, in bytes. Certificate chains and lists of authorities are far smaller.
const MOST: u64 = 4 << 20;

/// The suffix of files that were set aside.
pub(crate) const ASIDE_SUFFIX: &str = ".set-aside";

/// A text that is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Box<str>);

impl Secret {
    pub(crate) fn new(text: impl Into<Box<str>>) -> Secret {
        Secret(text.into())
    }

    /// The text, which must only be handed to the protocol.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(hidden)")
    }
}

/// A SHA-256 digest.
pub(crate) type Digest = [u8; 32];

/// A digest that stands for a value which must not be stored or shown, or which is too long.
pub(crate) fn sha256(bytes: &[u8]) -> Digest {
    let mut short = Digest::default();
    short.copy_from_slice(ring::digest::digest(&ring::digest::SHA256, bytes).as_ref());
    short
}

/// Like [`sha256`], in hexadecimal digits.
pub(crate) fn sha256_hex(bytes: &[u8]) -> String {
    sha256(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Reads a file of the gateway. `None` if there is none, or something that the gateway has not written, such as a file with
/// more bytes than `most`. After an error it is unknown what is in the file, so it must not be replaced. Blocks.
pub(crate) fn read_private(path: &Path, most: u64) -> io::Result<Option<String>> {
    let read = fs::symlink_metadata(path).and_then(|about| match about.is_file() && about.len() <= most {
        true => fs::read_to_string(path).map(Some),
        false => Ok(None),
    });
    match read {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::InvalidData) => Ok(None),
        read => read,
    }
}

/// What a person can do about a file of the gateway that cannot be read.
pub(crate) fn remedy_for_private(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "give it to the user that pigateway runs as",
        _ => "see dmesg, and delete it if the card has lost it",
    }
}

/// Replaces a whole file of the gateway, which nobody else can read. A power cut leaves the old or the new file, and after
/// the return always the new one. Blocks.
pub(crate) fn replace_private(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut new: OsString = path.as_os_str().to_owned();
    new.push(".new");
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => fs::File::open(dir)?.sync_all(),
        _ => fs::File::open(".")?.sync_all(),
    }
}

/// Renames what stands in the place of a file of the gateway and is something else, so that a person can examine it. Returns
/// its new path. Blocks.
pub(crate) fn set_aside(path: &Path) -> io::Result<PathBuf> {
    let names = (1..u32::MAX).map(|number| {
        let mut name: OsString = path.as_os_str().to_owned();
        name.push(format!(".{number}{ASIDE_SUFFIX}"));
        PathBuf::from(name)
    });
    let is_free = |to: &PathBuf| fs::symlink_metadata(to).is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
    let to = names.into_iter().find(is_free).ok_or(io::ErrorKind::AlreadyExists)?;
    fs::rename(path, &to)?;
    Ok(to)
}

/// Whether everybody on this machine can read a file. For a link, the file that it leads to counts.
pub(crate) fn is_public(path: &Path) -> bool {
    lets_others(path, 0o004)
}

/// Whether anybody except owner and group has one of these rights to a file or directory. A single directory on the path
/// that is closed to others is enough to deny them, whatever the rights of the file are.
pub(crate) fn lets_others(path: &Path, bits: u32) -> bool {
    let has = |path: &Path, bits: u32| fs::metadata(path).is_ok_and(|about| about.permissions().mode() & bits != 0);
    fs::canonicalize(path).is_ok_and(|path| has(&path, bits) && path.ancestors().skip(1).all(|dir| has(dir, 0o001)))
}

/// Why a file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FileError {
    /// The file is missing, or cannot be read.
    #[error("{path} cannot be read: {source}")]
    Missing {
        /// The path of the file.
        path: PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },
    /// The file can be read, but its contents are not usable.
    #[error("{path} {reason}")]
    Unusable {
        /// The path of the file.
        path: PathBuf,
        /// The reason, as the end of a sentence that begins with the path.
        reason: String,
    },
}

impl FileError {
    /// An error about the contents of a file.
    pub(crate) fn unusable(path: &Path, reason: impl Into<String>) -> FileError {
        FileError::Unusable { path: path.into(), reason: reason.into() }
    }

    /// The path of the file.
    pub(crate) fn path(&self) -> &Path {
        match self {
            FileError::Missing { path, .. } | FileError::Unusable { path, .. } => path,
        }
    }

    pub(crate) fn is_missing(&self) -> bool {
        matches!(self, FileError::Missing { .. })
    }

    /// What a person can do about it.
    pub(crate) fn remedy(&self) -> &'static str {
        match self {
            FileError::Missing { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                "let the user that pigateway runs as read it, or hand it over with LoadCredential; it is tried again"
            }
            FileError::Missing { .. } => "put the file there; it is tried again",
            FileError::Unusable { .. } => "put the right file there; it is tried again",
        }
    }
}

/// The contents of a file without byte order mark, with text as UTF-8.
pub(crate) fn contents(path: &Path) -> Result<Vec<u8>, FileError> {
    let missing = |source| FileError::Missing { path: path.into(), source };
    // reading a FIFO without a writer would block, and a directory cannot be used
    let about = std::fs::metadata(path).map_err(missing)?;
    if !about.is_file() {
        return Err(FileError::unusable(path, "is not a file"));
    }
    if about.len() > MOST {
        return Err(FileError::unusable(path, "is far too large"));
    }
    Ok(plain(std::fs::read(path).map_err(missing)?))
}

/// The password in a file: its text without the line ending.
pub(crate) fn password(path: &Path) -> Result<Secret, FileError> {
    let text = String::from_utf8(contents(path)?).map_err(|_| FileError::unusable(path, "is not UTF-8 text"))?;
    let text = text.trim_end_matches(['\r', '\n']);
    if text.is_empty() { Err(FileError::unusable(path, "is empty")) } else { Ok(Secret::new(text)) }
}

/// Removes what Windows adds to text. Other bytes stay as they are.
pub(crate) fn plain(bytes: Vec<u8>) -> Vec<u8> {
    let wide = |bytes: &[u8], unit: fn([u8; 2]) -> u16| {
        let units: Vec<u16> = bytes.chunks_exact(2).map(|pair| unit([pair[0], pair[1]])).collect();
        String::from_utf16(&units).ok().filter(|_| bytes.len().is_multiple_of(2)).map(String::into_bytes)
    };
    let read = match bytes.as_slice() {
        [0xef, 0xbb, 0xbf, rest @ ..] => Some(rest.to_vec()),
        [0xff, 0xfe, rest @ ..] => wide(rest, u16::from_le_bytes),
        [0xfe, 0xff, rest @ ..] => wide(rest, u16::from_be_bytes),
        _ => None,
    };
    read.unwrap_or(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(bytes: &[u8]) -> tempfile::NamedTempFile {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        file
    }

    #[test]
    fn a_password_is_read_as_it_was_meant() {
        let wide = |unit: fn(u16) -> [u8; 2], text: &str| -> Vec<u8> { text.encode_utf16().flat_map(unit).collect() };
        for bytes in [
            b"hunter2".to_vec(),
            b"hunter2\n".to_vec(),
            b"hunter2\r\n".to_vec(),
            b"hunter2\r\n\r\n".to_vec(),
            b"\xef\xbb\xbfhunter2\r\n".to_vec(),
            wide(u16::to_le_bytes, "\u{feff}hunter2\r\n"),
            wide(u16::to_be_bytes, "\u{feff}hunter2\n"),
        ] {
            assert_eq!(password(file(&bytes).path()).unwrap().expose(), "hunter2", "{bytes:?}");
        }
        // spaces may be part of the password
        assert_eq!(password(file(b" a b \n").path()).unwrap().expose(), " a b ");
    }

    #[test]
    fn what_is_wrong_is_said_with_the_file() {
        for (bytes, reason) in
            [(&b"\r\n"[..], "is empty"), (b"\xef\xbb\xbf\r\n", "is empty"), (b"\xff\xfex", "is not UTF-8 text")]
        {
            let file = file(bytes);
            let error = password(file.path()).unwrap_err();
            assert_eq!(error.to_string(), format!("{} {reason}", file.path().display()));
            assert!(!error.is_missing() && error.path() == file.path());
        }
        let error = password(Path::new("/nowhere/x")).unwrap_err();
        assert_eq!(error.to_string(), "/nowhere/x cannot be read: No such file or directory (os error 2)");
        assert!(error.is_missing());
        let dir = tempfile::tempdir().unwrap();
        assert!(password(dir.path()).unwrap_err().to_string().ends_with("is not a file"));
    }

    #[test]
    fn what_cannot_be_read_is_not_taken_for_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        assert_eq!(read_private(&file, 9).unwrap(), None);
        for (content, read) in [(&b"text"[..], Some("text")), (b"\xff", None), (b"far too long", None)] {
            fs::write(&file, content).unwrap();
            assert_eq!(read_private(&file, 9).unwrap().as_deref(), read);
        }
        assert_eq!(read_private(dir.path(), 1 << 20).unwrap(), None);
        assert!(read_private(&file.join("below"), 9).is_err());
    }

    #[test]
    fn secrets_are_not_printed() {
        assert!(!format!("{:?}", Secret::new("hunter2")).contains("hunter2"));
    }
}

//! The gateway's own file of users that were added on the web page or by REST. It is in the data directory.
//!
//! It is TOML with a `[[user]]` for each user, with the same rules as `[[broker.user]]`, so that a person who has to repair
//! it gets messages with line and key. The gateway always replaces the whole file. A file that it cannot read is neither
//! used nor replaced.

use std::fmt::Write;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use toml::de::DeTable;

use super::accounts::{Where, users_of};
use super::document::{Document, Table, line_and_column};
use super::error::{ConfigProblem, ConfigProblems};
use crate::access::settings::UserSettings;

/// The name of the file in the data directory.
const NAME: &str = "users.toml";
/// The size in bytes above which the file is refused, because the gateway does not write such a file.
pub(crate) const LARGEST: u64 = 4 << 20;
const HEAD: &str = "# Users that were made on the web page or by its REST interface. pigateway replaces this file when one of them changes.\n\
                    # A [[broker.user]] of the same name in the configuration wins, and only such a user can have admin = true.\n";

pub(crate) fn made_users_path(data_dir: &Path) -> PathBuf {
    data_dir.join(NAME)
}

/// The contents of the file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MadeUsers {
    /// The users, each with the line in which its table begins.
    pub(crate) users: Vec<(UserSettings, usize)>,
    /// Values that are valid, but may not be what was meant.
    pub(crate) warnings: Vec<ConfigProblem>,
}

impl MadeUsers {
    /// The users without their line numbers.
    pub fn settings(self) -> Vec<UserSettings> {
        self.users.into_iter().map(|(user, _)| user).collect()
    }

    /// All warnings: those of the file itself, and users that have no effect with this configuration.
    pub(crate) fn all_warnings(&self, configured: &[UserSettings], data_dir: &Path) -> Vec<ConfigProblem> {
        self.warnings.iter().cloned().chain(self.hidden_by(configured, data_dir)).collect()
    }

    /// Warnings about users that have no effect because the configuration has a user of the same name.
    fn hidden_by(&self, configured: &[UserSettings], data_dir: &Path) -> Vec<ConfigProblem> {
        let file = made_users_path(data_dir).display().to_string();
        let is_hidden = |user: &UserSettings| configured.iter().any(|other| other.name == user.name);
        let hidden = self.users.iter().filter(|(user, _)| is_hidden(user));
        let problem = |(user, line): &(UserSettings, usize)| ConfigProblem {
            file: file.clone(),
            place: Some((*line, 1)),
            key: "user.name".into(),
            message: format!("the configuration has a [[broker.user]] {:?} too, which wins over this one", user.name),
        };
        hidden.map(problem).collect()
    }
}

/// Reads the file. If it is missing, there are no such users.
pub(crate) fn load_made_users(data_dir: &Path) -> Result<MadeUsers, ConfigProblems> {
    let path = made_users_path(data_dir);
    let file = path.display().to_string();
    let whole = |place, message: String| {
        let problem = ConfigProblem { file: file.clone(), place, key: String::new(), message };
        ConfigProblems { file: file.clone(), problems: vec![problem] }
    };
    match fs::symlink_metadata(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(MadeUsers::default()),
        Err(error) => return Err(whole(None, format!("cannot be read: {error}"))),
        Ok(about) if !about.is_file() => return Err(whole(None, "is not a file".into())),
        Ok(about) if about.len() > LARGEST => return Err(whole(None, "is far too large".into())),
        Ok(_) => {}
    }
    let bytes = fs::read(&path).map_err(|error| whole(None, format!("cannot be read: {error}")))?;
    let text = std::str::from_utf8(&bytes).map_err(|error| {
        whole(Some(line_and_column(&bytes, error.valid_up_to())), "found bytes that are not UTF-8; valid: text".into())
    })?;
    read_made_users(text, &file)
}

/// Reads the text of the file; `file` is its name for messages.
pub fn read_made_users(text: &str, file: &str) -> Result<MadeUsers, ConfigProblems> {
    let document = Document::new(file, text);
    let (root, errors) = DeTable::parse_recoverable(text);
    for error in &errors {
        let at = error.span().map_or(text.len(), |span| span.start);
        document.problem(at, "", format!("not TOML: {}", error.message()));
    }
    if !errors.is_empty() {
        return finish(document, Vec::new());
    }
    let places = Table::root(&document, root.get_ref()).tables("user");
    let lines = places.into_iter().map(|table| document.line(table.at()));
    let root = Table::root(&document, root.get_ref());
    let users = users_of(&root, &[], &Where::Made);
    let users = users.into_iter().zip(lines).collect();
    root.finish();
    finish(document, users)
}

fn finish(document: Document<'_>, users: Vec<(UserSettings, usize)>) -> Result<MadeUsers, ConfigProblems> {
    let file = document.file().to_owned();
    let (problems, warnings, _) = document.into_findings();
    // a user that was read only in part might have more rights than intended
    if problems.is_empty() { Ok(MadeUsers { users, warnings }) } else { Err(ConfigProblems { file, problems }) }
}

/// The text of a file with these users.
pub fn made_users_text(users: &[UserSettings]) -> String {
    let quoted = |text: &str| toml::Value::String(text.into()).to_string();
    let list =
        |items: Vec<String>| format!("[{}]", items.iter().map(|item| quoted(item)).collect::<Vec<_>>().join(", "));
    let mut text = String::from(HEAD);
    for user in users {
        // writing to a string cannot fail
        let _ = write!(text, "\n[[user]]\nname = {}\n", quoted(&user.name));
        if let Some(hash) = &user.password_hash {
            let _ = writeln!(text, "password_hash = {}", quoted(hash));
        }
        let rules =
            |rules: &[crate::access::settings::AccessRule]| list(rules.iter().map(ToString::to_string).collect());
        let _ = writeln!(text, "publish = {}", rules(&user.rights.publish));
        let _ = writeln!(text, "subscribe = {}", rules(&user.rights.subscribe));
        if !user.client_ids.is_empty() {
            let _ = writeln!(text, "client_ids = {}", list(user.client_ids.clone()));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::settings::{AccessRule, Rights};

    const HASH: &str =
        "$argon2id$v=19$m=19456,t=2,p=1$cGlnYXRld2F5LW5vYm9keQ$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

    fn user(name: &str) -> UserSettings {
        let rule = |text: &str| AccessRule::parse(text).unwrap();
        UserSettings {
            name: name.into(),
            password_hash: Some(HASH.into()),
            rights: Rights { publish: vec![rule("a/%u/#"), rule("!a/\"x\"/#")], subscribe: vec![] },
            client_ids: vec!["%u-*".into()],
            is_admin: false,
        }
    }

    #[test]
    fn whatever_a_user_is_called_is_read_as_it_was_written() {
        let names = [
            "esp",
            "esp \"loft\"",
            "a\\b",
            "'''",
            "\"\"\"",
            "ü 🙂",
            "[[user]]",
            "# x",
            "a=b",
            " ",
            "..",
            "日本",
            "\u{feff}x",
        ];
        let users: Vec<UserSettings> = names.map(user).into();
        let read = read_made_users(&made_users_text(&users), "f").unwrap();
        assert_eq!(read.clone().settings(), users);
        assert!(read.warnings.is_empty());
        assert_eq!(
            read.hidden_by(&[user("esp"), user("else")], Path::new("/d"))[0].to_string(),
            "/d/users.toml:4:1: user.name: the configuration has a [[broker.user]] \"esp\" too, which wins over this one"
        );
        assert_eq!(read_made_users(&made_users_text(&[]), "f").unwrap(), MadeUsers::default());
    }

    #[test]
    fn what_is_broken_is_said_with_its_line_and_nobody_of_it_comes_in() {
        let good = format!("[[user]]\nname = \"a\"\npassword_hash = \"{HASH}\"\n");
        for (text, expected) in [
            ("[[user]]\nname = \"b\nx".to_owned(), "f:5:10: not TOML"),
            (
                "[[user]]\nname = \"b\"\nadmin = true\n".into(),
                "f:6:9: user.admin: found true; valid: only a [[broker.user]]",
            ),
            ("[[user]]\nname = \"b\"\npublish = [\"a/#/b\"]\n".into(), "f:6:12: user.publish: found \"a/#/b\""),
            (
                "[[user]]\nname = \"b\"\npasword_hash = \"x\"\n".into(),
                "f:6:1: user.pasword_hash: unknown key; did you mean password_hash?",
            ),
            (
                "[[user]]\nname = \"b\"\npassword_hash = \"hunter2\"\n".into(),
                "f:6:17: user.password_hash: not an argon2id hash",
            ),
            ("[[user]]\nname = \"a\"\n".into(), "f:5:8: user.name: found \"a\"; valid: one that no other user has"),
            ("[[user]]\nname = \"\"\n".into(), "f:5:8: user.name: found \"\""),
            ("[[user]]\n".into(), "f:4:1: user.name: missing"),
            ("[broker]\nx = 1\n".into(), "f:4:2: broker: unknown key; valid: user\n"),
        ] {
            let error = read_made_users(&(good.clone() + &text), "f").unwrap_err().to_string();
            assert!(error.starts_with(expected), "{text}: {error}");
            assert!(!error.contains("hunter2"));
        }
    }

    #[test]
    fn a_file_that_cannot_be_read_is_said_and_a_missing_one_is_nobody() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(load_made_users(dir.path()).unwrap(), MadeUsers::default());
        let path = made_users_path(dir.path());
        fs::write(&path, b"# x\n\xff").unwrap();
        assert!(load_made_users(dir.path()).unwrap_err().to_string().contains("users.toml:2:1: found bytes"));
        fs::remove_file(&path).unwrap();
        std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
        assert!(load_made_users(dir.path()).unwrap_err().to_string().contains("is not a file"));
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        assert!(load_made_users(dir.path()).is_err());
    }
}

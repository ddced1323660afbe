//! Access: password files, access control lists and `allow_anonymous`.

use std::path::{Path, PathBuf};
use std::rc::Rc;

use super::Given;
use super::acl::{Acl, AclRules};
use super::document::Section;
use crate::access::hash;
use crate::import::files::{Files, read};
use crate::import::line::{LinePlace, SettingLine, SettingLines};
use crate::import::text::{TomlText, list, quoted};
use crate::import::{ImportError, Options};

/// A user of the result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ImportedUser {
    pub(crate) name: String,
    /// `None` for a user that signs in with a certificate only.
    pub(crate) hash: Option<String>,
    pub(crate) rules: AclRules,
    /// How the ids of its clients must begin.
    pub(crate) id_prefix: Option<String>,
}

/// The access settings of one listener or of the whole broker.
#[derive(Debug, Default)]
pub(super) struct AccessOptions {
    pub(crate) allow_anonymous: bool,
    /// The line with `allow_anonymous`, if there is one.
    pub(crate) anonymous_line: Option<Rc<SettingLine>>,
    passwords: Option<Vec<(String, String, Rc<SettingLine>)>>,
    acl: Option<Acl>,
    /// A line names an access control list that cannot be found, so nobody may do anything.
    acl_is_missing: bool,
    /// A plugin decided who may come in and what each may do, so nothing is allowed that a person does not write.
    is_decided_by_plugin: bool,
    /// How the ids of all clients must begin.
    id_prefix: Option<String>,
}

/// The data that all readers of access settings need.
pub(super) struct AccessReader<'a> {
    pub(crate) files: &'a Files,
    pub(crate) given: &'a Given,
    pub(crate) options: &'a Options<'a>,
    /// The lines for the whole broker, some of which are about access at every listener.
    pub(crate) global: &'a Section,
    pub(crate) lines: &'a SettingLines,
    pub(crate) sources: Vec<String>,
    pub(crate) to_do: Vec<String>,
}

impl AccessReader<'_> {
    /// Reads the access settings of a section. With `is_local_only` mosquitto accepts everybody, whatever `allow_anonymous`
    /// says.
    pub(crate) fn security(&mut self, section: &Section, is_local_only: bool) -> Result<AccessOptions, ImportError> {
        let mut security = AccessOptions::of_nobody(is_local_only);
        if let Some((line, allowed)) = section.flag("allow_anonymous") {
            if is_local_only && !allowed {
                line.differs(
                    "without a listener mosquitto lets everybody in on its own host all the same; so does this",
                );
            } else {
                security.allow_anonymous = allowed;
                line.taken();
            }
            security.anonymous_line = Some(line);
        }
        if let Some(line) = section.get("password_file") {
            let path = self.named(&line, &self.given.passwords, "users");
            security.passwords = Some(path.map_or(Ok(Vec::new()), |path| self.passwords(&path))?);
        }
        if let Some(line) = section.get("acl_file") {
            match self.named(&line, &self.given.acls, "rules") {
                Some(path) => security.acl = Some(self.acl(&path)?),
                None => security.acl_is_missing = true,
            }
        }
        self.close(section, &mut security);
        Ok(security)
    }

    /// Takes away what a plugin, or the ids of clients, decided in a way that rules cannot.
    fn close(&mut self, section: &Section, security: &mut AccessOptions) {
        let plugin = section.lines.iter().chain(&self.global.lines).find(|line| is_deciding_plugin(line)).cloned();
        let prefix = self.global.get("clientid_prefixes");
        security.id_prefix = prefix.as_ref().map(|line| line.value.clone());
        // in the patterns of client ids these stand for any text and for the user
        let odd = prefix.clone().filter(|line| line.value.contains('*') || line.value.contains("%u"));
        if let Some(line) = &prefix {
            line.differs(
                "the clients of users must have such ids; clients without a name are kept out, as their ids prove nothing",
            );
        }
        if let Some(line) = plugin.or(odd) {
            security.is_decided_by_plugin = true;
            let why = format!("{} decided who may do what, which cannot be read from it", line.place());
            if let Some(acl) = security.acl.take() {
                acl.leave_out(&why);
            }
            self.to_do.push(format!(
                "{}: write who may come in and what each may do (its users have no rights, and clients without a name are \
                 kept out, until then)",
                line.place()
            ));
        } else if let Some(line) = prefix.filter(|_| security.allow_anonymous) {
            self.to_do.push(format!("{}: give its clients users, as none comes in without", line.place()));
        } else {
            return;
        }
        if security.allow_anonymous
            && let Some(line) = &security.anonymous_line
        {
            line.revoke("another line decided whom it lets in, and has no equivalent");
        }
        security.allow_anonymous = false;
    }

    /// Adds files from the command line that no configuration names.
    pub(crate) fn add_given(&mut self, security: &mut AccessOptions) -> Result<(), ImportError> {
        let given = self.given;
        if security.passwords.is_none() {
            for path in &given.passwords {
                let entries = self.passwords(path)?;
                security.passwords.get_or_insert_default().extend(entries);
            }
        }
        let is_missing = security.acl_is_missing && !security.is_decided_by_plugin;
        if let (None, false, Some(path)) = (&security.acl, is_missing, given.acls.first()) {
            security.acl = Some(self.acl(path)?);
        }
        Ok(())
    }

    /// The file that a line names: at its path, beside the configuration, or as given on the command line.
    fn named(&mut self, line: &SettingLine, given: &[PathBuf], what: &str) -> Option<PathBuf> {
        let named = line.path()?;
        let found = self.files.find(named).filter(|path| path.is_file()).or_else(|| given.first().cloned());
        match &found {
            Some(_) => line.taken(),
            None => {
                line.not_taken("the file is not here: name it after the configuration on the command line");
                self.to_do.push(format!("add the {what} of {named}, which is not here"));
            }
        }
        found
    }

    fn acl(&mut self, path: &Path) -> Result<Acl, ImportError> {
        self.sources.push(path.display().to_string());
        Acl::read(path, self.lines)
    }

    fn passwords(&mut self, path: &Path) -> Result<Vec<(String, String, Rc<SettingLine>)>, ImportError> {
        let text = read(path).map_err(|source| ImportError::Read { path: path.into(), source })?;
        self.sources.push(path.display().to_string());
        let file: Rc<str> = path.display().to_string().into();
        let mut entries: Vec<(String, String, Rc<SettingLine>)> = Vec::new();
        for (index, raw) in text.lines().enumerate() {
            let raw = raw.trim();
            if raw.is_empty() || raw.starts_with('#') {
                continue;
            }
            let (name, hash) = raw.split_once(':').map_or((raw, ""), |(name, hash)| (name.trim(), hash.trim()));
            let place = LinePlace { file: file.clone(), number: index + 1 };
            let line = self.lines.add(SettingLine::new(place, &format!("{name}:..."), "password", ""));
            if name.is_empty() || name.len() > 1024 || name.contains(char::is_control) {
                line.wrong("the name of the user is not one");
            } else if hash.is_empty() {
                line.not_taken("there is no password, and nobody is let in without one here");
            } else if let Some((_, _, first)) = entries.iter().find(|(other, _, _)| other == name) {
                line.not_needed(format!("{} has the same user and counts", first.place()));
            } else if let Some(hash) = self.hash(hash, &line)? {
                entries.push((name.into(), hash, line));
            }
        }
        Ok(entries)
    }

    /// The hash to write for an entry of a password file.
    fn hash(&self, written: &str, line: &SettingLine) -> Result<Option<String>, ImportError> {
        if hash::is_usable(written) {
            return Ok(Some(written.into()));
        }
        if written.starts_with('$') {
            line.wrong("a hash that is not known; `pigateway user NAME` makes a new one");
            return Ok(None);
        }
        line.differs("the password stood there in plain text, which mosquitto does not accept; it is hashed now");
        Ok(Some((self.options.hash)(written)?))
    }
}

impl AccessOptions {
    /// The settings of a section that says nothing about access.
    pub(crate) fn of_nobody(allow_anonymous: bool) -> AccessOptions {
        AccessOptions { allow_anonymous, ..AccessOptions::default() }
    }

    /// Whether there is a password file that decides who may sign in.
    pub(crate) fn has_passwords(&self) -> bool {
        self.passwords.is_some()
    }

    /// The users with a password, and with `names_certificates` those that only the access control list names.
    pub(crate) fn users(&self, names_certificates: bool) -> Vec<ImportedUser> {
        let mut users = Vec::new();
        for (name, hash, line) in self.passwords.iter().flatten() {
            line.taken();
            users.push(self.user(name, Some(hash.clone())));
        }
        for name in self.acl.iter().flat_map(Acl::users).filter(|_| names_certificates) {
            if !users.iter().any(|user| user.name == name) {
                users.push(self.user(name, None));
            }
        }
        users
    }

    fn user(&self, name: &str, hash: Option<String>) -> ImportedUser {
        ImportedUser { name: name.into(), hash, rules: self.rules(Some(name)), id_prefix: self.id_prefix.clone() }
    }

    /// Whether lines without an equivalent keep clients out.
    pub(crate) fn is_closed(&self) -> bool {
        self.is_decided_by_plugin || self.id_prefix.is_some()
    }

    /// What clients without a user name may do.
    pub(crate) fn anonymous_rules(&self) -> AclRules {
        self.rules(None)
    }

    fn rules(&self, user: Option<&str>) -> AclRules {
        match &self.acl {
            Some(acl) => acl.rules(user),
            None if self.acl_is_missing || self.is_decided_by_plugin => AclRules::default(),
            None => AclRules::everything(),
        }
    }

    /// Sets the fate of lines that apply to no client.
    pub(crate) fn finish(&self, names_certificates: bool) {
        if let Some(acl) = &self.acl {
            acl.finish(self.allow_anonymous, self.has_passwords() || names_certificates || !self.allow_anonymous);
        }
    }
}

/// Whether a line loads a plugin that may decide who comes in or what clients may do.
fn is_deciding_plugin(line: &SettingLine) -> bool {
    let of =
        |path: &str| Path::new(path).file_stem().is_some_and(|name| HARMLESS_PLUGINS.iter().any(|own| name == *own));
    let is_harmless = || line.value.split_whitespace().any(of);
    matches!(line.key.as_str(), "plugin" | "plugin_load" | "plugin_use" | "global_plugin") && !is_harmless()
}

/// Plugins of mosquitto's own that decide nothing.
const HARMLESS_PLUGINS: [&str; 2] = ["mosquitto_persist_sqlite", "mosquitto_message_timestamp"];

pub(super) fn write_users(table: &str, users: &[ImportedUser], text: &mut TomlText) {
    for user in users {
        text.table(table);
        text.key("name", quoted(&user.name));
        if let Some(hash) = &user.hash {
            text.key("password_hash", quoted(hash));
        }
        if let Some(prefix) = &user.id_prefix {
            text.key("client_ids", list(&[format!("{prefix}*")]));
        }
        write_rules(&user.rules, text);
    }
}

/// Writes the rules of one user.
pub(super) fn write_rules(rules: &AclRules, text: &mut TomlText) {
    text.key("publish", list(&rules.publish));
    text.key("subscribe", list(&rules.subscribe));
}

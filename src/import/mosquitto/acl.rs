//! Access control lists: converts mosquitto's `topic`, `pattern` and `user` lines to the rules of users.
//!
//! mosquitto checks in this order: a `topic deny` of the user denies, a `topic` allows, a `pattern deny` denies, a `pattern`
//! allows, and everything else is denied. In pigateway a denial always wins. So a `pattern deny` is left out if it denies
//! nothing that a pattern allows. If it also denies what a `topic` of the user allows, it stays, and the result is narrower
//! than the original.
//!
//! A name that takes the place of `%u` or `%c` may have several levels in mosquitto, and has one here. So the
//! name of a user that has a `/` is written out. Client ids are not known, and a rule with `%c` allows
//! nothing to one that has a `/`.

use std::borrow::Cow;
use std::path::Path;
use std::rc::Rc;

use crate::import::ImportError;
use crate::import::files::read;
use crate::import::line::{LinePlace, SettingLine, SettingLines};
use crate::message::{check_filter, overlap};

/// The clients to which a rule applies.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Subject {
    Anonymous,
    User(String),
    /// All clients, with `%u` and `%c` replaced.
    Everybody,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AclGrant {
    Read,
    Write,
    Both,
    Deny,
}

#[derive(Debug)]
struct AclRule {
    line: Rc<SettingLine>,
    subject: Subject,
    grant: AclGrant,
    topic: String,
}

impl AclRule {
    /// The topic filter for the rules of this user.
    fn filter(&self, user: Option<&str>) -> Cow<'_, str> {
        // mosquitto lets nobody with a wildcard in the name use a pattern, and a name does not open what
        // begins with `$`
        let is_written_out = |name: &&str| {
            name.contains('/')
                && !name.contains(['+', '#', '%'])
                && !(name.starts_with('$') && self.topic.starts_with("%u"))
        };
        match user.filter(is_written_out) {
            Some(name) if self.subject == Subject::Everybody => self.topic.replace("%u", name).into(),
            _ => Cow::Borrowed(&self.topic),
        }
    }
}

/// The contents of one file.
#[derive(Debug, Default)]
pub(super) struct Acl {
    rules: Vec<AclRule>,
    users: Vec<(String, Rc<SettingLine>)>,
}

/// What one client may do, as lists of rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct AclRules {
    pub(crate) publish: Vec<String>,
    pub(crate) subscribe: Vec<String>,
}

impl AclRules {
    /// Everything that mosquitto allows if there is no list. `$SYS` must be named explicitly here.
    pub(crate) fn everything() -> AclRules {
        AclRules { publish: vec!["#".into()], subscribe: vec!["#".into(), "$SYS/#".into()] }
    }
}

impl Acl {
    pub(crate) fn read(path: &Path, lines: &SettingLines) -> Result<Acl, ImportError> {
        let text = read(path).map_err(|source| ImportError::Read { path: path.into(), source })?;
        let file: Rc<str> = path.display().to_string().into();
        let mut acl = Acl::default();
        let mut subject = Subject::Anonymous;
        for (index, raw) in text.lines().enumerate() {
            let raw = raw.trim();
            if raw.is_empty() || raw.starts_with('#') {
                continue;
            }
            let (word, rest) = raw.split_once([' ', '\t']).unwrap_or((raw, ""));
            let place = LinePlace { file: file.clone(), number: index + 1 };
            let line = lines.add(SettingLine::new(place, word, "acl", rest.trim()));
            match word {
                "user" if line.value.is_empty() => line.wrong("the name of the user is missing"),
                "user" => {
                    subject = Subject::User(line.value.clone());
                    acl.users.push((line.value.clone(), line));
                }
                "topic" => acl.add(line, subject.clone()),
                "pattern" => acl.add(line, Subject::Everybody),
                _ => line.wrong("mosquitto ignores it; valid: user, topic, pattern"),
            }
        }
        Ok(acl)
    }

    fn add(&mut self, line: Rc<SettingLine>, subject: Subject) {
        // a single word is the topic, even if it looks like a kind of access
        let (access, topic) = line.value.split_once([' ', '\t']).unwrap_or(("readwrite", &line.value));
        let topic = topic.trim().to_owned();
        let grant = match access {
            "read" => AclGrant::Read,
            "write" => AclGrant::Write,
            "readwrite" => AclGrant::Both,
            "deny" => AclGrant::Deny,
            _ => {
                return line
                    .wrong("mosquitto does not start with it; valid before the topic: read, write, readwrite, deny");
            }
        };
        if let Err(error) = check_filter(&topic) {
            return line.wrong(format!("the topic {error}"));
        }
        if subject != Subject::Everybody && (topic.contains("%u") || topic.contains("%c")) {
            return line.not_taken(
                "after `topic` mosquitto replaces neither %u nor %c, so it matched nothing; with `pattern` it would",
            );
        }
        self.rules.push(AclRule { line, subject, grant, topic });
    }

    /// The users that have rules of their own.
    pub(crate) fn users(&self) -> impl Iterator<Item = &str> {
        self.users.iter().map(|(name, _)| name.as_str())
    }

    /// What a user may do; `None` stands for clients without a user name.
    pub(crate) fn rules(&self, user: Option<&str>) -> AclRules {
        for (_, line) in self.users.iter().filter(|(name, _)| Some(name.as_str()) == user) {
            line.taken();
        }
        AclRules { publish: self.list(user, AclGrant::Write), subscribe: self.list(user, AclGrant::Read) }
    }

    fn list(&self, user: Option<&str>, wanted: AclGrant) -> Vec<String> {
        let is_own = |rule: &&AclRule| match (&rule.subject, user) {
            (Subject::Anonymous, None) => true,
            (Subject::User(name), Some(user)) => name == user,
            _ => false,
        };
        // a pattern with %u applies only to clients with a user name
        let is_pattern =
            |rule: &&AclRule| rule.subject == Subject::Everybody && (user.is_some() || !rule.topic.contains("%u"));
        let allows = |rule: &&AclRule| rule.grant == wanted || rule.grant == AclGrant::Both;
        let denies = |rule: &&AclRule| rule.grant == AclGrant::Deny;
        let own: Vec<&AclRule> = self.rules.iter().filter(is_own).collect();
        let patterns: Vec<&AclRule> = self.rules.iter().filter(is_pattern).collect();
        let mut list = Vec::new();
        let mut push = |text: String| {
            if !list.contains(&text) {
                list.push(text);
            }
        };
        for rule in own.iter().chain(&patterns).filter(|rule| allows(rule)) {
            let filter = rule.filter(user);
            if wanted == AclGrant::Write && is_the_brokers(&filter) {
                rule.line.not_taken("nobody publishes on the broker's own topics");
            } else if filter.starts_with('!') {
                rule.line
                    .not_taken("a rule that begins with `!` is a denial here, so none can allow such topics alone");
            } else {
                if rule.subject == Subject::Everybody && filter.contains("%c") {
                    rule.line.differs("it allows nothing here to a client whose id has a `/`: an id is one level");
                } else if rule.subject == Subject::Everybody && filter.contains("%u") && user.is_some_and(has_levels) {
                    rule.line
                        .differs("it allows nothing here to a user whose name has a `/` and a `%` or begins with `$`");
                }
                push(filter.into_owned());
                rule.line.taken();
            }
        }
        for rule in own.iter().filter(|rule| denies(rule)) {
            push(format!("!{}", rule.topic));
            rule.line.taken();
        }
        for rule in patterns.iter().filter(|rule| denies(rule)) {
            let filter = rule.filter(user);
            let touches = |other: &&&AclRule| allows(other) && overlap(&shape(&other.filter(user)), &shape(&filter));
            if patterns.iter().any(|other| touches(&other)) {
                push(format!("!{filter}"));
                if own.iter().any(|other| touches(&other)) {
                    rule.line.differs("a denial always wins here, also over what a `topic` line of a user allows");
                }
                rule.line.taken();
            }
        }
        list
    }

    /// Sets the fate of all lines, if none of them is used.
    pub(crate) fn leave_out(&self, why: &str) {
        let users = self.users.iter().map(|(_, line)| line);
        users.chain(self.rules.iter().map(|rule| &rule.line)).for_each(|line| line.not_taken(why));
    }

    /// Sets the fate of lines that apply to no client.
    pub(crate) fn finish(&self, lets_anonymous_in: bool, users_are_checked: bool) {
        for (_, line) in &self.users {
            if users_are_checked {
                line.not_needed("no user of this name can log in");
            } else {
                line.not_taken(CLAIMED);
            }
        }
        for rule in &self.rules {
            match &rule.subject {
                Subject::Anonymous if !lets_anonymous_in => {
                    rule.line.not_needed("no client without a user name is let in");
                }
                Subject::User(_) if users_are_checked => rule.line.not_needed("no user of this name can log in"),
                Subject::User(_) => rule.line.not_taken(CLAIMED),
                _ => rule.line.not_needed("it takes nothing away that is allowed, or concerns nobody"),
            }
        }
    }
}

const CLAIMED: &str = "without a password file anybody could claim this name; give it a password with `pigateway user`";

/// A topic filter that matches at least what a pattern matches in mosquitto. A client id may have several
/// levels there, and a user name that has them is written out.
fn shape(pattern: &str) -> String {
    let mut levels = Vec::new();
    for level in pattern.split('/') {
        if level.contains("%c") {
            levels.push("#");
            break;
        }
        levels.push(if level.contains("%u") { "+" } else { level });
    }
    levels.join("/")
}

fn has_levels(name: &str) -> bool {
    name.contains('/') && !name.contains(['+', '#'])
}

fn is_the_brokers(topic: &str) -> bool {
    ["$SYS", "$share", "$CONTROL"].iter().any(|own| topic.split('/').next() == Some(own))
}

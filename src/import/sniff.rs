//! Recognises the kind of a file by its contents.

use super::mosquitto_keys as keys;

/// The kinds of files that are recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ForeignKind {
    /// A configuration of pigateway.
    Pigateway,
    MosquittoConf,
    /// A password file of mosquitto.
    MosquittoPasswords,
    /// An access control list of mosquitto.
    MosquittoAcl,
    /// A YAML file of mqtt-io or of its predecessor pi-mqtt-gpio.
    MqttIo,
}

impl ForeignKind {
    /// The name of the kind in a sentence.
    pub(crate) fn name(self) -> &'static str {
        match self {
            ForeignKind::Pigateway => "a configuration of pigateway",
            ForeignKind::MosquittoConf => "a configuration of mosquitto",
            ForeignKind::MosquittoPasswords => "a password file of mosquitto",
            ForeignKind::MosquittoAcl => "an access control list of mosquitto",
            ForeignKind::MqttIo => "a configuration of mqtt-io",
        }
    }

    /// The `pigateway import` command that reads it.
    pub(crate) fn import(self) -> Option<&'static str> {
        match self {
            ForeignKind::Pigateway => None,
            ForeignKind::MosquittoConf | ForeignKind::MosquittoPasswords | ForeignKind::MosquittoAcl => {
                Some("mosquitto")
            }
            ForeignKind::MqttIo => Some("mqtt-io"),
        }
    }
}

/// The kind of a text, if it clearly is one of the known kinds.
pub(crate) fn kind_of(text: &str) -> Option<ForeignKind> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let lines: Vec<&str> = text.lines().map(str::trim_end).filter(|line| !is_comment(line)).collect();
    if lines.is_empty() {
        return None;
    }
    let all_but_few = |is: fn(&str) -> bool| lines.iter().filter(|line| is(line)).count() * 5 >= lines.len() * 4;
    let top = |name: &str| {
        lines.iter().any(|line| line.strip_prefix(name).is_some_and(|rest| rest.trim_start().starts_with(':')))
    };
    let mqtt_io = ["digital_inputs", "digital_outputs", "gpio_modules", "sensor_inputs", "sensor_modules"];
    if top("mqtt") && mqtt_io.iter().any(|name| top(name)) {
        return Some(ForeignKind::MqttIo);
    }
    if lines.iter().any(|line| is_toml(line)) {
        return Some(ForeignKind::Pigateway);
    }
    if all_but_few(is_password) {
        return Some(ForeignKind::MosquittoPasswords);
    }
    let has_acl = lines.iter().any(|line| is_acl(line));
    if has_acl && lines.iter().all(|line| is_acl(line) || first_word(line) == "user") {
        return Some(ForeignKind::MosquittoAcl);
    }
    all_but_few(|line| keys::find(first_word(line)).is_some()).then_some(ForeignKind::MosquittoConf)
}

fn is_comment(line: &str) -> bool {
    let line = line.trim();
    line.is_empty() || line.starts_with('#')
}

fn first_word(line: &str) -> &str {
    line.split_whitespace().next().unwrap_or_default()
}

/// Whether a line is a table header, or a key with a value after `=`.
fn is_toml(line: &str) -> bool {
    let line = line.trim();
    let is_name =
        |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "_.-\"".contains(c));
    if let Some(header) = line.strip_prefix('[') {
        return header.trim_start_matches('[').split(']').next().is_some_and(is_name);
    }
    line.split_once('=').is_some_and(|(name, _)| is_name(name.trim()))
}

/// Whether a line is `name:hash`, or `name:password` without spaces.
fn is_password(line: &str) -> bool {
    let is_hash = |hash: &str| hash.starts_with("$6$") || hash.starts_with("$7$") || hash.starts_with("$argon2id$");
    line.split_once(':').is_some_and(|(name, hash)| {
        !name.is_empty() && !hash.is_empty() && (is_hash(hash.trim()) || !line.contains([' ', '\t']))
    })
}

/// Whether a line occurs only in access control lists, such as `topic read ...` or `pattern ...`.
fn is_acl(line: &str) -> bool {
    let mut words = line.split_whitespace();
    matches!(
        (words.next(), words.next(), words.next()),
        (Some("pattern"), Some(_), _)
            | (Some("topic"), Some("read" | "write" | "readwrite" | "deny"), Some(_))
            | (Some("topic"), Some(_), None)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_told_apart() {
        for (text, kind) in [
            ("listener 1883\nallow_anonymous true\n", Some(ForeignKind::MosquittoConf)),
            ("\u{feff}# x\r\npersistence true\r\n", Some(ForeignKind::MosquittoConf)),
            ("connection a\naddress h\ntopic # both 2 \"\" remote/\n", Some(ForeignKind::MosquittoConf)),
            ("listener 1883\nno_such_key 1\n", None),
            ("user a\ntopic read x/#\npattern write y/%u\n", Some(ForeignKind::MosquittoAcl)),
            ("topic x\n", Some(ForeignKind::MosquittoAcl)),
            ("a:$7$101$c2FsdA==$aGFzaA==\nb:$6$c2FsdA==$aGFzaA==\n", Some(ForeignKind::MosquittoPasswords)),
            ("alice:secret\nbob:secret\n", Some(ForeignKind::MosquittoPasswords)),
            ("[broker]\nmax_connections = 3\n", Some(ForeignKind::Pigateway)),
            ("[[sensor]]\n", Some(ForeignKind::Pigateway)),
            ("mqtt:\n  host: h\ndigital_inputs:\n  - name: a\n    pin: 3\n", Some(ForeignKind::MqttIo)),
            ("", None),
            ("hello world\n", None),
        ] {
            assert_eq!(kind_of(text), kind, "{text}");
        }
    }
}

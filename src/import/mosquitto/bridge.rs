//! Bridges: converts each `connection` to an `[[upstream]]`.
//!
//! An upstream that cannot be protected as before is left out rather than reached with less protection.

use std::rc::Rc;

use super::document::Section;
use crate::import::address::address;
use crate::import::files::Files;
use crate::import::line::SettingLine;
use crate::import::mosquitto_keys as keys;
use crate::import::text::{TomlText, free_name, list, quoted};
use crate::import::{Options, SecretFile};
use crate::message::{check_filter, check_topic, overlap};

/// What the bridges add to the configuration besides their tables.
#[derive(Debug, Default)]
pub(super) struct Bridges {
    pub(crate) text: TomlText,
    pub(crate) secrets: Vec<SecretFile>,
    pub(crate) to_do: Vec<String>,
    names: Vec<String>,
    /// The name of each upstream, with its client id and its addresses without their schemes.
    taken: Vec<(String, String, Vec<String>)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    Out,
    In,
    Both,
}

#[derive(Debug)]
struct Topic {
    direction: Direction,
    qos: u8,
    filter: String,
    local: String,
    remote: String,
}

impl Bridges {
    pub(crate) fn read(sections: &[Section], files: &Files, options: &Options) -> Bridges {
        let mut bridges = Bridges::default();
        for section in sections {
            let mut text = TomlText::default();
            match bridges.upstream((section, sections), files, options, &mut text) {
                Ok(()) => bridges.text.append(&text),
                Err(why) => bridges.leave_out(section, &why),
            }
        }
        bridges
    }

    fn leave_out(&mut self, section: &Section, why: &str) {
        let place = section.head.iter().map(|line| line.place().to_string()).next().unwrap_or_default();
        self.to_do.push(format!("{place}: this bridge is left out: {why}"));
        section.head.iter().for_each(|line| line.revoke(why));
        section.everything().for_each(|line| line.revoke("its bridge is left out"));
        let mut text = TomlText::default();
        text.remarks(section.everything());
        self.text.append(&text);
    }

    fn upstream(
        &mut self,
        (section, all): (&Section, &[Section]),
        files: &Files,
        options: &Options,
        text: &mut TomlText,
    ) -> Result<(), String> {
        let Some(head) = &section.head else { return Err("it has no name".into()) };
        if let Some(line) = section.get("bridge_psk").or_else(|| section.get("bridge_identity")) {
            line.not_taken("TLS with pre-shared keys is not spoken: use certificates");
            return Err("it is protected by a pre-shared key, which is not spoken here".into());
        }
        if section.flag("bridge_require_ocsp").is_some_and(|(_, is_set)| is_set) {
            return Err(
                "the upstream had to prove that its certificate is not revoked, which is not asked for here".into()
            );
        }
        if section.has("topic") && topics(section).is_empty() || !section.has("topic") {
            return Err("it has no topics, and mosquitto does not start without".into());
        }
        let name = free_name(head.word(), &self.names);
        if name == head.word() {
            head.taken()
        } else {
            head.differs("a name has letters, digits, '-', '_' and '.'")
        }
        self.names.push(name.clone());
        let has_tls = has_tls(section);
        let addresses = addresses(section, has_tls)?;
        let client_id = client_id(section, options)?;
        self.check_twins(&name, &client_id, &addresses)?;
        text.table("[[upstream]]");
        text.key("name", quoted(&name));
        text.key("addresses", list(&addresses));
        let topics = topics(section);
        // what one bridge sends, another one at the same broker may bring back
        let there: Vec<Topic> =
            all.iter().filter(|other| share_address(section, other)).flat_map(self::topics).collect();
        protocol(section, &there, text);
        write_client_id(section, &client_id, text);
        self.login(section, &name, options, text);
        session(section, text);
        if has_tls {
            text.key("tls", self.tls(section, files));
        } else {
            for line in section.lines.iter().filter(|line| is_about_tls(&line.key)) {
                line.not_needed("without bridge_cafile or bridge_capath the bridge has no TLS, in mosquitto neither");
            }
            if addresses.iter().any(|address| address.ends_with(":8883")) {
                self.to_do.push(format!("upstream {name}: port 8883 is usually for TLS, and the bridge has none"));
            }
        }
        status(section, text);
        behaviour(section, addresses.len());
        section.lines.iter().for_each(|line| line.taken());
        text.remarks(section.everything());
        for topic in &topics {
            write_topic(topic, text);
        }
        Ok(())
    }

    /// Fails for a second bridge with one client id at one broker: they would disconnect each other for ever.
    fn check_twins(&mut self, name: &str, id: &str, addresses: &[String]) -> Result<(), String> {
        let place = |address: &String| address.split_once("://").map_or("", |(_, place)| place).to_lowercase();
        let places: Vec<String> = addresses.iter().map(place).collect();
        let is_twin = |(_, other_id, others): &&(String, String, Vec<String>)| {
            other_id == id && others.iter().any(|other| places.contains(other))
        };
        if let Some((other, _, _)) = self.taken.iter().find(is_twin) {
            return Err(format!(
                "{other} has its client id at the same address, and the two would disconnect each other: give one an id of its own"
            ));
        }
        self.taken.push((name.into(), id.into(), places));
        Ok(())
    }

    fn login(&mut self, section: &Section, name: &str, options: &Options, text: &mut TomlText) {
        let username = section.get("remote_username");
        if let Some(line) = &username {
            text.key("username", quoted(&line.value));
        }
        let Some(line) = section.get("remote_password") else { return };
        if username.is_none() {
            line.not_taken("there is no remote_username, and mosquitto sends no password without");
            return;
        }
        let file = format!("{name}.password");
        text.key("password_file", quoted(&file));
        if !options.keeps_secrets {
            let place = line.place();
            self.to_do.push(format!("write the password of {place} into the file {file}, beside the configuration"));
            line.differs("a password stands in a file of its own, which `--output FILE` writes too");
        }
        self.secrets.push(SecretFile { name: file, password: line.value.clone() });
    }

    fn tls(&mut self, section: &Section, files: &Files) -> String {
        let mut fields = Vec::new();
        let mut file = |line: &SettingLine, field: &str| {
            let Some(path) = line.path() else { return };
            let (path, is_there) = files.locate(path);
            if !is_there {
                self.to_do.push(format!("{path} is not here; it must be before the gateway starts"));
            }
            fields.push(format!("{field} = {}", quoted(&path)));
        };
        if let Some(line) = section.get("bridge_cafile") {
            file(&line, "ca");
        }
        match (section.get("bridge_certfile"), section.get("bridge_keyfile")) {
            (Some(cert), Some(key)) => {
                file(&cert, "cert");
                file(&key, "key");
            }
            (cert, key) => {
                for line in cert.iter().chain(&key) {
                    line.not_taken("certificate and key belong together, and one is missing");
                }
            }
        }
        if let Some(line) = section.get("bridge_capath") {
            if section.has("bridge_cafile") {
                line.not_taken("tls.ca is one file: add the certificates of the directory to it");
            } else if line.value.trim_end_matches('/') == "/etc/ssl/certs" {
                line.taken();
            } else {
                line.not_taken("the system's certificates are trusted, not a directory: put its certificates into one file, tls.ca");
                self.to_do.push(format!("put the certificates of {} into one file and name it as tls.ca", line.value));
            }
        }
        if let Some((line, true)) = section.flag("bridge_insecure") {
            line.not_taken("the name in the upstream's certificate is always checked");
            self.to_do.push(
                "the upstream's certificate must have the name that its address has: set tls.server_name if it has another \
                 one, or tls.fingerprint to accept this certificate alone"
                    .into(),
            );
        }
        if let Some(line) = section.get("bridge_alpn") {
            fields.push(format!("alpn = {}", list(std::slice::from_ref(&line.value))));
        }
        if let Some(line) = section.get("bridge_tls_version") {
            match line.word() {
                "tlsv1.3" | "tlsv1.2" => line.not_needed("the newest that both sides speak is used"),
                _ => line.differs("TLS before 1.2 is not spoken"),
            }
        }
        if fields.is_empty() { "{}".into() } else { format!("{{ {} }}", fields.join(", ")) }
    }
}

/// The client id, if it and the user name can be sent.
fn client_id(section: &Section, options: &Options) -> Result<String, String> {
    let fits = |text: &str, most: usize| (1..=most).contains(&text.len()) && !text.contains(char::is_control);
    let most = usize::from(u16::MAX);
    for (key, most) in [("remote_clientid", most), ("remote_username", most), ("bridge_alpn", 255)] {
        if let Some(line) = section.get(key).filter(|line| !fits(&line.value, most)) {
            line.wrong(format!("valid: up to {most} bytes without control characters"));
            return Err(format!("its {key} cannot be sent"));
        }
    }
    let head = section.head.as_ref().map(|line| line.word().to_owned()).unwrap_or_default();
    let usual = || format!("{}.{head}", options.host_name);
    Ok(section.get("remote_clientid").map_or_else(usual, |line| line.value.clone()))
}

fn write_client_id(section: &Section, id: &str, text: &mut TomlText) {
    if section.has("remote_clientid") {
        text.key("client_id", quoted(id));
    } else {
        text.key_with("client_id", quoted(id), "what mosquitto makes of the names of host and connection");
    }
}

fn has_tls(section: &Section) -> bool {
    let from_system = section.flag("bridge_tls_use_os_certs").is_some_and(|(_, is_set)| is_set);
    from_system || section.has("bridge_cafile") || section.has("bridge_capath")
}

fn is_about_tls(key: &str) -> bool {
    ["bridge_certfile", "bridge_keyfile", "bridge_alpn", "bridge_insecure", "bridge_tls_version"].contains(&key)
}

fn share_address(a: &Section, b: &Section) -> bool {
    let places = |section: &Section| -> Vec<String> {
        let line = section.get("address");
        let words = line.iter().flat_map(|line| line.value.split_whitespace());
        words.filter_map(|word| address(&word.to_lowercase(), "mqtt")).collect()
    };
    let of_b = places(b);
    places(a).iter().any(|place| of_b.contains(place))
}

fn addresses(section: &Section, has_tls: bool) -> Result<Vec<String>, String> {
    let Some(line) = section.get("address") else {
        return Err("it has no address, and mosquitto does not start without".into());
    };
    let scheme = if has_tls { "mqtts" } else { "mqtt" };
    let words = line.value.split_whitespace().take_while(|word| !word.starts_with('#'));
    let addresses: Vec<String> = words.filter_map(|word| address(word, scheme)).collect();
    if addresses.is_empty() {
        line.wrong("valid: HOST:PORT");
        return Err("its address is not one".into());
    }
    Ok(addresses)
}

fn protocol(section: &Section, topics: &[Topic], text: &mut TomlText) {
    let Some(line) = section.get("bridge_protocol_version") else { return };
    match line.word() {
        "mqttv50" => text.key("protocol", 5),
        // with 3.1.1 an upstream returns what it was sent, so rules for both directions need MQTT 5
        "mqttv311" | "mqttv31" if loops(topics) => {
            line.differs("topics that go both ways need MQTT 5 at the upstream, so that it sends nothing back");
        }
        "mqttv311" => text.key("protocol", 4),
        "mqttv31" => {
            line.differs("MQTT 3.1.1 is spoken instead of 3.1");
            text.key("protocol", 4);
        }
        _ => line.wrong("valid: mqttv50, mqttv311, mqttv31"),
    }
}

/// Whether a message that goes out could come back and go out again.
fn loops(topics: &[Topic]) -> bool {
    let side = |prefix: &str, topic: &Topic| format!("{prefix}{}", topic.filter);
    let goes = |direction: Direction| {
        topics.iter().filter(move |topic| topic.direction == direction || topic.direction == Direction::Both)
    };
    goes(Direction::Out).any(|out| {
        goes(Direction::In).any(|inbound| {
            overlap(&side(&out.remote, out), &side(&inbound.remote, inbound))
                && overlap(&side(&out.local, out), &side(&inbound.local, inbound))
        })
    })
}

fn session(section: &Section, text: &mut TomlText) {
    let clean = section.flag("cleansession");
    if let Some((line, clean)) = &clean {
        text.key("clean_session", clean);
        line.taken();
    }
    if let Some((line, local)) = section.flag("local_cleansession") {
        if local == clean.is_some_and(|(_, clean)| clean) {
            line.not_needed("it is as cleansession says");
        } else if local {
            line.not_taken("what is to go up is kept while the upstream is away; QoS 0 is not");
        } else {
            line.not_needed("what is to go up is kept while the upstream is away");
        }
    }
    if let Some(line) = section.get("bridge_session_expiry_interval")
        && let Some(seconds) = line.number()
    {
        let most = 49_710 * 24 * 60 * 60;
        text.key("session_expiry", quoted(&format!("{} s", seconds.clamp(0, most))));
        line.taken();
    }
    if let Some(line) = section.get("keepalive_interval")
        && let Some(seconds) = line.number()
    {
        if seconds < 5 {
            line.differs("5 s, as in mosquitto");
        }
        line.taken();
        text.key("keep_alive", quoted(&format!("{} s", seconds.clamp(5, 65_535))));
    }
}

/// Converts `status_topic`: mosquitto's notifications, as far as they go to the upstream.
fn status(section: &Section, text: &mut TomlText) {
    let notifications = section.flag("notifications");
    let local_only = section.flag("notifications_local_only");
    let is_off = notifications.as_ref().is_some_and(|(_, on)| !on);
    let is_local = local_only.as_ref().is_some_and(|(_, local)| *local);
    if let Some((line, on)) = &notifications {
        if *on && !section.has("notification_topic") {
            line.not_taken("the gateway does not publish below $SYS: name a topic as status_topic");
        } else {
            line.taken();
        }
    }
    if let Some((line, local)) = &local_only {
        if *local {
            line.not_taken(
                "the page, /api/v1/upstreams and the log show the state of an upstream; it is not published here",
            );
        } else {
            line.not_needed("it is so here");
        }
    }
    let Some(line) = section.get("notification_topic") else { return };
    if is_off {
        line.not_needed("notifications are off");
    } else if is_local {
        line.not_taken("the state of an upstream is not published here");
    } else if line.value.starts_with('$') || check_topic(&line.value).is_err() {
        line.not_taken("the gateway does not publish on this topic: name another one as status_topic");
    } else {
        text.key("status_topic", quoted(&line.value));
        line.differs("\"online\" and \"offline\" instead of 1 and 0, at the upstream only");
    }
}

/// Sets the fate of lines about behaviour that an upstream has anyway.
fn behaviour(section: &Section, addresses: usize) {
    if let Some((line, round_robin)) = section.flag("round_robin") {
        if round_robin || addresses < 2 {
            line.taken();
        } else {
            line.differs("an address that works is kept until it fails; the first is then tried again");
        }
    }
    if let Some(line) = section.get("start_type") {
        match line.word() {
            "automatic" => line.not_needed("it is so here"),
            "lazy" | "once" => line.not_taken("an upstream is always connected, and again when the connection ends"),
            _ => line.wrong("valid: automatic, lazy, once"),
        }
    }
    if let Some(line) = section.get("restart_timeout") {
        line.not_needed(keys::RETRY);
    }
    if let Some((line, kept)) = section.flag("bridge_outgoing_retain") {
        if kept { line.not_needed("it is so here") } else { line.not_taken("messages go up with their retain flag") }
    }
}

/// The `topic` lines that are valid.
fn topics(section: &Section) -> Vec<Topic> {
    section.all("topic").filter_map(topic).collect()
}

fn topic(line: &Rc<SettingLine>) -> Option<Topic> {
    let mut words = line.value.split_whitespace();
    let empty = |word: &str| word == "\"\"";
    let filter = words.next().filter(|word| !empty(word)).unwrap_or_default().to_owned();
    // a word that begins with '#' ends the line, unless it is the filter
    let mut words = words.take_while(|word| !word.starts_with('#'));
    let direction = match words.next().map(str::to_lowercase).as_deref() {
        None | Some("out") => Direction::Out,
        Some("in") => Direction::In,
        Some("both") => Direction::Both,
        Some(_) => {
            line.wrong("valid after the pattern: out, in, both");
            return None;
        }
    };
    let qos = match words.next().map(str::parse::<u8>) {
        None => 0,
        Some(Ok(qos @ 0..=2)) => qos,
        Some(_) => {
            line.wrong("valid after the direction: 0, 1, 2");
            return None;
        }
    };
    let mut prefix = || words.next().filter(|word| !empty(word)).unwrap_or_default().to_owned();
    let topic = Topic { direction, qos, filter, local: prefix(), remote: prefix() };
    if let Some(wrong) = wrong_topic(&topic) {
        line.wrong(wrong);
        return None;
    }
    Some(topic)
}

fn wrong_topic(topic: &Topic) -> Option<String> {
    if topic.filter.is_empty() && (topic.local.is_empty() || topic.remote.is_empty()) {
        return Some("an empty pattern maps one topic: it needs both prefixes".into());
    }
    for prefix in [&topic.local, &topic.remote] {
        if !prefix.is_empty()
            && let Err(error) = check_topic(prefix)
        {
            return Some(format!("the prefix {prefix:?} {error}"));
        }
        if let Err(error) = check_filter(&format!("{prefix}{}", topic.filter)) {
            return Some(format!("the topic \"{prefix}{}\" {error}", topic.filter));
        }
    }
    None
}

fn write_topic(topic: &Topic, text: &mut TomlText) {
    text.table(match topic.direction {
        Direction::Out => "[[upstream.out]]",
        Direction::In => "[[upstream.in]]",
        Direction::Both => "[[upstream.both]]",
    });
    text.key("topic_filter", quoted(&topic.filter));
    for (name, prefix) in [("local_prefix", &topic.local), ("remote_prefix", &topic.remote)] {
        if !prefix.is_empty() {
            text.key(name, quoted(prefix));
        }
    }
    text.key("qos", topic.qos);
}

//! Converts a configuration of mqtt-io or of its predecessor pi-mqtt-gpio: digital inputs at the Pi's own pins become
//! sensors, and the broker that they were published to becomes an upstream, unless it is this host.

mod yaml;

use std::path::Path;

use self::yaml::{YamlNode, parse};
use super::address::address;
use super::files::{Files, read};
use super::line::SettingLines;
use super::text::{TomlText, free_name, list, quoted};
use super::{ImportError, Imported, Options, SecretFile, Summary, head};
use crate::message::check_topic;

/// The modules of mqtt-io that read the Pi's own pins.
const OWN_PINS: [&str; 3] = ["raspberrypi", "gpiod", "gpiozero"];

/// Makes a configuration from this file.
pub fn import(path: &Path, options: &Options) -> Result<Imported, ImportError> {
    let text = read(path).map_err(|source| ImportError::Read { path: path.into(), source })?;
    let lines = SettingLines::default();
    let root = parse(path, &text, &lines)?;
    if root.get("mqtt").is_none() && root.items("digital_inputs").is_empty() {
        return Err(ImportError::NotThat { path: path.into(), expected: "a configuration of mqtt-io" });
    }
    let mut import = Import {
        options,
        files: Files::new(path, &[]),
        text: TomlText::default(),
        secrets: Vec::new(),
        to_do: Vec::new(),
    };
    let prefix = root
        .get("mqtt")
        .and_then(|mqtt| mqtt.text("topic_prefix"))
        .unwrap_or_default()
        .trim_end_matches('/')
        .to_owned();
    import.sensors(&root, &prefix);
    import.upstream(&root, &prefix);
    import.rest(&root);
    let Import { text, secrets, to_do, .. } = import;
    let summary = Summary::of(&lines, to_do);
    let text = head("mqtt-io", &[path.display().to_string()], &summary) + text.as_str();
    Ok(Imported { text, secrets, summary })
}

struct Import<'a> {
    options: &'a Options<'a>,
    files: Files,
    text: TomlText,
    secrets: Vec<SecretFile>,
    to_do: Vec<String>,
}

/// A text value, if a CONNECT packet can carry it.
fn sayable<'a>(mqtt: &'a YamlNode, key: &str) -> Option<&'a str> {
    let text = mqtt.text(key)?;
    if text.len() <= usize::from(u16::MAX) && !text.contains(char::is_control) {
        return Some(text);
    }
    mqtt.line(key).into_iter().for_each(|line| line.wrong("valid: up to 65535 bytes without control characters"));
    None
}

impl Import<'_> {
    fn sensors(&mut self, root: &YamlNode, prefix: &str) {
        let mut names = Vec::new();
        let mut topics = Vec::new();
        let mut made = Vec::new();
        for input in root.items("digital_inputs") {
            let mut text = TomlText::default();
            let result = sensor(input, root, prefix, &mut names, &mut topics, &mut text);
            made.push((input, result.map(|()| text)));
        }
        // a line that several inputs share is taken over if one of them takes it
        for (input, result) in made {
            match result {
                Ok(text) => self.text.append(&text),
                Err(why) => input.lines().iter().for_each(|line| line.not_taken(&*why)),
            }
            for line in input.lines() {
                line.not_needed("it is no setting of a digital input that has a meaning here");
            }
            self.text.remarks(&input.lines());
        }
    }

    fn upstream(&mut self, root: &YamlNode, prefix: &str) {
        let Some(mqtt) = root.get("mqtt") else { return };
        let host = mqtt.text("host").unwrap_or("localhost");
        let host = host.trim_start_matches('[').trim_end_matches(']');
        let is_here = match host.parse::<std::net::IpAddr>() {
            Ok(ip) => ip.to_canonical().is_loopback(),
            Err(_) => host.strip_suffix('.').unwrap_or(host).eq_ignore_ascii_case("localhost"),
        };
        if let Some(line) = mqtt.line("topic_prefix") {
            line.taken();
        }
        if is_here {
            for line in mqtt.lines() {
                line.not_needed("the broker was on this host, and is this gateway now");
            }
        } else {
            self.table(mqtt, host, prefix);
        }
        self.text.remarks(&mqtt.lines());
    }

    fn table(&mut self, mqtt: &YamlNode, host: &str, prefix: &str) {
        let tls = mqtt.get("tls").filter(|tls| tls.is_set("enabled"));
        let scheme = if tls.is_some() { "mqtts" } else { "mqtt" };
        let port = mqtt.text("port").unwrap_or("1883");
        // without brackets, text after the last colon that is no port would count as the end of an IPv6 address
        let host = if host.contains(':') { format!("[{host}]") } else { host.to_owned() };
        let Some(address) = address(&format!("{host}:{port}"), scheme) else {
            for key in ["host", "port"] {
                mqtt.line(key)
                    .into_iter()
                    .for_each(|line| line.wrong("valid: the name or address of a host, and a port"));
            }
            for line in mqtt.lines() {
                line.not_taken("where its broker is cannot be read");
            }
            return;
        };
        self.text.table("[[upstream]]");
        self.text.key("name", quoted("mqtt-io"));
        self.text.key("addresses", list(&[address]));
        if let Some(id) = sayable(mqtt, "client_id") {
            self.text.key("client_id", quoted(id));
        }
        if let Some(user) = sayable(mqtt, "user") {
            self.text.key("username", quoted(user));
            self.password(mqtt);
        }
        if mqtt.given("clean_session").is_some() {
            self.text.key("clean_session", mqtt.is_set("clean_session"));
        }
        if let Some(seconds) = mqtt.text("keepalive").and_then(|text| text.parse::<u64>().ok()) {
            self.text.key("keep_alive", quoted(&format!("{} s", seconds.clamp(5, 65_535))));
        }
        if let Some(tls) = tls {
            self.tls(tls);
        }
        for key in ["host", "port", "client_id", "user", "password", "clean_session", "keepalive"] {
            mqtt.line(key).into_iter().for_each(|line| line.taken());
        }
        self.status(mqtt, prefix);
        if let Some(node) = mqtt.get("ha_discovery") {
            let why = "[home_assistant] enabled = true tells Home Assistant of all sensors";
            node.lines().iter().for_each(|line| line.not_taken(why));
        }
        for line in mqtt.lines() {
            match line.key.as_str() {
                "protocol" => line.not_needed("MQTT 5 is spoken where the upstream can, 3.1.1 elsewhere"),
                "reconnect_delay" | "reconnect_count" => {
                    line.not_needed("an upstream is tried again for ever, after a pause that grows")
                }
                "client_module" => line.not_needed("there is one client"),
                _ => line.not_taken("it has no equivalent"),
            }
        }
        self.text.table("[[upstream.out]]");
        self.text.key("topic_filter", quoted("#"));
        let topics = if prefix.is_empty() { "input/".to_owned() } else { format!("{prefix}/input/") };
        self.text.key("local_prefix", quoted(&topics));
        self.text.key("remote_prefix", quoted(&topics));
        self.text.key("qos", 1);
    }

    fn password(&mut self, mqtt: &YamlNode) {
        let Some(line) = mqtt.given("password") else { return };
        let file = "mqtt-io.password".to_owned();
        self.text.key("password_file", quoted(&file));
        if !self.options.keeps_secrets {
            let place = line.place();
            self.to_do.push(format!("write the password of {place} into the file {file}, beside the configuration"));
            line.differs("a password stands in a file of its own, which `--output FILE` writes too");
        }
        self.secrets.push(SecretFile { name: file, password: line.value.clone() });
    }

    fn tls(&mut self, tls: &YamlNode) {
        let mut fields = Vec::new();
        for (key, field) in [("ca_certs", "ca"), ("certfile", "cert"), ("keyfile", "key")] {
            tls.line(key).filter(|line| line.value.is_empty()).into_iter().for_each(|line| line.taken());
            let Some(line) = tls.given(key) else { continue };
            let (path, is_there) = self.files.locate(&line.value);
            if !is_there {
                self.to_do.push(format!("{path} is not here; it must be before the gateway starts"));
            }
            fields.push(format!("{field} = {}", quoted(&path)));
            line.taken();
        }
        tls.line("enabled").into_iter().for_each(|line| line.taken());
        if tls.is_set("insecure") || tls.text("cert_reqs").is_some_and(|text| text != "CERT_REQUIRED") {
            self.to_do.push(
                "the upstream's certificate must be valid for its name: set tls.server_name if that is another one, or \
                 tls.fingerprint to accept this certificate alone"
                    .into(),
            );
        }
        for line in tls.lines() {
            match line.key.as_str() {
                "insecure" | "cert_reqs" => line.not_taken("the upstream's certificate is always checked"),
                _ => line.not_needed("the newest TLS that both sides speak is used, with suites that are strong today"),
            }
        }
        self.text.key("tls", if fields.is_empty() { "{}".into() } else { format!("{{ {} }}", fields.join(", ")) });
    }

    fn status(&mut self, mqtt: &YamlNode, prefix: &str) {
        let topic = mqtt.text("status_topic").unwrap_or("status");
        let topic = if prefix.is_empty() { topic.to_owned() } else { format!("{prefix}/{topic}") };
        if check_topic(&topic).is_ok() && !topic.starts_with('$') {
            self.text.key_with(
                "status_topic",
                quoted(&topic),
                "\"online\" and \"offline\"; mqtt-io said running, stopped and dead",
            );
            mqtt.line("status_topic").into_iter().for_each(|line| line.taken());
        }
        for key in ["status_payload_running", "status_payload_stopped", "status_payload_dead"] {
            mqtt.line(key).into_iter().for_each(|line| line.not_taken("the words are \"online\" and \"offline\""));
        }
    }

    /// Sets the fate of everything that is no digital input.
    fn rest(&mut self, root: &YamlNode) {
        let YamlNode::Map(entries) = root else { return };
        for module in root.items("gpio_modules") {
            let is_own = module.text("module").is_some_and(|kind| OWN_PINS.contains(&kind));
            module.lines().iter().for_each(|line| match is_own {
                true => line.not_needed("the Pi's own pins are read without a module"),
                false => line.not_taken(
                    "only the Pi's own pins are read: keep mqtt-io for others, with this gateway as its broker",
                ),
            });
        }
        for (name, node) in entries.iter().filter(|(name, _)| !matches!(name.as_str(), "mqtt" | "digital_inputs")) {
            for line in node.lines() {
                match name.as_str() {
                    "gpio_modules" => {}
                    "digital_outputs" => line.not_taken(
                        "the gateway switches no outputs: keep mqtt-io for them, with this gateway as its broker",
                    ),
                    "sensor_modules" | "sensor_inputs" => {
                        line.not_taken(
                            "only digital inputs are read: keep mqtt-io for it, with this gateway as its broker",
                        );
                    }
                    "stream_modules" => {
                        line.not_taken("streams are not read: keep mqtt-io for it, with this gateway as its broker")
                    }
                    "logging" => line.not_needed("[log] level says what is logged"),
                    _ if name.starts_with("x-") => line.not_needed("no input has it from here"),
                    _ => line.not_taken("it has no equivalent"),
                }
            }
            self.text.remarks(&node.lines());
        }
    }
}

/// Writes a digital input as a sensor, or records why it cannot be one.
fn sensor(
    input: &YamlNode,
    root: &YamlNode,
    prefix: &str,
    names: &mut Vec<String>,
    topics: &mut Vec<String>,
    text: &mut TomlText,
) -> Result<(), String> {
    let name = input.text("name").ok_or("it has no name")?;
    let pin = pin(input, root)?;
    let topic = if prefix.is_empty() { format!("input/{name}") } else { format!("{prefix}/input/{name}") };
    check_topic(&topic).map_err(|error| format!("its topic {topic:?} {error}"))?;
    if topic.starts_with('$') || topics.contains(&topic) {
        return Err(format!("its topic {topic:?} belongs to another input or to the broker"));
    }
    let own_name = free_name(name, names);
    text.table("[[sensor]]");
    text.key("name", quoted(&own_name));
    text.key("pin", pin);
    text.key("topic", quoted(&topic));
    names.push(own_name);
    topics.push(topic);
    let inverted = input.is_set("inverted");
    text.key("active", quoted(if inverted { "low" } else { "high" }));
    let bias = match (input.is_set("pullup"), input.is_set("pulldown")) {
        (true, _) => "pull_up",
        (false, true) => "pull_down",
        _ => "off",
    };
    text.key("bias", quoted(bias));
    if let Some(line) = input.given("bouncetime") {
        match line.value.parse::<u64>() {
            Ok(ms) => text.key("debounce", quoted(&format!("{} ms", ms.min(10_000)))),
            Err(_) => line.wrong("valid: milliseconds"),
        }
    }
    text.key_with(
        "hold",
        quoted("0 s"),
        "mqtt-io reports each change at once; a motion sensor is calmer with a few seconds",
    );
    text.key_with("warm_up", quoted("0 s"), "\"60 s\" keeps a PIR's first minute quiet");
    text.key("payload", quoted("on_off"));
    payloads(input);
    text.key("retain", input.is_set("retain"));
    for key in ["name", "module", "pin", "inverted", "pullup", "pulldown", "bouncetime", "retain"] {
        input.line(key).into_iter().for_each(|line| line.taken());
    }
    interrupts(input);
    Ok(())
}

fn pin(input: &YamlNode, root: &YamlNode) -> Result<u64, String> {
    let module = input.text("module").unwrap_or("raspberrypi");
    let modules = root.items("gpio_modules");
    let kind = modules
        .iter()
        .find(|other| other.text("name") == Some(module))
        .and_then(|other| other.text("module"))
        .unwrap_or(module);
    if !OWN_PINS.contains(&kind) {
        return Err(format!(
            "only the Pi's own pins are read, and its module is {kind}: keep mqtt-io for it, with this gateway as its broker"
        ));
    }
    let pin = input.text("pin").ok_or("it has no pin")?;
    let number = pin.trim_start_matches("GPIO").parse::<u64>().ok().filter(|pin| *pin <= 53);
    number.ok_or(format!("its pin {pin:?} is not the BCM number of a pin of the Pi"))
}

/// Sets the fate of configured payloads: sensors always publish ON and OFF.
fn payloads(input: &YamlNode) {
    for (key, ours) in [("on_payload", "ON"), ("off_payload", "OFF")] {
        let Some(line) = input.line(key) else { continue };
        if line.value == ours || line.value.is_empty() { line.taken() } else { line.differs(format!("it says {ours}")) }
    }
}

fn interrupts(input: &YamlNode) {
    if let Some(line) = input.line("interrupt") {
        if line.value == "both" {
            line.not_needed("both edges are noticed")
        } else {
            line.differs("both edges are noticed")
        }
    }
    for key in ["poll_interval", "poll_when_interrupt_for"] {
        input.line(key).into_iter().for_each(|line| line.not_needed("the kernel reports edges; nothing is polled"));
    }
    if let Some(node) = input.get("interrupt_for") {
        node.lines().iter().for_each(|line| line.not_taken("pins of other modules are not read"));
    }
    if let Some(node) = input.get("ha_discovery") {
        let why = "Home Assistant is told by [home_assistant], for all sensors alike";
        node.lines().iter().for_each(|line| line.not_taken(why));
    }
}

#[cfg(test)]
mod tests;

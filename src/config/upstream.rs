//! Reads `[[upstream]]` with its `[[upstream.out]]`, `[[upstream.in]]` and `[[upstream.both]]`.

use std::path::Path;
use std::time::Duration;

use rustls::pki_types::ServerName;

use super::broker::MAX_EXPIRY;
use super::document::{NAME_FORM, Table, Unique, Value, assign, topic};
use super::own_address::check_loops_with_itself;
use super::paths::Paths;
use crate::message::{Qos, TopicError, check_filter, check_topic};
use crate::upstream::settings::{
    OutQos, OwnDoors, Password, Protocol, Proxy, Rate, Rule, SecretPlace, UpstreamAddress, UpstreamSettings,
    UpstreamTls, fingerprint, loops, overlap::looping, set_v5_only, shares_address,
};

const ADDRESSES_FORM: &str =
    "a list of addresses, such as [\"mqtts://mqtt.example.org:8883\", \"mqtt://192.0.2.7:1883\"]";
const OUT_QOS: [(&str, OutQos); 4] =
    [("0", OutQos::AtMostOnce), ("1", OutQos::AtLeastOnce), ("2", OutQos::ExactlyOnce), ("keep", OutQos::Keep)];
const IN_QOS: [(&str, Qos); 3] = [("0", Qos::AtMostOnce), ("1", Qos::AtLeastOnce), ("2", Qos::ExactlyOnce)];

pub(super) fn read(root: &Table, paths: &Paths, gateway_id: &str, own: &OwnDoors) -> Vec<UpstreamSettings> {
    let mut names = Unique::new("upstream");
    let mut upstreams: Vec<UpstreamSettings> = Vec::new();
    for table in root.tables("upstream") {
        let name = table.required("name", NAME_FORM).and_then(|value| names.check(&value, value.name()?));
        let mut upstream =
            UpstreamSettings::new(name.unwrap_or_default(), addresses(&table), format!("pigateway-{gateway_id}"));
        session(&table, &mut upstream);
        line(&table, &mut upstream);
        login(&table, &mut upstream, paths);
        if upstream.password.is_some()
            && let Some(address) = upstream.addresses.iter().find(|address| address.shows_passwords())
        {
            let said = format!("{address} has no TLS: everybody on the way to {} can read the password", address.host);
            table.warning("addresses", said + "; mqtts:// or wss:// keep it secret");
        }
        upstream.tls = table.table("tls").map(|tls| read_tls(tls, paths));
        if upstream.tls.is_some()
            && !upstream.addresses.is_empty()
            && !upstream.addresses.iter().any(|address| address.scheme.is_tls())
        {
            table.problem(
                "tls",
                "no address uses TLS; valid: an address that begins with mqtts:// or wss://, or no tls",
            );
        }
        let status = table.get("status_topic");
        upstream.status_topic = status.and_then(|value| topic(&value, ""));
        upstream.out = rules(&table, "out", &OUT_QOS, OutQos::default());
        upstream.inbound = rules(&table, "in", &IN_QOS, Qos::AtLeastOnce);
        upstream.both = rules(&table, "both", &OUT_QOS, OutQos::default());
        // a rule with a problem counts as a rule here
        if !["out", "in", "both"].iter().any(|direction| table.has(direction)) {
            let valid = "valid: [[upstream.out]], [[upstream.in]] or [[upstream.both]] below it";
            table.warning("out", format!("this upstream has no rules, so nothing goes up or comes down; {valid}"));
        }
        check_loops(&table, &upstream);
        check_loops_with(&table, &upstream, &upstreams);
        check_twins(&table, &upstream, &upstreams);
        check_loops_with_itself(&table, &mut upstream, own);
        table.finish();
        upstreams.push(upstream);
    }
    set_v5_only(&mut upstreams);
    upstreams
}

fn addresses(table: &Table) -> Vec<UpstreamAddress> {
    let Some(value) = table.required("addresses", ADDRESSES_FORM) else { return Vec::new() };
    let items = value.items(ADDRESSES_FORM);
    if value.is_list() && items.is_empty() {
        value.problem(format!("the list is empty; valid: {ADDRESSES_FORM}"));
    }
    let valid = "mqtt://HOST:PORT, mqtts://HOST:PORT, ws://HOST:PORT/PATH or wss://HOST:PORT/PATH";
    let address = |item: &Value| {
        let text = item.as_text().unwrap_or_default();
        if text.contains('@') && UpstreamAddress::parse(text).is_none() {
            // the value is not repeated, because it contains a password
            item.problem("user and password do not belong into an address, but into username and password_file");
            return None;
        }
        item.parsed(valid, UpstreamAddress::parse)
    };
    items.iter().filter_map(address).collect()
}

fn session(table: &Table, upstream: &mut UpstreamSettings) {
    let protocols = [("auto", Protocol::Auto), ("5", Protocol::V5), ("4", Protocol::V4)];
    assign(&mut upstream.protocol, table.get("protocol").and_then(|value| value.choice(&protocols)));
    let id_form = "a text of 1 to 65535 bytes without control characters";
    let fits = |text: &str| (1..=65535).contains(&text.len()) && !text.contains(char::is_control);
    let client_id = table.get("client_id");
    let client_id = client_id.and_then(|value| value.parsed(id_form, |text| fits(text).then(|| text.into())));
    upstream.has_default_client_id = client_id.is_none();
    assign(&mut upstream.client_id, client_id);
    assign(&mut upstream.clean_session, table.get("clean_session").and_then(|value| value.switch()));
    let expiry = table.get("session_expiry").and_then(|value| value.duration(Duration::ZERO..=MAX_EXPIRY));
    assign(&mut upstream.session_expiry, expiry);
    // a shorter keep alive makes the client's timer panic; a longer one does not fit into CONNECT [MQTT-3.1.2.10]
    let keep_alive = Duration::from_secs(5)..=Duration::from_secs(65535);
    assign(&mut upstream.keep_alive, table.get("keep_alive").and_then(|value| value.duration(keep_alive)));
    let inflight = table.get("max_inflight").and_then(|value| value.whole(1..=u64::from(u16::MAX)));
    assign(&mut upstream.max_inflight, inflight.map(|count| count as u16));
}

fn login(table: &Table, upstream: &mut UpstreamSettings, paths: &Paths) {
    let name_form = "a text that is not empty and has no control characters";
    let fits = |text: &str| (1..=65535).contains(&text.len()) && !text.contains(char::is_control);
    let username = table.get("username");
    let has_username = username.is_some();
    upstream.username = username.and_then(|value| value.parsed(name_form, |text| fits(text).then(|| text.into())));
    let (file, command) = (table.get("password_file"), table.get("password_command"));
    let Some(value) = file.as_ref().or(command.as_ref()) else { return };
    // MQTT 3.1.1 has no password without a user name [MQTT-3.1.2-22]
    if !has_username {
        let key = if file.is_some() { "password_file" } else { "password_command" };
        value.problem(format!("there is no username; valid: a username and a {key}, or neither"));
    }
    if file.is_some()
        && let Some(command) = &command
    {
        command.problem("there is a password_file too; valid: one of them");
    }
    upstream.password = match (&file, &command) {
        (Some(file), _) => paths.password(file).map(Password::File),
        (None, Some(value)) => {
            let command = password_command(value);
            if let Some(program) = command.iter().flatten().next().filter(|program| !Path::new(program).is_file()) {
                table
                    .warning("password_command", format!("{program} is not there: there is no connection until it is"));
            }
            command.map(Password::Command)
        }
        (None, None) => None,
    };
}

/// Reads a program with its arguments. It is not run here, because fetching a token may cost something.
fn password_command(value: &Value) -> Option<Vec<String>> {
    let valid =
        "a list of an absolute path and arguments, such as [\"/usr/local/bin/sas-token\", \"loft\"]; there is no shell";
    let items = value.items(valid);
    let words: Vec<String> = items
        .iter()
        .filter_map(|item| item.parsed(valid, |text| (!text.contains('\0')).then(|| text.to_owned())))
        .collect();
    if words.len() < items.len() || !value.is_list() {
        return None;
    }
    if !words.first().is_some_and(|program| program.starts_with('/')) {
        value.problem(format!("the program has no absolute path; valid: {valid}"));
        return None;
    }
    Some(words)
}

/// Reads how the network is used: proxy, times and rates.
fn line(table: &Table, upstream: &mut UpstreamSettings) {
    let seconds = |from, to| Duration::from_secs(from)..=Duration::from_secs(to);
    let timeout = table.get("connect_timeout").and_then(|value| value.duration(seconds(1, 600)));
    assign(&mut upstream.connect_timeout, timeout);
    if let Some(retry) = table.table("retry") {
        let range = || Duration::from_millis(100)..=Duration::from_secs(86_400);
        assign(&mut upstream.retry.min, retry.get("min").and_then(|value| value.duration(range())));
        assign(&mut upstream.retry.max, retry.get("max").and_then(|value| value.duration(range())));
        if upstream.retry.min > upstream.retry.max {
            retry.problem("min", "it is longer than max; valid: at most max, which is \"30 s\" where it is not given");
        }
        retry.finish();
    }
    if let Some(value) = table.get("failback") {
        let after = match value.as_text() {
            Some("never") => None,
            _ => value.duration(seconds(1, 31 * 86_400)),
        };
        if after.is_some() && upstream.addresses.len() < 2 {
            value.problem("there is only one address; valid: \"never\", or more addresses");
        }
        upstream.failback = after;
    }
    let rate = "messages in a time, such as \"50/s\", \"600/min\" or \"1000/h\"";
    upstream.rate = table.get("rate").and_then(|value| value.parsed(rate, Rate::parse));
    let proxy = "http://[USER:PASSWORD@]HOST:PORT or socks5://[USER:PASSWORD@]HOST:PORT";
    if let Some(value) = table.get("proxy") {
        upstream.proxy = value.as_text().and_then(Proxy::parse);
        if upstream.proxy.is_none() {
            // the value is not repeated, because it may contain a password
            value.problem(format!("not a proxy; valid: {proxy}"));
        }
    }
}

fn read_tls(table: Table, paths: &Paths) -> UpstreamTls {
    let (cert, key) = (table.get("cert"), table.get("key"));
    match (&cert, &key) {
        (Some(_), None) => table.problem("key", "cert is given and key is missing; valid: both or neither"),
        (None, Some(_)) => table.problem("cert", "key is given and cert is missing; valid: both or neither"),
        _ => {}
    }
    let sha256 =
        "sha256: and 64 hexadecimal digits, as `openssl x509 -noout -fingerprint -sha256 -in FILE` prints them";
    let name_form = "the host name, or IP address, that is in the certificate";
    let server_name = table.get("server_name");
    let is_name = |text: &str| ServerName::try_from(text.to_owned()).is_ok().then(|| text.to_owned());
    let settings = UpstreamTls {
        fingerprint: table.get("fingerprint").and_then(|value| value.parsed(sha256, fingerprint)),
        server_name: server_name.and_then(|value| value.parsed(name_form, is_name)),
        alpn: table.get("alpn").map(|value| alpn(&value)).unwrap_or_default(),
        ca: table.get("ca").and_then(|value| paths.certificates(&value)),
        cert: cert.and_then(|value| paths.own_certificates(&value)),
        key: key.and_then(|value| paths.key(&value)),
    };
    table.finish();
    settings
}

fn alpn(value: &Value) -> Vec<String> {
    let valid = "a list of protocols, such as [\"mqtt\"] or [\"x-amzn-mqtt-ca\"]";
    let fits = |text: &str| (1..=255).contains(&text.len()).then(|| text.to_owned());
    value.items(valid).iter().filter_map(|item| item.parsed(valid, fits)).collect()
}

fn rules<Q: Copy>(upstream: &Table, direction: &'static str, qos: &[(&str, Q)], default: Q) -> Vec<Rule<Q>> {
    let mut rules = Vec::new();
    for table in upstream.tables(direction) {
        let place = SecretPlace::new(table.document().file(), table.document().line(table.at()));
        let filter_form = "a topic filter, such as \"loft/#\"; \"\" with both prefixes maps one topic";
        let filter = table.required("topic_filter", filter_form);
        let text = filter.as_ref().and_then(|value| value.text(filter_form));
        let (local, remote) = (prefix(&table, "local_prefix"), prefix(&table, "remote_prefix"));
        let mut rule = Rule {
            topic_filter: text.unwrap_or_default().into(),
            local_prefix: local.unwrap_or_default().into(),
            remote_prefix: remote.unwrap_or_default().into(),
            qos: default,
            retain: true,
            max_age: None,
            place,
        };
        assign(&mut rule.retain, table.get("retain").and_then(|value| value.switch()));
        if direction != "in" {
            let ages = Duration::from_secs(1)..=Duration::from_secs(10 * 365 * 86_400);
            rule.max_age = table.get("max_age").and_then(|value| value.duration(ages));
        }
        assign(&mut rule.qos, table.get("qos").and_then(|value| value.choice(qos)));
        if let (Some(value), Some(_), Some(_), Some(_)) = (&filter, text, local, remote)
            && check_rule(value, &rule)
        {
            rules.push(rule);
        }
        table.finish();
    }
    rules
}

/// A topic prefix; empty if it is not given.
fn prefix<'a>(table: &Table<'a>, key: &'static str) -> Option<&'a str> {
    let Some(value) = table.get(key) else { return Some("") };
    let text = value.text("a text without wildcards, such as \"sites/\"")?;
    match check_topic(text) {
        Ok(()) | Err(TopicError::Empty) => Some(text),
        Err(error) => {
            value.wrong(format!("a text without wildcards, such as \"sites/\"; this {error}"));
            None
        }
    }
}

fn check_rule<Q>(filter: &Value, rule: &Rule<Q>) -> bool {
    if rule.topic_filter.is_empty() {
        let both = !rule.local_prefix.is_empty() && !rule.remote_prefix.is_empty();
        if !both {
            filter.problem(
                "an empty filter maps one topic; valid: with local_prefix and remote_prefix, or a topic filter",
            );
        }
        return both;
    }
    for (side, joined) in [("local", rule.local_filter()), ("remote", rule.remote_filter())] {
        if let Err(error) = check_filter(&joined) {
            filter.problem(format!(
                "the {side} filter {joined:?} {error}; valid: prefix and filter joined are a topic filter"
            ));
            return false;
        }
        if joined == "$share" || joined.starts_with("$share/") {
            filter.problem(format!(
                "the {side} filter {joined:?} would be a shared subscription; valid: the filter alone, without $share"
            ));
            return false;
        }
    }
    true
}

/// Checks rules for loops. With MQTT 3.1.1 a broker returns to the gateway what the gateway has sent. Rules that would
/// forward this again are refused if 3.1.1 is configured, and otherwise keep the gateway from falling back to it.
fn check_loops(table: &Table, upstream: &UpstreamSettings) {
    let pairs = loops(upstream, upstream);
    let Some((out, inbound)) = pairs.first() else { return };
    match upstream.protocol {
        Protocol::V5 => {}
        Protocol::V4 => {
            for (out, inbound) in &pairs {
                table
                    .problem("protocol", looping(out, inbound) + "; valid: protocol = 5, or rules that do not overlap");
            }
        }
        Protocol::Auto => {
            let message = looping(out, inbound) + "; this upstream is used with MQTT 5 only";
            table.warning("protocol", message);
        }
    }
}

/// The same for the rules of two upstreams at one broker. Only MQTT 5 carries the property by which the gateway knows
/// its own messages, so both must use it.
fn check_loops_with(table: &Table, upstream: &UpstreamSettings, others: &[UpstreamSettings]) {
    for other in others {
        if !shares_address(upstream, other) {
            continue;
        }
        let mut pairs = loops(upstream, other);
        pairs.extend(loops(other, upstream));
        let Some((out, inbound)) = pairs.first() else { continue };
        let message = format!("{}, because upstream {} has the same address", looping(out, inbound), other.name);
        if [upstream.protocol, other.protocol].contains(&Protocol::V4) {
            table.problem("protocol", message + "; valid: protocol = 5 for both, or rules that do not overlap");
        } else if [upstream.protocol, other.protocol].contains(&Protocol::Auto) {
            table.warning("protocol", message + "; both are used with MQTT 5 only");
        }
    }
}

/// Refuses two upstreams with one client id at one broker, because they would disconnect each other for ever.
fn check_twins(table: &Table, upstream: &UpstreamSettings, others: &[UpstreamSettings]) {
    let is_twin = |other: &&UpstreamSettings| other.client_id == upstream.client_id && shares_address(upstream, other);
    let twin = others.iter().find(is_twin);
    if let Some(other) = twin {
        let (id, name) = (&upstream.client_id, &other.name);
        table.problem("client_id", format!("upstream {name} uses {id:?} at the same address; valid: an id of its own"));
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Environment, read as read_all};
    use super::*;

    /// The problem of an upstream with these keys and one address.
    fn problem(keys: &str) -> String {
        let text = format!("[[upstream]]\nname = \"u\"\naddresses = [\"mqtt://h\"]\n{keys}");
        match read_all(&text, Path::new("t.toml"), &Environment::default()) {
            Err(problems) => problems.problems[0].to_string(),
            Ok(_) => panic!("{keys} is taken"),
        }
    }

    #[test]
    fn two_upstreams_at_one_broker_may_not_loop() {
        let two = |first: &str, second: &str| {
            let head = |name| format!("[[upstream]]\nname = \"{name}\"\nclient_id = \"{name}\"\n");
            let at = "addresses = [\"mqtt://a\", \"mqtt://b\"]\n";
            format!("{}{at}{first}\n{}addresses = [\"mqtt://b\"]\n{second}", head("one"), head("two"))
        };
        let out = "[[upstream.out]]\ntopic_filter = \"loft/#\"";
        let inbound = "[[upstream.in]]\ntopic_filter = \"loft/+\"";
        let other = "[[upstream.in]]\ntopic_filter = \"loft/+\"\nlocal_prefix = \"mirror/\"";
        let read = |text: &str| read_all(text, Path::new("t.toml"), &Environment::default());
        for (first, second, is_found) in [
            (format!("protocol = 4\n{out}"), inbound.to_owned(), true),
            (out.to_owned(), format!("protocol = 4\n{inbound}"), true),
            (inbound.to_owned(), format!("protocol = 4\n{out}"), true),
            (format!("protocol = 4\n{out}"), other.to_owned(), false),
            (format!("protocol = 5\n{out}"), format!("protocol = 5\n{inbound}"), false),
        ] {
            match read(&two(&first, &second)) {
                Ok(_) => assert!(!is_found, "{first} {second}"),
                Err(found) => {
                    let text = found.problems[0].to_string();
                    assert!(is_found && text.contains("upstream one has the same address"), "{text}");
                }
            }
        }
        let Ok(auto) = read(&two(out, inbound)) else { panic!("a fall back is not needed") };
        assert!(auto.settings.upstreams.iter().all(|upstream| upstream.v5_only));
    }

    #[test]
    fn rules_are_no_shared_subscriptions() {
        for direction in ["in", "out", "both"] {
            let found = problem(&format!("[[upstream.{direction}]]\ntopic_filter = \"$share/g/cmd/#\""));
            assert!(found.contains("would be a shared subscription; valid: the filter alone"), "{found}");
        }
    }

    #[test]
    fn a_password_in_an_address_is_not_repeated() {
        for address in ["mqtt://me:hunter2@h:1883", "mqtts://hunter2@h", "wss://me:hunter2@h/mqtt", "me:hunter2@h"] {
            let text = format!("[[upstream]]\nname = \"u\"\naddresses = [\"{address}\"]\n");
            let Err(found) = read_all(&text, Path::new("t.toml"), &Environment::default()) else { panic!("{address}") };
            let said = found.problems.iter().map(ToString::to_string).collect::<String>();
            assert!(said.contains("into username and password_file") && !said.contains("hunter2"), "{said}");
        }
    }

    #[test]
    fn how_the_line_is_used_is_checked() {
        for (keys, expected) in [
            (
                "rate = \"50\"",
                "t.toml:4:8: upstream.rate: found \"50\"; valid: messages in a time, such as \"50/s\", \"600/min\" or \
                 \"1000/h\"",
            ),
            (
                "proxy = \"ftp://me:secret@h\"",
                "t.toml:4:9: upstream.proxy: not a proxy; valid: http://[USER:PASSWORD@]HOST:PORT or \
                 socks5://[USER:PASSWORD@]HOST:PORT",
            ),
            (
                "failback = \"1 h\"",
                "t.toml:4:12: upstream.failback: there is only one address; valid: \"never\", or more addresses",
            ),
            (
                "username = \"u\"\npassword_command = [\"token\"]",
                "t.toml:5:20: upstream.password_command: the program has no absolute path; valid: a list of an absolute path \
                 and arguments, such as [\"/usr/local/bin/sas-token\", \"loft\"]; there is no shell",
            ),
        ] {
            assert_eq!(problem(keys), expected);
        }
    }
}

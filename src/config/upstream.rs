//! `[[upstream]]` with its `[[upstream.out]]`, `[[upstream.in]]` and `[[upstream.both]]`.

use std::time::Duration;

use super::broker::MAX_EXPIRY;
use super::document::{NAME_FORM, Table, Unique, Value, assign, topic};
use super::paths::Paths;
use crate::message::{Qos, TopicError, check_filter, check_topic};
use crate::upstream::settings::loops;
use crate::upstream::settings::{
    OutQos, Place, Protocol, Rule, Scheme, UpstreamAddress, UpstreamSettings, UpstreamTls,
};

const ADDRESSES_FORM: &str =
    "a list of addresses, such as [\"mqtts://mqtt.example.org:8883\", \"mqtt://192.0.2.7:1883\"]";
const OUT_QOS: [(&str, OutQos); 3] = [("0", OutQos::AtMostOnce), ("1", OutQos::AtLeastOnce), ("keep", OutQos::Keep)];
const IN_QOS: [(&str, Qos); 2] = [("0", Qos::AtMostOnce), ("1", Qos::AtLeastOnce)];

/// Reads all `[[upstream]]` tables.
pub(super) fn read(root: &Table, paths: &Paths, gateway_id: &str) -> Vec<UpstreamSettings> {
    let mut names = Unique::new("upstream");
    let mut upstreams: Vec<UpstreamSettings> = Vec::new();
    for table in root.tables("upstream") {
        let name = table.required("name", NAME_FORM).and_then(|value| names.check(&value, value.name()?));
        let mut upstream =
            UpstreamSettings::new(name.unwrap_or_default(), addresses(&table), format!("pigateway-{gateway_id}"));
        session(&table, &mut upstream);
        login(&table, &mut upstream, paths);
        upstream.tls = table.table("tls").map(|tls| read_tls(tls, paths));
        if upstream.tls.is_some()
            && !upstream.addresses.is_empty()
            && upstream.addresses.iter().all(|a| a.scheme == Scheme::Mqtt)
        {
            table.problem("tls", "no address uses TLS; valid: an address that begins with mqtts://, or no tls");
        }
        let status = table.get("status_topic");
        upstream.status_topic = status.and_then(|value| topic(&value, ""));
        upstream.out = rules(&table, "out", &OUT_QOS, OutQos::default());
        upstream.inbound = rules(&table, "in", &IN_QOS, Qos::AtLeastOnce);
        upstream.both = rules(&table, "both", &OUT_QOS, OutQos::default());
        // a rule with a problem is one all the same
        if !["out", "in", "both"].iter().any(|direction| table.has(direction)) {
            let valid = "valid: [[upstream.out]], [[upstream.in]] or [[upstream.both]] below it";
            table.warning("out", format!("this upstream has no rules, so nothing goes up or comes down; {valid}"));
        }
        check_loops(&table, &mut upstream);
        check_twins(&table, &upstream, &upstreams);
        table.finish();
        upstreams.push(upstream);
    }
    upstreams
}

fn addresses(table: &Table) -> Vec<UpstreamAddress> {
    let Some(value) = table.required("addresses", ADDRESSES_FORM) else { return Vec::new() };
    let items = value.items(ADDRESSES_FORM);
    if value.is_list() && items.is_empty() {
        value.problem(format!("the list is empty; valid: {ADDRESSES_FORM}"));
    }
    let valid = "mqtt://HOST:PORT or mqtts://HOST:PORT";
    items.iter().filter_map(|item| item.parsed(valid, UpstreamAddress::parse)).collect()
}

fn session(table: &Table, upstream: &mut UpstreamSettings) {
    let protocols = [("auto", Protocol::Auto), ("5", Protocol::V5), ("4", Protocol::V4)];
    assign(&mut upstream.protocol, table.get("protocol").and_then(|value| value.choice(&protocols)));
    let id_form = "a text of 1 to 65535 bytes without control characters";
    let fits = |text: &str| (1..=65535).contains(&text.len()) && !text.contains(char::is_control);
    let client_id = table.get("client_id");
    let client_id = client_id.and_then(|value| value.parsed(id_form, |text| fits(text).then(|| text.into())));
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
    let Some(file) = table.get("password_file") else { return };
    // MQTT 3.1.1 has no password without a user name [MQTT-3.1.2-22]
    if !has_username {
        file.problem("there is no username; valid: a username and a password_file, or neither");
    }
    upstream.password_file = paths.password(&file);
}

fn read_tls(table: Table, paths: &Paths) -> UpstreamTls {
    let (cert, key) = (table.get("cert"), table.get("key"));
    match (&cert, &key) {
        (Some(_), None) => table.problem("key", "cert is given and key is missing; valid: both or neither"),
        (None, Some(_)) => table.problem("cert", "key is given and cert is missing; valid: both or neither"),
        _ => {}
    }
    let settings = UpstreamTls {
        ca: table.get("ca").and_then(|value| paths.certificates(&value)),
        cert: cert.and_then(|value| paths.certificates(&value)),
        key: key.and_then(|value| paths.key(&value)),
    };
    table.finish();
    settings
}

fn rules<Q: Copy>(upstream: &Table, direction: &'static str, qos: &[(&str, Q)], default: Q) -> Vec<Rule<Q>> {
    let mut rules = Vec::new();
    for table in upstream.tables(direction) {
        let place = Place::new(table.document().file(), table.document().line(table.at()));
        let filter_form = "a topic filter, such as \"loft/#\"; \"\" with both prefixes maps one topic";
        let filter = table.required("topic_filter", filter_form);
        let text = filter.as_ref().and_then(|value| value.text(filter_form));
        let (local, remote) = (prefix(&table, "local_prefix"), prefix(&table, "remote_prefix"));
        let mut rule = Rule {
            topic_filter: text.unwrap_or_default().into(),
            local_prefix: local.unwrap_or_default().into(),
            remote_prefix: remote.unwrap_or_default().into(),
            qos: default,
            place,
        };
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

/// A prefix, empty when not given.
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
    }
    true
}

/// On MQTT 3.1.1 a broker sends us what we send it: rules that would pass it on again are refused where 3.1.1 is asked
/// for, and keep the gateway from falling back to it.
fn check_loops(table: &Table, upstream: &mut UpstreamSettings) {
    let pairs = loops(upstream);
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
            upstream.v5_only = true;
        }
    }
}

fn looping(out: &Place, inbound: &Place) -> String {
    if out.to_string() == inbound.to_string() {
        return format!("the rule at {out}, which goes both ways, would loop on MQTT 3.1.1");
    }
    format!("the rule at {out}, which goes out, and the rule at {inbound}, which comes in, would loop on MQTT 3.1.1")
}

/// Two connections with one client id to one broker end each other for ever.
fn check_twins(table: &Table, upstream: &UpstreamSettings, others: &[UpstreamSettings]) {
    let same_place = |a: &UpstreamAddress, b: &UpstreamAddress| a.host == b.host && a.port == b.port;
    let twin = others.iter().find(|other| {
        let shared = upstream.addresses.iter().any(|a| other.addresses.iter().any(|b| same_place(a, b)));
        shared && other.client_id == upstream.client_id
    });
    if let Some(other) = twin {
        let (id, name) = (&upstream.client_id, &other.name);
        table.problem("client_id", format!("upstream {name} uses {id:?} at the same address; valid: an id of its own"));
    }
}

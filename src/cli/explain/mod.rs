//! `pigateway explain`: explains what the configuration means for one topic.

use std::collections::HashMap;
use std::fmt::Write;
use std::path::PathBuf;

use toml::de::{DeTable, DeValue};

use super::{CliError, print};
use crate::access::authorise::{Authoriser, is_reserved};
use crate::access::identity::Identity;
use crate::access::made::UserLists;
use crate::access::settings::{AccessRule, AccessSettings, AnonymousFrom, AnonymousSettings, Rights, UserSettings};
use crate::broker::settings::Address;
use crate::config::{self, Settings};
use crate::home_assistant::device::{self, AnnouncedGateway};
use crate::message::{check_topic, matches};
use crate::upstream::rule::{Target, UpstreamRules, names_first_level};
use crate::upstream::settings::{OutQos, UpstreamSettings};

#[derive(Debug, clap::Args)]
pub(super) struct ExplainArgs {
    /// Topic to explain
    #[arg(value_parser = topic)]
    topic: String,
    /// Show only what this user may do; "" stands for clients without a user name
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// Client id of that client, for rules with %c
    #[arg(long, value_name = "ID")]
    client: Option<String>,
    /// Configuration file to read
    #[arg(long, short, value_name = "FILE", default_value = super::CONFIGURATION)]
    config: PathBuf,
}

fn topic(text: &str) -> Result<String, String> {
    check_topic(text).map(|()| text.to_owned()).map_err(|error| format!("a topic is meant; this {error}"))
}

pub(super) fn explain(args: &ExplainArgs) -> Result<(), CliError> {
    let mut loaded = config::load(&args.config)?;
    let mut made_in = HashMap::new();
    match config::load_made_users(&loaded.settings.gateway.data_dir) {
        Ok(made) => {
            let users = &mut loaded.settings.broker.access.users;
            let lists = UserLists { configured: std::mem::take(users), made: made.clone().settings() };
            let counts = made.users.into_iter().filter(|(user, _)| !lists.is_configured(&user.name));
            made_in.extend(counts.map(|(user, line)| (user.name, line)));
            *users = lists.in_force();
        }
        // the answer is right except for the users in the damaged file
        Err(problems) => eprintln!("{problems}"),
    }
    if let Some(name) = args.user.as_ref().filter(|name| !name.is_empty())
        && !loaded.settings.broker.access.all_users().any(|user| user.name == *name)
    {
        return Err(CliError::NoSuchUser(name.clone()));
    }
    let read = std::fs::read_to_string(&args.config);
    let text = read.map_err(|source| CliError::Read { path: args.config.clone(), source })?;
    let lines = RuleLines::of(&text);
    let file = args.config.display().to_string();
    let explained = Explained { settings: &loaded.settings, lines: &lines, file: &file, made_in: &made_in, args };
    print(explained.text().as_bytes())
}

/// Identifies a rule: listener (`None` for all), user (`None` for clients without a name), kind and text.
type RuleKey = (Option<String>, Option<String>, &'static str, String);

/// The lines of the configuration in which the access rules stand.
#[derive(Debug, Default)]
struct RuleLines(HashMap<RuleKey, usize>);

impl RuleLines {
    fn of(text: &str) -> RuleLines {
        let mut lines = RuleLines::default();
        let Ok(root) = DeTable::parse(text) else { return lines };
        let Some(broker) = get(root.get_ref(), "broker") else { return lines };
        let DeValue::Table(broker) = broker else { return lines };
        let mut note = |listener: Option<&str>, user: Option<&str>, table: &DeTable| {
            for kind in ["publish", "subscribe"] {
                let Some(list) = get(table, kind) else { continue };
                let DeValue::Array(items) = list else { continue };
                for item in items.iter() {
                    if let DeValue::String(rule) = item.get_ref() {
                        let line = text[..item.span().start].matches('\n').count() + 1;
                        let key = (listener.map(str::to_owned), user.map(str::to_owned), kind, rule.to_string());
                        lines.0.entry(key).or_insert(line);
                    }
                }
            }
        };
        let mut note_all = |listener: Option<&str>, table: &DeTable| {
            if let Some(DeValue::Table(anonymous)) = get(table, "anonymous") {
                note(listener, None, anonymous);
            }
            for user in tables(table, "user") {
                if let Some(DeValue::String(name)) = get(user, "name") {
                    note(listener, Some(name), user);
                }
            }
        };
        note_all(None, broker);
        for listener in tables(broker, "listener") {
            let Some(DeValue::String(address)) = get(listener, "address") else { continue };
            if let Some(address) = Address::parse(address) {
                note_all(Some(&address.to_string()), listener);
            }
        }
        lines
    }

    /// The line of a rule at a listener, or of the same rule for all listeners.
    fn find(&self, listener: Option<&str>, user: Option<&str>, kind: &'static str, rule: &str) -> Option<usize> {
        let at = |listener: Option<&str>| {
            self.0.get(&(listener.map(str::to_owned), user.map(str::to_owned), kind, rule.to_owned())).copied()
        };
        at(listener).or_else(|| at(None))
    }
}

/// The value of a key.
fn get<'a, 'b>(table: &'b DeTable<'a>, key: &str) -> Option<&'b DeValue<'a>> {
    table.iter().find(|(name, _)| name.get_ref() == key).map(|(_, value)| value.get_ref())
}

/// The tables in an array of tables.
fn tables<'a, 'b>(table: &'b DeTable<'a>, key: &str) -> Vec<&'b DeTable<'a>> {
    let Some(DeValue::Array(items)) = get(table, key) else { return Vec::new() };
    let tables = items.iter().map(|item| item.get_ref());
    tables.filter_map(|item| if let DeValue::Table(table) = item { Some(table) } else { None }).collect()
}

struct Explained<'a> {
    settings: &'a Settings,
    lines: &'a RuleLines,
    file: &'a str,
    /// For users that administrators have added, the line of their file on which each begins.
    made_in: &'a HashMap<String, usize>,
    args: &'a ExplainArgs,
}

impl Explained<'_> {
    fn text(&self) -> String {
        let mut text = format!("{}\n", self.args.topic);
        self.sensors(&mut text);
        if self.is_announced() {
            text += "  the gateway itself publishes it for Home Assistant, retained\n";
        }
        for (kind, words) in [("publish", "may publish it"), ("subscribe", "may receive it")] {
            let _ = writeln!(text, "\n  {words}:");
            self.who(kind, &mut text);
        }
        self.kept(&mut text);
        self.upstreams(&mut text);
        text
    }

    fn sensors(&self, text: &mut String) {
        for sensor in &self.settings.sensors {
            let is_state = *sensor.topic == *self.args.topic;
            if is_state || format!("{}/status", sensor.topic) == self.args.topic {
                let what = if is_state { "the state" } else { "\"online\" or \"offline\"" };
                let retained = if !is_state || sensor.retain { "retained" } else { "not retained" };
                let _ = writeln!(
                    text,
                    "  the sensor {:?} (pin {}) publishes {what} here, {retained}",
                    sensor.name, sensor.pin
                );
            }
        }
    }

    /// Whether the gateway publishes on this topic because it is announced to Home Assistant.
    fn is_announced(&self) -> bool {
        let Settings { home_assistant, gateway, sensors, broker, .. } = self.settings;
        let (prefix, id) = (home_assistant.prefix(), &gateway.id);
        let topic = &self.args.topic;
        let about = AnnouncedGateway { id: id.clone(), ..AnnouncedGateway::default() };
        let is_of = |device: device::Device| device.topic == *topic;
        home_assistant.enabled
            && (broker.access.reserved.contains(topic)
                || is_of(device::gateway(prefix, &about))
                || sensors.iter().filter_map(|sensor| device::sensor(prefix, id, sensor)).any(is_of))
    }

    /// Where the topic goes at an upstream. Of the gateway's own messages only those are kept for it whose first level
    /// a rule names, and all rules map them.
    fn outgoing(&self, upstream: &UpstreamSettings) -> Option<Target> {
        let (rules, topic) = (UpstreamRules::new(upstream), &self.args.topic);
        let names = |filter: &str| names_first_level(filter) && matches(filter, topic);
        let is_kept = !self.is_announced() || rules.local_filters().iter().any(|filter| names(filter));
        rules.outgoing(topic).filter(|_| is_kept)
    }

    /// Writes for every client in question whether it may use the topic, and the line that decides it.
    fn who(&self, kind: &'static str, text: &mut String) {
        let access = &self.settings.broker.access;
        let mut somebody = self.people(None, &access.users, &access.anonymous, kind, text);
        for own in &access.listeners {
            let mut there = String::new();
            // the users of all listeners were written before
            let users = own.users.as_deref().unwrap_or_default();
            let anybody = self.people(Some(&own.listener), users, &own.anonymous, kind, &mut there);
            if own.users.is_some() && !anybody {
                let _ = writeln!(text, "    at the listener {}: nobody of those who are asked about", own.listener);
            } else if anybody {
                let alone = if own.users.is_some() { ", and nobody else" } else { ", besides these users" };
                let _ = writeln!(text, "    at the listener {}{alone}:\n{there}", own.listener);
            }
            somebody |= anybody;
        }
        if !somebody {
            let _ = writeln!(text, "    nobody can come in");
        }
    }

    /// Writes the answers for these users and for clients without a user name, at this listener or at all others. Returns
    /// whether anybody may use the topic.
    fn people(
        &self,
        listener: Option<&str>,
        users: &[UserSettings],
        anonymous: &AnonymousSettings,
        kind: &'static str,
        text: &mut String,
    ) -> bool {
        let wanted = self.args.user.as_deref();
        let accept = match anonymous.accept {
            AnonymousFrom::None => None,
            AnonymousFrom::Loopback => Some("clients without a user name, from this host"),
            AnonymousFrom::All => Some("clients without a user name"),
        };
        let mut somebody = false;
        for user in users.iter().filter(|user| wanted.is_none_or(|name| name == user.name)) {
            let answer = self.answer(listener, Some(&user.name), &user.rights, kind);
            let _ = writeln!(text, "    {:<24} {answer}", user.name);
            somebody = true;
        }
        if let Some(who) = accept.filter(|_| wanted.is_none_or(str::is_empty)) {
            let answer = self.answer(listener, None, &anonymous.rights, kind);
            let _ = writeln!(text, "    {who:<24} {answer}");
            somebody = true;
        }
        somebody
    }

    /// The answer, from the same decision that the gateway makes, with the rule that decides it.
    fn answer(&self, listener: Option<&str>, user: Option<&str>, rights: &Rights, kind: &'static str) -> String {
        let topic = self.args.topic.as_str();
        let rules = if kind == "publish" { &rights.publish } else { &rights.subscribe };
        let client_id = self.args.client.as_deref().unwrap_or_default();
        let identity = Identity { user: user.map(Into::into), client_id: client_id.into(), listener: None };
        let reserved = &self.settings.broker.access.reserved;
        let permissions = authoriser(user, rights.clone(), reserved).permissions(&identity);
        let allowed = if kind == "publish" { permissions.may_publish(topic) } else { permissions.may_receive(topic) };
        let selects = |rule: &AccessRule| {
            let alone = AccessRule { deny: false, filter: rule.filter.clone() };
            let rights = Rights { publish: Vec::new(), subscribe: vec![alone] };
            authoriser(user, rights, &[]).permissions(&identity).may_receive(topic)
        };
        let cited = |rule: &AccessRule| {
            let shown = format!("{}{}", if rule.deny { "!" } else { "" }, rule.filter);
            match self.lines.find(listener, user, kind, &shown) {
                Some(line) => format!("{shown:?} ({}:{line})", self.file),
                None => match user.filter(|_| listener.is_none()).and_then(|user| self.made_in.get(user)) {
                    Some(line) => {
                        let file = config::made_users_path(&self.settings.gateway.data_dir);
                        format!("{shown:?} ({}, the user at line {line})", file.display())
                    }
                    None => format!("{shown:?} (the default)"),
                },
            }
        };
        if allowed {
            let rule = rules.iter().find(|rule| !rule.deny && selects(rule));
            return rule.map_or("yes".into(), |rule| format!("yes, by {}", cited(rule)));
        }
        if kind == "publish" && reserved.contains(&self.args.topic) {
            return "no, only the gateway itself publishes it".into();
        }
        if kind == "publish" && is_reserved(topic) {
            return "no, it is the broker's own".into();
        }
        if let Some(rule) = rules.iter().find(|rule| rule.deny && selects(rule)) {
            return format!("no, {} denies it", cited(rule));
        }
        let with_an_id =
            |rule: &&AccessRule| !rule.deny && rule.filter.contains("%c") && could_select(rule, user, topic);
        match rules.iter().find(with_an_id).filter(|_| self.args.client.is_none()) {
            Some(rule) => format!("depends on the client id, by {}; --client ID tells", cited(rule)),
            None => format!("no {kind} rule selects it"),
        }
    }

    fn kept(&self, text: &mut String) {
        let topic = &self.args.topic;
        let _ = writeln!(text, "\n  kept:");
        if is_reserved(topic) {
            let is_made_up = topic.starts_with("$SYS");
            let why = if is_made_up { "the broker makes it up when somebody asks" } else { "nobody publishes it" };
            let _ = writeln!(text, "    no: {why}");
            return;
        }
        let broker = &self.settings.broker;
        if broker.max_retained == 0 {
            let _ = writeln!(text, "    nothing is retained (broker.max_retained = 0)");
        } else {
            let _ = writeln!(
                text,
                "    as the retained message, if it was published with the retain flag, for whoever subscribes later"
            );
        }
        let expiry = config::units::show_duration(broker.session_expiry);
        let _ = writeln!(
            text,
            "    with QoS 1 or 2, for each persistent session that subscribes to it, for at most {expiry} and {} messages",
            broker.max_queued_messages
        );
        for upstream in &self.settings.upstreams {
            if self.outgoing(upstream).is_some_and(|target| target.qos != OutQos::AtMostOnce) {
                let size = config::units::show_size(self.settings.journal.max_size);
                let _ = writeln!(
                    text,
                    "    for the upstream {:?}, until it has acknowledged it; the journal has {size}",
                    upstream.name
                );
            }
        }
    }

    fn upstreams(&self, text: &mut String) {
        let topic = &self.args.topic;
        let _ = writeln!(text, "\n  upstreams:");
        let mut none = true;
        for upstream in &self.settings.upstreams {
            let rules = UpstreamRules::new(upstream);
            let addresses: Vec<String> = upstream.addresses.iter().map(ToString::to_string).collect();
            let (name, addresses) = (&upstream.name, addresses.join(", "));
            if let Some(target) = self.outgoing(upstream) {
                let to = target.topic;
                let qos = match target.qos {
                    OutQos::AtMostOnce => "QoS 0",
                    OutQos::AtLeastOnce => "QoS 1",
                    OutQos::ExactlyOnce => "QoS 2",
                    OutQos::Keep => "the QoS that it was published with",
                };
                let places = places_out(upstream, topic);
                let _ = writeln!(text, "    up to {name:?} ({addresses}) as {to:?} with {qos}, by {places}");
                none = false;
            } else if rules.outgoing(topic).is_some() {
                let why = "what the gateway says of itself goes by a rule that begins with its first level";
                let _ = writeln!(text, "    not up to {name:?} ({addresses}): {why}");
                none = false;
            }
            for (from, place) in sources(upstream, topic) {
                let _ = writeln!(text, "    down from {name:?} ({addresses}), where it is {from:?}, by {place}");
                none = false;
            }
        }
        if none {
            let _ = writeln!(text, "    it goes to none and comes from none");
        }
    }
}

/// An authoriser with these rights only, and with topics on which nobody publishes.
fn authoriser(user: Option<&str>, rights: Rights, reserved: &[String]) -> Authoriser {
    let mut access = AccessSettings { reserved: reserved.to_vec(), ..AccessSettings::default() };
    match user {
        None => access.anonymous.rights = rights,
        Some(name) => {
            let (name, client_ids) = (name.into(), Vec::new());
            access.users.push(UserSettings { name, password_hash: None, rights, client_ids, is_admin: false })
        }
    }
    Authoriser::new(&access)
}

/// Whether a rule with `%c` matches the topic for some client id.
fn could_select(rule: &AccessRule, user: Option<&str>, topic: &str) -> bool {
    let level =
        |level: &str| if level.contains("%c") { "+".to_owned() } else { level.replace("%u", user.unwrap_or("%u")) };
    matches(&rule.filter.split('/').map(level).collect::<Vec<String>>().join("/"), topic)
}

/// The rules that send a topic to the upstream.
fn places_out(upstream: &UpstreamSettings, topic: &str) -> String {
    let rules = upstream.out.iter().chain(&upstream.both).filter(|rule| matches(&rule.local_filter(), topic));
    let places: Vec<String> = rules.map(|rule| format!("the rule at {}", rule.place)).collect();
    places.join(", ")
}

/// The remote topics that arrive as this local topic, each with its rule.
fn sources(upstream: &UpstreamSettings, topic: &str) -> Vec<(String, String)> {
    let inbound = upstream
        .inbound
        .iter()
        .map(|rule| (rule.local_filter(), &rule.local_prefix, &rule.remote_prefix, rule.place.to_string()));
    let both = upstream
        .both
        .iter()
        .map(|rule| (rule.local_filter(), &rule.local_prefix, &rule.remote_prefix, rule.place.to_string()));
    let rules = UpstreamRules::new(upstream);
    let source = |(filter, local, remote, place): (String, &String, &String, String)| {
        let from = format!("{remote}{}", topic.strip_prefix(local.as_str())?);
        let comes = matches(&filter, topic) && rules.incoming(&from).is_some_and(|(to, ..)| to == topic);
        comes.then(|| (from, format!("the rule at {place}")))
    };
    inbound.chain(both).filter_map(source).collect()
}

#[cfg(test)]
mod tests;

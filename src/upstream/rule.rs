//! Maps local and remote topics, like a `topic` line of mosquitto's bridge.
//!
//! A rule matches local topics by `local_prefix` + `topic_filter` and remote topics by `remote_prefix` + `topic_filter`. A
//! topic loses the prefix of its own side, if it begins with it, and gets the prefix of the other side. A prefix is text,
//! not a level. An empty filter maps one topic to one topic.
//!
//! If several rules match a topic, the first one with a prefix maps it, and only if there is none the first one without.
//! mosquitto does the same, and a message never passes twice.

use std::time::Duration;

use super::settings::{OutQos, Rule, SecretPlace, UpstreamSettings};
use crate::access::authorise::is_reserved;
pub(crate) use crate::exchange::filters::names_first_level;
use crate::message::{Qos, TopicFilter, check_topic, matches};

#[derive(Clone, Debug, PartialEq, Eq)]
struct Mapping<Q> {
    /// Filter and prefix of the side from which a topic comes.
    filter: TopicFilter,
    from: String,
    /// Prefix of the other side.
    to: String,
    qos: Q,
    retain: bool,
    max_age: Option<Duration>,
    place: SecretPlace,
    /// Whether the rule names topics of the other side that begin with `$`.
    to_dollar: bool,
    /// Whether the rule is for both ways.
    is_both: bool,
}

/// The destination of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    /// The topic on the other side.
    pub(crate) topic: String,
    /// The QoS on the other side.
    pub(crate) qos: OutQos,
    /// Whether the retain flag is kept.
    pub(crate) retain: bool,
    /// A message that is older than this is not sent.
    pub(crate) max_age: Option<Duration>,
}

impl<Q: Copy> Mapping<Q> {
    fn map(&self, topic: &str) -> String {
        // `a/#` also matches `a`, which does not begin with `a/` and is used unchanged
        let rest = topic.strip_prefix(&self.from).unwrap_or(topic);
        format!("{}{rest}", self.to)
    }
}

/// The rules of one upstream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct UpstreamRules {
    out: Vec<Mapping<OutQos>>,
    inbound: Vec<Mapping<Qos>>,
    reserved: Vec<String>,
}

impl UpstreamRules {
    /// The rules of these settings.
    pub(crate) fn new(settings: &UpstreamSettings) -> UpstreamRules {
        let out = settings.out.iter().chain(&settings.both).filter_map(|rule| {
            let filter = TopicFilter::new(rule.local_filter()).ok()?;
            Some(Mapping {
                filter,
                from: rule.local_prefix.clone(),
                to: rule.remote_prefix.clone(),
                qos: rule.qos,
                retain: rule.retain,
                max_age: rule.max_age,
                place: rule.place.clone(),
                to_dollar: rule.remote_filter().starts_with('$'),
                is_both: false,
            })
        });
        fn inbound<Q>(rule: &Rule<Q>, qos: Qos, is_both: bool) -> Option<Mapping<Qos>> {
            let filter = TopicFilter::new(rule.remote_filter()).ok()?;
            Some(Mapping {
                filter,
                from: rule.remote_prefix.clone(),
                to: rule.local_prefix.clone(),
                qos,
                retain: rule.retain,
                max_age: None,
                place: rule.place.clone(),
                to_dollar: rule.local_filter().starts_with('$'),
                is_both,
            })
        }
        let plain = settings.inbound.iter().filter_map(|rule| inbound(rule, rule.qos, false));
        let both = settings.both.iter().filter_map(|rule| inbound(rule, rule.qos_in(), true));
        let mut rules = UpstreamRules {
            out: out.collect(),
            inbound: plain.chain(both).collect(),
            reserved: settings.reserved.clone(),
        };
        // a stable sort: rules with a prefix first, otherwise in the order of the configuration
        rules.out.sort_by_key(|mapping| mapping.from.is_empty() && mapping.to.is_empty());
        rules.inbound.sort_by_key(|mapping| mapping.from.is_empty() && mapping.to.is_empty());
        rules
    }

    /// Whether any rule sends messages at QoS 2.
    pub(crate) fn is_exact(&self) -> bool {
        self.out.iter().any(|mapping| mapping.qos == OutQos::ExactlyOnce)
    }

    /// Whether any rule sends messages that the upstream confirms.
    pub(crate) fn wants_answers(&self) -> bool {
        self.out.iter().any(|mapping| mapping.qos != OutQos::AtMostOnce)
    }

    /// Whether any rule keeps the retain flag of messages to the upstream.
    pub(crate) fn keeps_retain(&self) -> bool {
        self.out.iter().any(|mapping| mapping.retain)
    }

    /// The destination of a message that was published here; `None` if it is not forwarded.
    pub(crate) fn outgoing(&self, topic: &str) -> Option<Target> {
        let (topic, rule) = first(&self.out, topic)?;
        Some(Target { topic, qos: rule.qos, retain: rule.retain, max_age: rule.max_age })
    }

    /// Whether any rule is for a message that was published here, although it may not be possible to map its topic.
    pub(crate) fn is_meant(&self, topic: &str) -> bool {
        self.out.iter().any(|mapping| matches(&mapping.filter, topic))
    }

    /// The local topic for a message from the upstream, its highest QoS, and whether it keeps the retain flag; `None` if it
    /// is not accepted.
    pub(crate) fn incoming(&self, topic: &str) -> Option<(String, Qos, bool)> {
        let (topic, rule) = first(&self.inbound, topic)?;
        let is_ours = is_reserved(&topic) || self.reserved.contains(&topic);
        (!is_ours).then_some((topic, rule.qos, rule.retain))
    }

    /// The local topic of a remote one that is mirrored: its retained messages go both ways, and each side is to have the
    /// same.
    pub(crate) fn mirrored(&self, remote: &str) -> Option<String> {
        let (_, rule) = first(&self.inbound, remote)?;
        let (local, _, keeps_retain) = self.incoming(remote).filter(|_| rule.is_both)?;
        let up = self.outgoing(&local)?;
        (keeps_retain && up.retain && up.topic == remote).then_some(local)
    }

    /// Whether any topics are mirrored.
    pub(crate) fn has_mirrored(&self) -> bool {
        self.inbound.iter().any(|mapping| mapping.is_both && mapping.retain)
    }

    /// Whether a subscription is for topics that are mirrored.
    pub(crate) fn is_for_mirrored(&self, filter: &TopicFilter) -> bool {
        self.inbound.iter().any(|mapping| mapping.is_both && mapping.retain && mapping.filter == *filter)
    }

    /// The places in the configuration of the rules with a remote filter.
    pub(crate) fn place_of(&self, remote: &TopicFilter) -> String {
        let places = self.inbound.iter().filter(|mapping| mapping.filter == *remote);
        places.map(|mapping| mapping.place.to_string()).collect::<Vec<_>>().join(", ")
    }

    /// The place in the configuration of the rule for a message that was published here.
    pub(crate) fn place_of_out(&self, topic: &str) -> String {
        first(&self.out, topic).map(|(_, mapping)| mapping.place.to_string()).unwrap_or_default()
    }

    /// The filters of the messages that must be kept for this upstream.
    pub(crate) fn local_filters(&self) -> Vec<TopicFilter> {
        let mut filters: Vec<_> = self.out.iter().map(|mapping| mapping.filter.clone()).collect();
        filters.sort();
        filters.dedup();
        filters
    }

    /// The filters of messages that certainly arrive at the upstream under their local topics. A filter is left out if only
    /// some of its messages do.
    pub(crate) fn carried(&self) -> Vec<TopicFilter> {
        let is_kept = |mapping: &Mapping<OutQos>| mapping.from == mapping.to && mapping.qos != OutQos::AtMostOnce;
        if self.out.iter().all(is_kept) { self.local_filters() } else { Vec::new() }
    }

    /// The subscriptions at the upstream: every filter once, with the highest QoS that a rule asks for.
    pub(crate) fn subscriptions(&self) -> Vec<(TopicFilter, Qos)> {
        let mut wanted: Vec<_> = self.inbound.iter().map(|mapping| (mapping.filter.clone(), mapping.qos)).collect();
        wanted.sort_by(|a, b| a.0.cmp(&b.0).then(b.1.cmp(&a.1)));
        wanted.dedup_by(|later, first| later.0 == first.0);
        wanted
    }
}

fn first<'a, Q: Copy>(mappings: &'a [Mapping<Q>], topic: &str) -> Option<(String, &'a Mapping<Q>)> {
    let mapping = mappings.iter().find(|mapping| matches(&mapping.filter, topic))?;
    let mapped = mapping.map(topic);
    // behind a prefix that is taken away somebody may have written the topics of a broker or of a cloud
    let is_forged = mapped.starts_with('$') && !mapping.to_dollar;
    // only the rest of a topic may be empty
    (!is_forged && check_topic(&mapped).is_ok()).then_some((mapped, mapping))
}

#[cfg(test)]
pub(super) mod tests {
    use serde::Deserialize;

    use super::super::settings::UpstreamAddress;
    use super::*;

    #[derive(Deserialize)]
    struct Row {
        direction: String,
        filter: String,
        local_prefix: String,
        remote_prefix: String,
        topic: String,
        to: Option<String>,
    }

    #[derive(Deserialize)]
    struct Table {
        mapping: Vec<Row>,
    }

    pub(crate) fn rule<Q>(filter: &str, local: &str, remote: &str, qos: Q) -> Rule<Q> {
        Rule {
            topic_filter: filter.into(),
            local_prefix: local.into(),
            remote_prefix: remote.into(),
            qos,
            retain: true,
            max_age: None,
            place: SecretPlace::default(),
        }
    }

    pub(crate) fn settings() -> UpstreamSettings {
        UpstreamSettings::new("home", vec![UpstreamAddress::parse("mqtt://127.0.0.1").unwrap()], "gateway")
    }

    #[test]
    fn topics_are_mapped_as_mosquittos_bridge_does() {
        let table: Table = toml::from_str(include_str!("../../tests/fixtures/bridge_mappings.toml")).unwrap();
        assert!(table.mapping.len() >= 40);
        for row in table.mapping {
            let Row { direction, filter, local_prefix: local, remote_prefix: remote, topic, to } = row;
            let mut settings = settings();
            match direction.as_str() {
                "out" => settings.out.push(rule(&filter, &local, &remote, OutQos::Keep)),
                "in" => settings.inbound.push(rule(&filter, &local, &remote, Qos::AtLeastOnce)),
                _ => settings.both.push(rule(&filter, &local, &remote, OutQos::Keep)),
            }
            let rules = UpstreamRules::new(&settings);
            let what = format!("{direction} {filter:?} {local:?} {remote:?}: {topic}");
            let is_out = direction != "in";
            let out = rules.outgoing(&topic).map(|target| target.topic);
            let inbound = rules.incoming(&topic).map(|(to, ..)| to);
            assert_eq!(if is_out { out } else { inbound }, to, "{what}");
            if direction == "both" {
                assert_eq!(rules.incoming(&to.unwrap()).unwrap().0, topic, "{what}");
            }
        }
    }

    fn target(rules: &UpstreamRules, topic: &str) -> Option<(String, OutQos)> {
        rules.outgoing(topic).map(|target| (target.topic, target.qos))
    }

    #[test]
    fn the_first_rule_with_a_prefix_maps_a_topic() {
        let mut settings = settings();
        settings.out.push(rule("loft/#", "", "", OutQos::AtMostOnce));
        settings.out.push(rule("+/a", "", "x/", OutQos::Keep));
        settings.out.push(rule("a", "loft/", "y/", OutQos::AtLeastOnce));
        let rules = UpstreamRules::new(&settings);
        assert_eq!(target(&rules, "loft/a"), Some(("x/loft/a".into(), OutQos::Keep)));
        assert_eq!(target(&rules, "loft/b"), Some(("loft/b".into(), OutQos::AtMostOnce)));
        assert_eq!(rules.incoming("loft/b"), None);
        assert_eq!(rules.local_filters().len(), 3);
    }

    #[test]
    fn each_remote_filter_is_subscribed_to_once_at_the_highest_qos() {
        let mut settings = settings();
        settings.inbound.push(rule("a/#", "", "", Qos::AtMostOnce));
        settings.inbound.push(rule("#", "x/", "a/", Qos::AtLeastOnce));
        settings.both.push(rule("b", "", "", OutQos::AtMostOnce));
        let filter = |text: &str| TopicFilter::new(text).unwrap();
        let expected = [(filter("a/#"), Qos::AtLeastOnce), (filter("b"), Qos::AtMostOnce)];
        assert_eq!(UpstreamRules::new(&settings).subscriptions(), expected);
    }

    #[test]
    fn a_mapping_to_nothing_does_not_pass() {
        let mut settings = settings();
        settings.out.push(rule("/#", "loft", "", OutQos::Keep));
        let rules = UpstreamRules::new(&settings);
        assert_eq!(target(&rules, "loft/a"), Some(("/a".into(), OutQos::Keep)));
        assert_eq!(rules.outgoing("loft"), None);
    }

    #[test]
    fn no_prefix_hides_a_topic_of_a_broker() {
        let mut settings = settings();
        settings.inbound.push(rule("#", "", "sites/loft/", Qos::AtLeastOnce));
        settings.inbound.push(rule("$SYS/#", "", "", Qos::AtLeastOnce));
        settings.inbound.push(rule("$SYS/#", "up/", "", Qos::AtLeastOnce));
        settings.inbound.push(rule("$aws/#", "", "", Qos::AtLeastOnce));
        settings.out.push(rule("#", "site/", "", OutQos::Keep));
        settings.out.push(rule("things/#", "", "$aws/", OutQos::Keep));
        let rules = UpstreamRules::new(&settings);
        let incoming = |topic: &str| rules.incoming(topic).map(|(topic, ..)| topic);
        assert_eq!(incoming("sites/loft/a").as_deref(), Some("a"));
        assert_eq!(["sites/loft/$SYS/x", "sites/loft/$aws/x"].map(incoming), [None, None]);
        assert_eq!(incoming("$SYS/x").as_deref(), Some("up/$SYS/x"));
        assert_eq!(incoming("$aws/x").as_deref(), Some("$aws/x"), "the rule names it");
        assert_eq!(target(&rules, "site/a"), Some(("a".into(), OutQos::Keep)));
        assert_eq!(rules.outgoing("site/$aws/x"), None);
        assert_eq!(target(&rules, "things/x"), Some(("$aws/things/x".into(), OutQos::Keep)));
    }
}

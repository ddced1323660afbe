//! Topics here and topics there: the mapping of a `topic` line of mosquitto's bridge.
//!
//! A rule selects local topics by `local_prefix` + `topic_filter` and remote topics by `remote_prefix` +
//! `topic_filter`. A topic that passes loses the prefix of the side that it comes from, if it begins with it, and gets the
//! other side's in front. A prefix is text, not a level. With an empty filter that maps one topic to one topic.
//!
//! Where several rules select a topic, the first that has a prefix maps it, and only if there is none the first without.
//! mosquitto does it so, and a message never passes twice.

use std::time::Duration;

use super::settings::{OutQos, Rule, SecretPlace, UpstreamSettings};
use crate::message::{Qos, TopicFilter, check_topic, matches};

#[derive(Clone, Debug, PartialEq, Eq)]
struct Mapping<Q> {
    /// Filter and prefix of the side that a topic comes from.
    filter: TopicFilter,
    from: String,
    /// Prefix of the side that it goes to.
    to: String,
    qos: Q,
    retain: bool,
    max_age: Option<Duration>,
    place: SecretPlace,
}

/// Where a message goes, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    /// Topic there.
    pub(crate) topic: String,
    /// QoS there.
    pub(crate) qos: OutQos,
    /// Whether the retain flag is kept.
    pub(crate) retain: bool,
    /// An older message does not go.
    pub(crate) max_age: Option<Duration>,
}

impl<Q: Copy> Mapping<Q> {
    fn map(&self, topic: &str) -> String {
        // `a/#` selects `a` too, which does not begin with `a/`: it is taken as it is
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
    /// The rules that these settings state.
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
            })
        });
        fn inbound<Q>(rule: &Rule<Q>, qos: Qos) -> Option<Mapping<Qos>> {
            let filter = TopicFilter::new(rule.remote_filter()).ok()?;
            Some(Mapping {
                filter,
                from: rule.remote_prefix.clone(),
                to: rule.local_prefix.clone(),
                qos,
                retain: rule.retain,
                max_age: None,
                place: rule.place.clone(),
            })
        }
        let plain = settings.inbound.iter().filter_map(|rule| inbound(rule, rule.qos));
        let both = settings.both.iter().filter_map(|rule| inbound(rule, rule.qos_in()));
        let mut rules = UpstreamRules {
            out: out.collect(),
            inbound: plain.chain(both).collect(),
            reserved: settings.reserved.clone(),
        };
        // stable: those with a prefix first, otherwise as they stand in the configuration
        rules.out.sort_by_key(|mapping| mapping.from.is_empty() && mapping.to.is_empty());
        rules.inbound.sort_by_key(|mapping| mapping.from.is_empty() && mapping.to.is_empty());
        rules
    }

    /// Whether messages go up at QoS 2.
    pub(crate) fn is_exact(&self) -> bool {
        self.out.iter().any(|mapping| mapping.qos == OutQos::ExactlyOnce)
    }

    /// Where a message published here goes there, and how; `None` if it does not.
    pub(crate) fn outgoing(&self, topic: &str) -> Option<Target> {
        let (topic, rule) = first(&self.out, topic)?;
        Some(Target { topic, qos: rule.qos, retain: rule.retain, max_age: rule.max_age })
    }

    /// Where a message that came from there goes here, the highest QoS it keeps, and whether it keeps the retain flag;
    /// `None` if it does not.
    pub(crate) fn incoming(&self, topic: &str) -> Option<(String, Qos, bool)> {
        let (topic, rule) = first(&self.inbound, topic)?;
        (!self.reserved.contains(&topic)).then_some((topic, rule.qos, rule.retain))
    }

    /// Where the rules stand that a remote filter comes from.
    pub(crate) fn place_of(&self, remote: &TopicFilter) -> String {
        let places = self.inbound.iter().filter(|mapping| mapping.filter == *remote);
        places.map(|mapping| mapping.place.to_string()).collect::<Vec<_>>().join(", ")
    }

    /// What is to be kept for this upstream.
    pub(crate) fn local_filters(&self) -> Vec<TopicFilter> {
        let mut filters: Vec<_> = self.out.iter().map(|mapping| mapping.filter.clone()).collect();
        filters.sort();
        filters.dedup();
        filters
    }

    /// What surely arrives there under the topic that it has here; nothing if only some of it does.
    pub(crate) fn carried(&self) -> Vec<TopicFilter> {
        let is_kept = |mapping: &Mapping<OutQos>| mapping.from == mapping.to && mapping.qos != OutQos::AtMostOnce;
        if self.out.iter().all(is_kept) { self.local_filters() } else { Vec::new() }
    }

    /// What is to be subscribed to there: every filter once, at the highest QoS that a rule asks for.
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
    // the rest of a topic alone may be empty
    check_topic(&mapped).is_ok().then_some((mapped, mapping))
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
}

//! Finds out which topics two filters share, and which rules of an upstream would loop.

use super::{Protocol, Rule, SecretPlace, UpstreamPlace, UpstreamSettings};

/// Whether at least one topic matches both filters [MQTT-4.7.1, 4.7.2]. The empty text, which is no topic, counts as one,
/// because `/#` and `+` have nothing else in common.
pub fn filters_overlap(a: &str, b: &str) -> bool {
    // a filter that begins with a wildcard matches no topic that begins with '$'
    let apart = |a: &str, b: &str| a.starts_with(['+', '#']) && b.starts_with('$');
    if apart(a, b) || apart(b, a) {
        return false;
    }
    let (mut a, mut b) = (a.split('/'), b.split('/'));
    loop {
        match (a.next(), b.next()) {
            (None, None) | (Some("#"), _) | (_, Some("#")) => return true,
            (Some(x), Some(y)) if x == "+" || y == "+" || x == y => {}
            _ => return false,
        }
    }
}

/// The filters of a rule here and at the upstream, and its place in the configuration.
fn sides<Q>(rule: &Rule<Q>) -> (String, String, &SecretPlace) {
    (rule.local_filter(), rule.remote_filter(), &rule.place)
}

/// The pairs of rules that would loop with MQTT 3.1.1, where the upstream returns what it was sent. A loop is a message that
/// is sent by a rule of `to` and comes back by one of `back` to a topic from which it would be sent again. The two may
/// be one upstream, or two at one broker. A rule for both directions loops with itself. With version 5 the no local
/// option prevents this, and between two upstreams the property that names the gateways that a message has passed.
pub(crate) fn loops<'a>(
    to: &'a UpstreamSettings,
    back: &'a UpstreamSettings,
) -> Vec<(&'a SecretPlace, &'a SecretPlace)> {
    let out: Vec<_> = to.out.iter().chain(&to.both).map(sides).collect();
    let inbound: Vec<_> = back.inbound.iter().map(sides).chain(back.both.iter().map(sides)).collect();
    let mut pairs = Vec::new();
    for (out_local, out_remote, out_place) in &out {
        for (in_local, in_remote, in_place) in &inbound {
            if filters_overlap(out_remote, in_remote) && filters_overlap(out_local, in_local) {
                pairs.push((*out_place, *in_place));
            }
        }
    }
    pairs
}

/// The pairs of rules that would loop with MQTT 3.1.1 if the upstream is the gateway itself. What a rule sends is then published
/// here under its topic there, and what comes in was published here.
pub(crate) fn loops_with_itself(settings: &UpstreamSettings) -> Vec<(&SecretPlace, &SecretPlace)> {
    let turned = |(local, remote, place)| (remote, local, place);
    let out = settings.out.iter().chain(&settings.both).map(sides);
    let inbound = settings.inbound.iter().map(sides).chain(settings.both.iter().map(sides)).map(turned);
    // the filters of what a rule takes and of what it makes of that, both here
    let rules: Vec<_> = out.chain(inbound).collect();
    let mut pairs = Vec::new();
    for (_, made, first) in &rules {
        let again = rules.iter().filter(|(taken, ..)| filters_overlap(made, taken));
        pairs.extend(again.map(|(.., second)| (*first, *second)));
    }
    pairs
}

/// Says that a rule that goes out and one that comes in would loop, or one that goes both ways.
pub(crate) fn looping(out: &SecretPlace, inbound: &SecretPlace) -> String {
    if out.to_string() == inbound.to_string() {
        return format!("the rule at {out}, which goes both ways, would loop on MQTT 3.1.1");
    }
    format!("the rule at {out}, which goes out, and the rule at {inbound}, which comes in, would loop on MQTT 3.1.1")
}

/// Says that two rules, or one alone, would loop if the upstream is the gateway itself.
pub(crate) fn looping_here(first: &SecretPlace, second: &SecretPlace) -> String {
    match first.to_string() == second.to_string() {
        true => format!("the rule at {first} would loop on MQTT 3.1.1"),
        false => format!("the rules at {first} and {second} would loop on MQTT 3.1.1"),
    }
}

/// Whether two upstreams have an address in common, so that they may be one broker.
pub(crate) fn shares_address(a: &UpstreamSettings, b: &UpstreamSettings) -> bool {
    let places: Vec<_> = b.addresses.iter().map(UpstreamPlace::of).collect();
    a.addresses.iter().any(|address| places.contains(&UpstreamPlace::of(address)))
}

/// Whether a message could go round between two upstreams, or with one upstream given twice, if MQTT 3.1.1 were spoken.
pub(crate) fn need_v5(a: &UpstreamSettings, b: &UpstreamSettings) -> bool {
    shares_address(a, b) && (!loops(a, b).is_empty() || !loops(b, a).is_empty())
}

/// Whether the upstream is this gateway and a message could go round if MQTT 3.1.1 were spoken.
pub(crate) fn returns(upstream: &UpstreamSettings) -> bool {
    upstream.is_own && !loops_with_itself(upstream).is_empty()
}

/// Keeps each upstream that may choose its version from falling back to MQTT 3.1.1 if its rules would then loop, with each
/// other or with the rules of another upstream, or because it is this gateway.
pub(crate) fn set_v5_only(upstreams: &mut [UpstreamSettings]) {
    for at in 0..upstreams.len() {
        let upstream = &upstreams[at];
        let is_needed = returns(upstream) || upstreams.iter().any(|other| need_v5(upstream, other));
        upstreams[at].v5_only = upstream.protocol == Protocol::Auto && is_needed;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{Qos, matches};
    use crate::upstream::settings::{OutQos, UpstreamAddress};
    use proptest::prelude::*;

    #[test]
    fn filters_that_share_a_topic_overlap() {
        for (a, b, expected) in [
            ("a", "a", true),
            ("a", "b", false),
            ("a", "a/", false),
            ("a/#", "a", true),
            ("a/#", "a/b/c", true),
            ("a/#", "ab", false),
            ("a/+", "a", false),
            ("a/+", "a/", true),
            ("+/b", "a/+", true),
            ("+/b", "a/c", false),
            ("a/+/c", "a/b/#", true),
            ("a/+/c", "a/b", false),
            ("#", "+", true),
            ("#", "$SYS/#", false),
            ("+/x", "$SYS/x", false),
            ("$SYS/#", "$SYS/broker/+", true),
            ("a/#", "a/$x", true),
        ] {
            assert_eq!(filters_overlap(a, b), expected, "{a} {b}");
            assert_eq!(filters_overlap(b, a), expected, "{b} {a}");
        }
    }

    fn filter() -> impl Strategy<Value = String> {
        let level = prop_oneof![Just("a"), Just("b"), Just("+"), Just(""), Just("$s")];
        (prop::collection::vec(level, 1..4), any::<bool>())
            .prop_map(|(levels, hash)| levels.join("/") + if hash { "/#" } else { "" })
            .prop_filter("not a filter", |filter| !filter.is_empty())
    }

    proptest! {
        #[test]
        fn what_both_filters_select_makes_them_overlap(a in filter(), b in filter()) {
            let levels = ["a", "b", "", "$s", "c"];
            let mut shared = false;
            let mut topics: Vec<String> = levels.iter().map(|level| (*level).into()).collect();
            for _ in 0..4 {
                shared |= topics.iter().any(|topic| matches(&a, topic) && matches(&b, topic));
                topics = topics.iter().flat_map(|topic| levels.map(|level| format!("{topic}/{level}"))).collect();
            }
            prop_assert_eq!(filters_overlap(&a, &b), shared, "{} {}", a, b);
        }
    }

    fn rule<Q>(filter: &str, local: &str, remote: &str, qos: Q) -> Rule<Q> {
        let place = SecretPlace::new("f", 1);
        Rule {
            topic_filter: filter.into(),
            local_prefix: local.into(),
            remote_prefix: remote.into(),
            qos,
            retain: true,
            max_age: None,
            place,
        }
    }

    #[test]
    fn one_broker_is_known_by_all_its_names() {
        let at = |addresses: &[&str]| {
            let addresses = addresses.iter().map(|text| UpstreamAddress::parse(text).unwrap()).collect();
            UpstreamSettings::new("u", addresses, "c")
        };
        for (other, is_shared) in [
            ("mqtt://127.0.0.1", true),
            ("mqtts://LOCALHOST.:1883", true),
            ("ws://[::1]:1883/mqtt", true),
            ("mqtt://localhost:1884", false),
            ("mqtt://b:1885", true),
            ("mqtt://b", false),
        ] {
            assert_eq!(
                shares_address(&at(&["mqtt://localhost", "mqtt://B:1885"]), &at(&["mqtt://c", other])),
                is_shared
            );
        }
    }

    #[test]
    fn rules_loop_when_both_sides_overlap() {
        for (out, inbound, count) in [
            (("loft/#", "", "sites/"), ("commands/#", "", "sites/loft/"), 0),
            (("loft/#", "", "sites/"), ("#", "mirror/", "sites/"), 0),
            (("loft/#", "", ""), ("loft/+", "", ""), 1),
            (("#", "", "sites/loft/"), ("#", "", "sites/"), 1),
            (("", "a", "b"), ("", "a", "b"), 1),
            (("", "a", "b"), ("", "b", "a"), 0),
        ] {
            let mut upstream = UpstreamSettings::new("u", Vec::new(), "c");
            upstream.out.push(rule(out.0, out.1, out.2, OutQos::Keep));
            upstream.inbound.push(rule(inbound.0, inbound.1, inbound.2, Qos::AtLeastOnce));
            assert_eq!(loops(&upstream, &upstream).len(), count, "{out:?} {inbound:?}");
        }
        let mut upstream = UpstreamSettings::new("u", Vec::new(), "c");
        upstream.both.push(rule("a/#", "", "", OutQos::Keep));
        assert_eq!(loops(&upstream, &upstream).len(), 1);
    }
}

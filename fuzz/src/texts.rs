//! Targets for topics and topic filters, rules, durations, sizes, addresses, and the properties of messages.

use pigateway::access::settings::{AccessRule, is_client_id_pattern, is_user_name};
use pigateway::config::units::{parse_duration, parse_size, show_duration, show_size};
use pigateway::exchange::filters::{FilterTree, MAX_LEVELS};
use pigateway::exchange::meter::Walk;
use pigateway::message::{MessageRef, TopicFilter, check_filter, check_topic, covers, matches, overlap, via};
use pigateway::net::address::Address;
use pigateway::net::forwarded::Network;
use pigateway::upstream::discovery::{Forwarded, forwarded};
use pigateway::upstream::properties::{down, kept, up};
use pigateway::upstream::settings::overlap::filters_overlap;
use pigateway::upstream::settings::{Proxy, Rate, UpstreamAddress};

/// Splits the input into two texts that are separated by a line feed, and the bytes behind a second line feed.
pub(super) fn texts(data: &[u8]) {
    let mut parts = data.splitn(3, |byte| *byte == b'\n');
    let text = |part: Option<&'_ [u8]>| part.and_then(|part| std::str::from_utf8(part).ok().map(str::to_owned));
    let (first, second) = (text(parts.next()), text(parts.next()));
    let (first, second) = (first.unwrap_or_default(), second.unwrap_or_default());
    topics(&first, &second);
    units(&first);
    properties(parts.next().unwrap_or(data));
    if let Forwarded::Changed(changed) = forwarded(data, |topic| Some(format!("x/{topic}")), Some("status")) {
        // a discovery message is still one after it was changed
        assert_ne!(forwarded(&changed, |topic| Some(topic.into()), None), Forwarded::AsItIs);
    }
}

fn topics(first: &str, second: &str) {
    let levels = |text: &str| text.split('/').count() <= MAX_LEVELS;
    if check_topic(first).is_ok() {
        assert!(check_filter(first).is_ok(), "a topic is a filter");
        assert!(matches(first, first) || first.is_empty());
    }
    if check_filter(first).is_err() {
        assert!(TopicFilter::new(first).is_err() && AccessRule::parse(first).is_err() || first.starts_with('!'));
        return;
    }
    assert!(covers(first, first) && overlap(first, first), "{first}");
    if check_filter(second).is_ok() {
        assert_eq!(overlap(first, second), overlap(second, first));
        assert_eq!(filters_overlap(first, second), filters_overlap(second, first));
        if covers(first, second) {
            assert!(overlap(first, second), "{first} covers {second}");
        }
    }
    if check_topic(second).is_ok() && levels(first) && levels(second) {
        // a filter matches the topics of filters that it covers, and the tree of filters agrees
        assert_eq!(matches(first, second), covers(first, second), "{first} {second}");
        let mut tree = FilterTree::default();
        tree.insert(first, 1_usize);
        tree.insert(second, 2);
        let mut found = Vec::new();
        tree.matches(second, &mut Walk::default(), |value| found.push(*value));
        found.sort_unstable();
        let expected: &[usize] = if matches(first, second) { &[1, 2] } else { &[2] };
        assert_eq!(found, expected, "{first} {second}");
        assert_eq!(tree.remove(first, &1), Some(1));
        assert_eq!(tree.remove(second, &2), Some(2));
        assert!(tree.is_empty());
    }
}

fn units(text: &str) {
    if let Some(duration) = parse_duration(text) {
        assert_eq!(parse_duration(&show_duration(duration)), Some(duration), "{text}");
    }
    if let Some(size) = parse_size(text) {
        assert_eq!(parse_size(&show_size(size)), Some(size), "{text}");
    }
    if let Some(rate) = Rate::parse(text) {
        assert!(rate.per_second() > 0.0 && rate.per_second().is_finite(), "{text}");
    }
    if let Some(address) = UpstreamAddress::parse(text) {
        let shown = address.to_string();
        let again = UpstreamAddress::parse(&shown);
        assert_eq!(again.map(|again| again.to_string()), Some(shown), "{text}");
    }
    if let Some(proxy) = Proxy::parse(text) {
        assert!(Proxy::parse(&proxy.to_string()).is_some(), "{text}");
    }
    if let Some(address) = Address::parse(text) {
        let shown = address.to_string();
        assert_eq!(Address::parse(&shown).map(|again| again.to_string()), Some(shown), "{text}");
    }
    if let Ok(rule) = AccessRule::parse(text) {
        assert_eq!(AccessRule::parse(&rule.to_string()), Ok(rule));
    }
    let _ = (Network::parse(text), is_user_name(text), is_client_id_pattern(text));
}

fn properties(bytes: &[u8]) {
    if let Some(message) = MessageRef::parse(bytes) {
        let whole = message.as_bytes();
        assert!(check_topic(message.topic()).is_ok() && whole.len() <= bytes.len());
        assert!(message.payload().len() + message.properties().len() + message.topic().len() <= whole.len());
    }
    let passed = kept(bytes);
    assert!(passed.len() <= bytes.len());
    assert_eq!(kept(&passed), passed, "what is passed on is passed on");
    let other = via::Id::parse("01234567");
    if let Ok(sent) = up(bytes, None, Some(7)) {
        assert!(via::names(&sent, via::Id::ours()));
        assert!(down(&sent, None).is_err(), "what has been here comes in again");
    }
    if let Ok(taken) = down(bytes, other) {
        assert!(other.is_some_and(|other| via::names(&taken, other)));
    }
}

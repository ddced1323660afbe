//! The rules for topics and topic filters: which are valid, and which filter matches which topic.

use std::fmt;

/// Why a string is not a topic or not a topic filter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TopicError {
    /// It is empty; at least one character is required [MQTT-4.7.3-1].
    #[error("is empty")]
    Empty,
    /// It is longer than 65,535 bytes [MQTT-4.7.3-3].
    #[error("is longer than 65535 bytes")]
    TooLong,
    /// It contains U+0000 [MQTT-4.7.3-2].
    #[error("contains a NUL character")]
    Nul,
    /// A topic contains a wildcard [MQTT-3.3.2-2].
    #[error("contains a wildcard ('+' or '#')")]
    Wildcard,
    /// `#` is not alone in the last level [MQTT-4.7.1-1].
    #[error("has a '#' that is not the whole last level")]
    MisplacedHash,
    /// `+` is not alone in its level [MQTT-4.7.1-2].
    #[error("has a '+' that is not a whole level")]
    MisplacedPlus,
    /// A shared subscription is not `$share/{name}/{filter}` with a plain, non-empty name [MQTT-4.8.2-1].
    #[error("is not of the form $share/NAME/FILTER")]
    BadShare,
}

/// Checks that `topic` is a topic: a name without wildcards that a message can carry [MQTT-4.7.3].
pub fn check_topic(topic: &str) -> Result<(), TopicError> {
    if topic.is_empty() {
        return Err(TopicError::Empty);
    }
    if topic.len() > usize::from(u16::MAX) {
        return Err(TopicError::TooLong);
    }
    for byte in topic.bytes() {
        match byte {
            0 => return Err(TopicError::Nul),
            b'+' | b'#' => return Err(TopicError::Wildcard),
            _ => {}
        }
    }
    Ok(())
}

/// A topic of this many levels visits few nodes of a tree of filters, whatever filters there are: one for each level, twice
/// as many at each wildcard, so fewer than 256.
pub(crate) const USUAL_LEVELS: usize = 7;

/// The number of levels of a topic or a topic filter.
pub(crate) fn levels(topic: &str) -> usize {
    1 + topic.bytes().filter(|byte| *byte == b'/').count()
}

/// Checks that `filter` is a topic filter [MQTT-4.7.1]; a shared subscription is checked by its inner filter.
pub fn check_filter(filter: &str) -> Result<(), TopicError> {
    if filter.is_empty() {
        return Err(TopicError::Empty);
    }
    if filter.len() > usize::from(u16::MAX) {
        return Err(TopicError::TooLong);
    }
    if filter.bytes().any(|byte| byte == 0) {
        return Err(TopicError::Nul);
    }
    let mut levels = filter.split('/').peekable();
    while let Some(level) = levels.next() {
        if level.contains('#') && (level != "#" || levels.peek().is_some()) {
            return Err(TopicError::MisplacedHash);
        }
        if level.contains('+') && level != "+" {
            return Err(TopicError::MisplacedPlus);
        }
    }
    Ok(())
}

/// Whether `filter` matches `topic` [MQTT-4.7.1, 4.7.2]. A filter that begins with a wildcard matches no topic that begins
/// with `$`.
pub fn matches(filter: &str, topic: &str) -> bool {
    if topic.starts_with('$') && filter.starts_with(['+', '#']) {
        return false;
    }
    let mut levels = topic.split('/');
    for wanted in filter.split('/') {
        if wanted == "#" {
            return true;
        }
        match levels.next() {
            Some(level) if wanted == "+" || wanted == level => {}
            _ => return false,
        }
    }
    levels.next().is_none()
}

/// Whether at least one topic matches both filters. The rule about `$` is ignored.
pub fn overlap(a: &str, b: &str) -> bool {
    let (mut left, mut right) = (a.split('/'), b.split('/'));
    loop {
        match (left.next(), right.next()) {
            (Some("#"), _) | (_, Some("#")) | (None, None) => return true,
            (Some(x), Some(y)) if x == "+" || y == "+" || x == y => {}
            _ => return false,
        }
    }
}

/// Whether `wide` matches every topic that `narrow` matches.
pub fn covers(wide: &str, narrow: &str) -> bool {
    if narrow.starts_with('$') && wide.starts_with(['+', '#']) {
        return false;
    }
    let (mut outer, mut inner) = (wide.split('/'), narrow.split('/'));
    loop {
        match (outer.next(), inner.next()) {
            (Some("#"), _) | (None, None) => return true,
            (Some("+"), Some(level)) if level != "#" => {}
            (Some(x), Some(y)) if x == y => {}
            _ => return false,
        }
    }
}

macro_rules! validated_string {
    ($(#[$doc:meta])* $name:ident, $check:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $name(Box<str>);

        impl $name {
            /// Takes the string if it is valid.
            pub fn new(text: impl Into<Box<str>>) -> Result<Self, TopicError> {
                let text = text.into();
                $check(&text)?;
                Ok(Self(text))
            }

            pub(crate) fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl std::ops::Deref for $name {
            type Target = str;
            fn deref(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }
    };
}

validated_string!(
    /// A concrete topic, such as `loft/motion1`.
    Topic, check_topic
);
validated_string!(
    /// A topic filter, such as `loft/#`.
    TopicFilter, check_filter
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_select_topics_as_the_specification_says() {
        for (filter, topic, expected) in [
            ("sport/tennis/player1/#", "sport/tennis/player1", true),
            ("sport/tennis/player1/#", "sport/tennis/player1/score/wimbledon", true),
            ("#", "sport", true),
            ("#", "/", true),
            ("sport/tennis/+", "sport/tennis/player1", true),
            ("sport/tennis/+", "sport/tennis/player1/ranking", false),
            ("sport/+", "sport", false),
            ("sport/+", "sport/", true),
            ("+/+", "/finance", true),
            ("/+", "/finance", true),
            ("+", "/finance", false),
            ("#", "$SYS/broker/uptime", false),
            ("+/monitor/Clients", "$SYS/monitor/Clients", false),
            ("$SYS/#", "$SYS/broker/uptime", true),
            ("a//b", "a//b", true),
            ("a/+/b", "a//b", true),
            ("ä/#", "ä/b", true),
            ("a", "A", false),
        ] {
            assert_eq!(matches(filter, topic), expected, "{filter} {topic}");
        }
    }

    #[test]
    fn filters_are_compared() {
        for (a, b, overlapping, a_covers_b) in [
            ("a/#", "a/b", true, true),
            ("a/#", "a", true, true),
            ("a/b", "a/#", true, false),
            ("+/b", "a/+", true, false),
            ("+/+", "a/+", true, true),
            ("+/+", "a/#", true, false),
            ("#", "a/+/c", true, true),
            ("a/b", "a/c", false, false),
            ("a/+", "a", false, false),
            ("a/+/#", "a", false, false),
            ("a/b", "a/b", true, true),
            ("#", "$SYS/#", true, false),
            ("$SYS/#", "$SYS/broker/+", true, true),
        ] {
            assert_eq!((overlap(a, b), overlap(b, a)), (overlapping, overlapping), "{a} {b}");
            assert_eq!(covers(a, b), a_covers_b, "{a} {b}");
        }
    }

    #[test]
    fn topics_and_filters_are_validated() {
        assert!(Topic::new("a//b c/ü").is_ok());
        assert_eq!(Topic::new(""), Err(TopicError::Empty));
        assert_eq!(Topic::new("a/+"), Err(TopicError::Wildcard));
        assert_eq!(Topic::new("a\0"), Err(TopicError::Nul));
        assert_eq!(Topic::new("x".repeat(65_536)), Err(TopicError::TooLong));
        assert!(TopicFilter::new("+/a/#").is_ok());
        assert_eq!(TopicFilter::new("a#"), Err(TopicError::MisplacedHash));
        assert_eq!(TopicFilter::new("#/a"), Err(TopicError::MisplacedHash));
        assert_eq!(TopicFilter::new("a+/b"), Err(TopicError::MisplacedPlus));
    }
}

//! The gateways that a message has passed through. A message never enters the same gateway twice; otherwise gateways that
//! are connected in a ring, or are each other's upstream, would send it round for ever.
//!
//! The ids are in an MQTT 5 user property, separated by commas. An id belongs to a running process: nothing has to be
//! configured, and two gateways with the same name have different ids.

use std::sync::OnceLock;

/// Name of the user property, used in messages and in the CONNECT and CONNACK of gateways.
pub(crate) const NAME: &str = "pigateway-via";
/// Most gateways that a message may pass through.
pub(crate) const MOST: usize = 8;

const USER_PROPERTY: u8 = 38;

/// The id of a running gateway: 8 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Id([u8; 8]);

impl Id {
    /// The id of this gateway: random, and the same as long as the process runs.
    pub fn ours() -> Id {
        static OURS: OnceLock<Id> = OnceLock::new();
        *OURS.get_or_init(|| Id::new(getrandom::u32().unwrap_or_else(|_| std::process::id())))
    }

    fn new(number: u32) -> Id {
        let mut digits = [0; 8];
        for (place, digit) in digits.iter_mut().enumerate() {
            *digit = b"0123456789abcdef"[(number >> (28 - 4 * place) & 15) as usize];
        }
        Id(digits)
    }

    /// Reads an id from its text form; `None` if it is not one.
    pub fn parse(text: &str) -> Option<Id> {
        let digits: [u8; 8] = text.as_bytes().try_into().ok()?;
        digits.iter().all(u8::is_ascii_hexdigit).then_some(Id(digits))
    }

    pub(crate) fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

/// The error that the message has passed through as many gateways as are allowed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the message has passed through too many gateways")]
pub(crate) struct TooMany;

/// Iterates over encoded PUBLISH properties: the identifier and all bytes of each. It ends early if they are malformed.
pub(crate) struct Properties<'a>(pub(crate) &'a [u8]);

impl<'a> Iterator for Properties<'a> {
    type Item = (u8, &'a [u8]);

    fn next(&mut self) -> Option<(u8, &'a [u8])> {
        let id = *self.0.first()?;
        let len = 1 + match id {
            1 => 1,
            2 => 4,
            35 => 2,
            3 | 8 | 9 => string(self.0, 1)?,
            USER_PROPERTY => {
                let name = string(self.0, 1)?;
                name + string(self.0, 1 + name)?
            }
            11 => self.0[1..].iter().position(|byte| byte & 0x80 == 0)? + 1,
            _ => return None,
        };
        let (property, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some((id, property))
    }
}

/// The length of the string at this offset, including its length field of two bytes.
fn string(bytes: &[u8], at: usize) -> Option<usize> {
    Some(2 + usize::from(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?])))
}

/// The gateways' ids, if this property has them.
fn ids(id: u8, property: &[u8]) -> Option<&[u8]> {
    let name = property.get(1..3).filter(|_| id == USER_PROPERTY)?;
    let rest = property[3..].strip_prefix(NAME.as_bytes()).filter(|_| name == (NAME.len() as u16).to_be_bytes())?;
    rest.get(2..)
}

/// Whether this property has the gateways' ids.
pub(crate) fn is_way(id: u8, property: &[u8]) -> bool {
    ids(id, property).is_some()
}

/// Whether a message with these encoded properties has passed through this gateway.
pub fn names(properties: &[u8], gateway: Id) -> bool {
    let mut found = Properties(properties).filter_map(|(id, property)| ids(id, property));
    found.any(|ids| ids.split(|byte| *byte == b',').any(|id| id == gateway.0))
}

/// Adds this gateway to the ids in encoded properties.
pub(crate) fn append(properties: &mut Vec<u8>, gateway: Id) -> Result<(), TooMany> {
    let mut kept = Vec::with_capacity(properties.len() + 40);
    let mut passed = Vec::with_capacity(MOST * 9);
    for (id, property) in Properties(properties) {
        match ids(id, property) {
            Some(ids) => {
                passed.extend_from_slice(ids);
                passed.push(b',');
            }
            None => kept.extend_from_slice(property),
        }
    }
    if passed.iter().filter(|byte| **byte == b',').count() >= MOST {
        return Err(TooMany);
    }
    passed.extend_from_slice(&gateway.0);
    kept.push(USER_PROPERTY);
    for text in [NAME.as_bytes(), &passed] {
        kept.extend(u16::try_from(text.len()).map_err(|_| TooMany)?.to_be_bytes());
        kept.extend_from_slice(text);
    }
    *properties = kept;
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ids_are_eight_digits() {
        assert_eq!(Id::new(0x0123_abcd).as_str(), "0123abcd");
        assert_eq!(Id::parse("0123abcd"), Some(Id::new(0x0123_abcd)));
        assert_eq!([Id::parse("0123abc"), Id::parse("0123abcx"), Id::parse("")], [None; 3]);
        assert_eq!(Id::ours(), Id::ours());
    }

    #[test]
    fn gateways_are_noted_up_to_a_bound() {
        let other = [38, 0, 1, b'k', 0, 1, b'v'];
        let mut properties = other.to_vec();
        for number in 0..MOST as u32 {
            assert!(!names(&properties, Id::new(number)));
            append(&mut properties, Id::new(number)).unwrap();
            assert!((0..=number).all(|passed| names(&properties, Id::new(passed))));
        }
        assert!(properties.starts_with(&other));
        assert_eq!(Properties(&properties).count(), 2, "one list");
        let full = properties.clone();
        assert_eq!(append(&mut properties, Id::new(99)), Err(TooMany));
        assert_eq!(properties, full);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let mut properties = bytes.clone();
            names(&bytes, Id::ours());
            if append(&mut properties, Id::ours()).is_ok() {
                prop_assert!(names(&properties, Id::ours()));
            }
        }
    }
}

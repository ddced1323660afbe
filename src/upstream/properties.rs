//! MQTT 5 PUBLISH properties as they are encoded [MQTT-3.3.2.3]: only what passing them on needs.

/// Name of the user property that counts the gateways a message has passed through, so that a loop of gateways ends.
pub const HOPS: &str = "pigateway-hops";

const MESSAGE_EXPIRY: u8 = 2;
const SUBSCRIPTION_ID: u8 = 11;
const TOPIC_ALIAS: u8 = 35;
const USER_PROPERTY: u8 = 38;

/// The properties one by one: identifier and all bytes of each. Ends early where they are malformed.
struct Properties<'a>(&'a [u8]);

impl<'a> Iterator for Properties<'a> {
    type Item = (u8, &'a [u8]);

    fn next(&mut self) -> Option<(u8, &'a [u8])> {
        let id = *self.0.first()?;
        let len = 1 + match id {
            1 => 1,
            MESSAGE_EXPIRY => 4,
            TOPIC_ALIAS => 2,
            3 | 8 | 9 => string(self.0, 1)?,
            USER_PROPERTY => {
                let name = string(self.0, 1)?;
                name + string(self.0, 1 + name)?
            }
            SUBSCRIPTION_ID => self.0[1..].iter().position(|byte| byte & 0x80 == 0)? + 1,
            _ => return None,
        };
        let (property, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some((id, property))
    }
}

/// Length of the string at this place, its own two bytes included.
fn string(bytes: &[u8], at: usize) -> Option<usize> {
    Some(2 + usize::from(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?])))
}

/// The count of gateways, if this property is that.
fn hops_in(id: u8, property: &[u8]) -> Option<u8> {
    let rest = property.get(3..).filter(|_| id == USER_PROPERTY)?.strip_prefix(HOPS.as_bytes())?;
    if property.get(1..3)? != (HOPS.len() as u16).to_be_bytes() {
        return None;
    }
    // whoever writes nonsense there has passed it through often enough
    Some(std::str::from_utf8(rest.get(2..)?).ok()?.parse().unwrap_or(u8::MAX))
}

/// The properties that concern the message and not its way (no alias, no subscription ids; expiry and hops travel
/// apart), and how many gateways it says to have passed through.
pub fn split(encoded: &[u8]) -> (Vec<u8>, u8) {
    let mut kept = Vec::with_capacity(encoded.len());
    let mut hops = 0;
    for (id, property) in Properties(encoded) {
        match hops_in(id, property) {
            Some(count) => hops = hops.max(count),
            None if [MESSAGE_EXPIRY, SUBSCRIPTION_ID, TOPIC_ALIAS].contains(&id) => {}
            None => kept.extend_from_slice(property),
        }
    }
    (kept, hops)
}

/// Adds a count of gateways and what is left of the expiry interval.
pub fn join(properties: &mut Vec<u8>, hops: u8, expiry: Option<u32>) {
    if let Some(seconds) = expiry {
        properties.push(MESSAGE_EXPIRY);
        properties.extend(seconds.to_be_bytes());
    }
    let count = hops.to_string();
    properties.push(USER_PROPERTY);
    for text in [HOPS, &count] {
        properties.extend((text.len() as u16).to_be_bytes());
        properties.extend(text.as_bytes());
    }
}

/// Bytes of a number as MQTT encodes lengths [MQTT-1.5.5].
pub fn varint(mut number: usize) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(4);
    loop {
        let low = (number & 0x7f) as u8;
        number >>= 7;
        if number == 0 {
            bytes.push(low);
            return bytes;
        }
        bytes.push(low | 0x80);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_concerns_the_way_is_left_out() {
        let mut all = vec![1, 1]; // payload format indicator
        all.extend([3, 0, 1, b'x']); // content type
        all.extend([11, 0x81, 1]); // subscription id
        all.extend([35, 0, 9]); // topic alias
        all.extend([9, 0, 2, 7, 8]); // correlation data
        all.extend([38, 0, 1, b'k', 0, 1, b'v']); // user property
        join(&mut all, 3, Some(60));
        let (kept, hops) = split(&all);
        let expected = [1, 1, 3, 0, 1, b'x', 9, 0, 2, 7, 8, 38, 0, 1, b'k', 0, 1, b'v'];
        assert_eq!((kept.as_slice(), hops), (&expected[..], 3));
    }

    #[test]
    fn hops_that_are_no_number_are_too_many() {
        let mut property = vec![38, 0, HOPS.len() as u8];
        property.extend(HOPS.as_bytes());
        property.extend([0, 2, b'-', b'1']);
        assert_eq!(split(&property), (vec![], u8::MAX));
    }

    #[test]
    fn lengths() {
        for (number, bytes) in [(0, vec![0]), (127, vec![127]), (128, vec![0x80, 1]), (16_384, vec![0x80, 0x80, 1])] {
            assert_eq!(varint(number), bytes);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            prop_assert!(split(&bytes).0.len() <= bytes.len());
        }
    }
}

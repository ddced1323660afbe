//! Encoded properties of MQTT 5 PUBLISH packets [MQTT-3.3.2.3], as far as forwarding needs them.

use std::sync::OnceLock;

use bytes::BufMut;

use crate::message::via::{self, Properties};
use crate::status::ledger::DropReason;

const MESSAGE_EXPIRY: u8 = 2;
const SUBSCRIPTION_ID: u8 = 11;
/// Identifier of the topic alias [MQTT-3.3.2.3.4].
pub(crate) const TOPIC_ALIAS: u8 = 35;

/// The properties that belong to the message and not to one connection: without alias and subscription ids. The expiry
/// interval is handled separately.
pub fn kept(encoded: &[u8]) -> Vec<u8> {
    let mut kept = Vec::with_capacity(encoded.len());
    for (id, property) in Properties(encoded) {
        if ![MESSAGE_EXPIRY, SUBSCRIPTION_ID, TOPIC_ALIAS].contains(&id) {
            kept.extend_from_slice(property);
        }
    }
    kept
}

/// The properties without the gateways that the message has passed through.
pub(crate) fn without_way(encoded: &[u8]) -> Vec<u8> {
    let of_message = Properties(encoded).filter(|(id, property)| !via::is_way(*id, property));
    of_message.flat_map(|(_, property)| property).copied().collect()
}

/// The subscription identifiers of a message.
pub(crate) fn subscription_ids(encoded: &[u8]) -> impl Iterator<Item = u32> {
    Properties(encoded).filter(|(id, _)| *id == SUBSCRIPTION_ID).map(|(_, property)| {
        let digits = property[1..].iter().rev();
        digits.fold(0, |number: u32, byte| number << 7 | u32::from(byte & 0x7f))
    })
}

/// Adds the rest of the expiry interval, in seconds.
pub(crate) fn add_expiry(properties: &mut Vec<u8>, seconds: u32) {
    properties.push(MESSAGE_EXPIRY);
    properties.extend(seconds.to_be_bytes());
}

/// The properties of a message for an upstream, which may be a gateway itself.
pub fn up(encoded: &[u8], upstream: Option<via::Id>, expiry: Option<u32>) -> Result<Vec<u8>, DropReason> {
    if encoded.is_empty() {
        // computed once, because most messages have only this property
        static OURS: OnceLock<Vec<u8>> = OnceLock::new();
        let mut properties = Vec::with_capacity(64);
        properties.extend_from_slice(OURS.get_or_init(|| {
            let mut ours = Vec::new();
            // one gateway is always below the limit
            let _ = via::append(&mut ours, via::Id::ours());
            ours
        }));
        expiry.into_iter().for_each(|seconds| add_expiry(&mut properties, seconds));
        return Ok(properties);
    }
    if upstream.is_some_and(|gateway| via::names(encoded, gateway)) {
        return Err(DropReason::CameFromThere);
    }
    if via::names(encoded, via::Id::ours()) {
        return Err(DropReason::Loop);
    }
    let mut properties = kept(encoded);
    via::append(&mut properties, via::Id::ours()).map_err(|via::TooMany| DropReason::Loop)?;
    if let Some(seconds) = expiry {
        add_expiry(&mut properties, seconds);
    }
    Ok(properties)
}

/// The properties of a message from an upstream, or why the message must not come in. An upstream does not add itself to a
/// message that it delivers to a subscription, so that is done here.
pub fn down(encoded: &[u8], upstream: Option<via::Id>) -> Result<Vec<u8>, DropReason> {
    if via::names(encoded, via::Id::ours()) {
        return Err(DropReason::CameFromThere);
    }
    let mut properties = kept(encoded);
    if let Some(gateway) = upstream.filter(|gateway| !via::names(encoded, *gateway)) {
        via::append(&mut properties, gateway).map_err(|via::TooMany| DropReason::Loop)?;
    }
    Ok(properties)
}

/// The id of the gateway that introduces itself in these user properties.
pub(crate) fn gateway_in(user: &[(String, String)]) -> Option<via::Id> {
    user.iter().find(|(name, _)| name == via::NAME).and_then(|(_, id)| via::Id::parse(id))
}

/// Appends a variable byte integer [MQTT-1.5.5].
pub(crate) fn put_varint(mut number: usize, out: &mut impl BufMut) {
    loop {
        let low = (number & 0x7f) as u8;
        number >>= 7;
        if number == 0 {
            return out.put_u8(low);
        }
        out.put_u8(low | 0x80);
    }
}

/// The number of bytes of a variable byte integer.
pub(crate) fn varint_len(number: usize) -> usize {
    match number {
        0..0x80 => 1,
        0x80..0x4000 => 2,
        0x4000..0x20_0000 => 3,
        _ => 4,
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
        add_expiry(&mut all, 60);
        let expected = [1, 1, 3, 0, 1, b'x', 9, 0, 2, 7, 8, 38, 0, 1, b'k', 0, 1, b'v'];
        assert_eq!(kept(&all), expected);
    }

    #[test]
    fn what_has_no_properties_names_this_gateway() {
        let mut ours = Vec::new();
        via::append(&mut ours, via::Id::ours()).unwrap();
        assert_eq!(up(&[], None, None), Ok(ours.clone()));
        add_expiry(&mut ours, 9);
        assert_eq!(up(&[], Some(via::Id::ours()), Some(9)), Ok(ours));
    }

    #[test]
    fn lengths() {
        let numbers = [(0, vec![0]), (127, vec![127]), (128, vec![0x80, 1]), (16_383, vec![0xff, 0x7f])];
        for (number, bytes) in
            numbers.into_iter().chain([(16_384, vec![0x80, 0x80, 1]), (1 << 21, vec![0x80, 0x80, 0x80, 1])])
        {
            let mut out = Vec::new();
            put_varint(number, &mut out);
            assert_eq!((varint_len(number), out), (bytes.len(), bytes));
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            prop_assert!(kept(&bytes).len() <= bytes.len());
        }
    }
}

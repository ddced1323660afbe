//! Packets as the tests build and read them, independent of the code under test.

use std::fmt;

/// MQTT protocol versions by their level.
pub const V31: u8 = 3;
/// MQTT 3.1.1.
pub const V311: u8 = 4;
/// MQTT 5.
pub const V5: u8 = 5;

/// Properties of MQTT 5, encoded one after the other.
#[derive(Clone, Debug, Default)]
pub struct Properties(pub Vec<u8>);

impl Properties {
    /// None.
    pub fn new() -> Properties {
        Properties::default()
    }

    /// One byte.
    pub fn byte(self, id: u8, value: u8) -> Properties {
        self.raw(id, &[value])
    }

    /// Two bytes.
    pub fn two(self, id: u8, value: u16) -> Properties {
        self.raw(id, &value.to_be_bytes())
    }

    /// Four bytes.
    pub fn four(self, id: u8, value: u32) -> Properties {
        self.raw(id, &value.to_be_bytes())
    }

    /// A variable byte integer.
    pub fn variable(self, id: u8, value: usize) -> Properties {
        self.raw(id, &variable(value))
    }

    /// A string or binary data.
    pub fn text(self, id: u8, value: impl AsRef<[u8]>) -> Properties {
        self.raw(id, &binary(value.as_ref()))
    }

    /// A user property.
    pub fn user(self, name: &str, value: &str) -> Properties {
        self.raw(0x26, &[binary(name.as_bytes()), binary(value.as_bytes())].concat())
    }

    fn raw(mut self, id: u8, value: &[u8]) -> Properties {
        self.0.push(id);
        self.0.extend_from_slice(value);
        self
    }

    /// With their length in front.
    pub fn section(&self) -> Vec<u8> {
        [variable(self.0.len()), self.0.clone()].concat()
    }
}

/// A variable byte integer.
pub fn variable(mut value: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value > 0x7f {
        bytes.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

/// Bytes with a 16-bit length in front.
pub fn binary(bytes: &[u8]) -> Vec<u8> {
    [&(bytes.len() as u16).to_be_bytes(), bytes].concat()
}

/// A packet with this first byte.
pub fn packet(first: u8, body: &[&[u8]]) -> Vec<u8> {
    let body = body.concat();
    [vec![first], variable(body.len()), body].concat()
}

/// A SUBSCRIBE; with properties, one of MQTT 5.
pub fn subscribe(id: u16, filters: &[(&str, u8)], properties: Option<&Properties>) -> Vec<u8> {
    let section = properties.map(Properties::section).unwrap_or_default();
    let wanted = filters.iter().flat_map(|(filter, options)| [binary(filter.as_bytes()), vec![*options]].concat());
    packet(0x82, &[&id.to_be_bytes(), &section, &wanted.collect::<Vec<u8>>()])
}

/// A PUBLISH; `properties` only with MQTT 5.
pub fn publish(topic: &[u8], payload: &[u8], first: u8, id: Option<u16>, properties: Option<&Properties>) -> Vec<u8> {
    let id = id.map_or(Vec::new(), |id| id.to_be_bytes().into());
    let properties = properties.map_or(Vec::new(), Properties::section);
    packet(0x30 | first, &[&binary(topic), &id, &properties, payload])
}

/// A packet that the broker has sent.
#[derive(Clone, PartialEq, Eq)]
pub struct Packet {
    /// Type and flags.
    pub first: u8,
    /// All after the remaining length.
    pub body: Vec<u8>,
}

impl Packet {
    /// Takes the first packet out of what has arrived; `None` if it is not complete.
    pub fn take(input: &mut Vec<u8>) -> Option<Packet> {
        let mut len = 0;
        let mut at = 1;
        loop {
            let byte = *input.get(at)?;
            len |= usize::from(byte & 0x7f) << (7 * (at - 1));
            at += 1;
            if byte & 0x80 == 0 {
                break;
            }
        }
        if input.len() < at + len {
            return None;
        }
        let rest = input.split_off(at + len);
        let whole = std::mem::replace(input, rest);
        Some(Packet { first: whole[0], body: whole[at..].to_vec() })
    }

    /// The type.
    pub fn kind(&self) -> u8 {
        self.first >> 4
    }

    /// The packet id in front of the body.
    pub fn id(&self) -> u16 {
        u16::from_be_bytes([self.body[0], self.body[1]])
    }

    /// The reason code of an acknowledgement; 0 where it is left out.
    pub fn reason(&self) -> u8 {
        self.body.get(2).copied().unwrap_or(0)
    }
}

impl fmt::Debug for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02x} {:02x?}", self.first, self.body)
    }
}

/// A decoded property.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// Numbers of all sizes.
    Number(u32),
    /// Strings and binary data.
    Text(Vec<u8>),
    /// A user property.
    Pair(String, String),
}

/// Reads a body.
pub struct Reader<'a>(pub &'a [u8]);

impl<'a> Reader<'a> {
    /// The next bytes.
    pub fn take(&mut self, len: usize) -> &'a [u8] {
        let (head, tail) = self.0.split_at(len);
        self.0 = tail;
        head
    }

    /// A big-endian number.
    pub fn number(&mut self, len: usize) -> u32 {
        self.take(len).iter().fold(0, |number, byte| number << 8 | u32::from(*byte))
    }

    /// Bytes with a 16-bit length in front.
    pub fn binary(&mut self) -> Vec<u8> {
        let len = self.number(2) as usize;
        self.take(len).to_vec()
    }

    /// The same as text.
    pub fn text(&mut self) -> String {
        String::from_utf8(self.binary()).expect("UTF-8")
    }

    /// A variable byte integer.
    pub fn variable(&mut self) -> u32 {
        let mut value = 0;
        for shift in [0, 7, 14, 21] {
            let byte = self.number(1);
            value |= (byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return value;
            }
        }
        panic!("a variable byte integer without end");
    }

    /// The property section.
    pub fn properties(&mut self) -> Vec<(u8, Value)> {
        let len = self.variable() as usize;
        let mut section = Reader(self.take(len));
        let mut all = Vec::new();
        while !section.0.is_empty() {
            let id = section.number(1) as u8;
            let value = match id {
                0x01 | 0x17 | 0x19 | 0x24 | 0x25 | 0x28..=0x2a => Value::Number(section.number(1)),
                0x13 | 0x21..=0x23 => Value::Number(section.number(2)),
                0x02 | 0x11 | 0x18 | 0x27 => Value::Number(section.number(4)),
                0x0b => Value::Number(section.variable()),
                0x03 | 0x08 | 0x09 | 0x12 | 0x15 | 0x16 | 0x1a | 0x1c | 0x1f => Value::Text(section.binary()),
                0x26 => Value::Pair(section.text(), section.text()),
                other => panic!("the broker sends property {other:#x}"),
            };
            all.push((id, value));
        }
        all
    }
}

/// Finds properties by id.
pub trait Lookup {
    /// The first number with this id.
    fn number(&self, id: u8) -> Option<u32>;
    /// All of them.
    fn numbers(&self, id: u8) -> Vec<u32>;
    /// The first text with this id.
    fn text(&self, id: u8) -> Option<String>;
}

impl Lookup for [(u8, Value)] {
    fn number(&self, id: u8) -> Option<u32> {
        self.numbers(id).first().copied()
    }

    fn numbers(&self, id: u8) -> Vec<u32> {
        let number = |(known, value): &(u8, Value)| match value {
            Value::Number(number) if *known == id => Some(*number),
            _ => None,
        };
        self.iter().filter_map(number).collect()
    }

    fn text(&self, id: u8) -> Option<String> {
        self.iter().find_map(|(known, value)| match value {
            Value::Text(text) if *known == id => Some(String::from_utf8_lossy(text).into_owned()),
            _ => None,
        })
    }
}

/// A PUBLISH from the broker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publish {
    /// Topic; empty where an alias stands for it.
    pub topic: String,
    /// Payload.
    pub payload: Vec<u8>,
    /// QoS.
    pub qos: u8,
    /// Retain flag.
    pub retain: bool,
    /// Sent before.
    pub dup: bool,
    /// Packet id; 0 at QoS 0.
    pub id: u16,
    /// Properties.
    pub properties: Vec<(u8, Value)>,
}

impl Publish {
    /// Decodes it.
    pub fn read(packet: &Packet, version: u8) -> Publish {
        let mut reader = Reader(&packet.body);
        let qos = packet.first >> 1 & 3;
        let topic = reader.text();
        let id = if qos > 0 { reader.number(2) as u16 } else { 0 };
        let properties = if version == V5 { reader.properties() } else { Vec::new() };
        let payload = reader.0.to_vec();
        Publish { topic, payload, qos, retain: packet.first & 1 != 0, dup: packet.first & 8 != 0, id, properties }
    }

    /// The payload as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.payload).into_owned()
    }
}

/// Topics and payloads, as most assertions want them.
pub fn contents(messages: &[Publish]) -> Vec<(&str, String)> {
    messages.iter().map(|message| (message.topic.as_str(), message.text())).collect()
}

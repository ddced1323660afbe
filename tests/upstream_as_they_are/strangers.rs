//! Upstreams that are no MQTT brokers or are faulty: forbidden packets, false claims, and abrupt ends.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::played::{Heard, Played, Say};
use crate::support::packet::packet;
use crate::support::{Connect, Gateway, http, wait_until};
use crate::{publish, start};

const TEXTS: [&str; 5] = ["one", "two", "three", "four", "five"];
/// The longest wait between attempts, which is reached in the end. Each wait may be shortened by half.
const RETRY_MAX: Duration = Duration::from_millis(1000);

/// The answers of a faulty upstream while it is faulty. The second field is the flag that keeps it so.
type Script = Box<dyn Fn(&Heard, &Arc<AtomicBool>) -> Say + Send + Sync>;

/// What happens to messages while the fault lasts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Then {
    /// They wait, and this reason is reported.
    Wait(&'static str),
    /// They wait, and no reason need be reported.
    WaitQuietly,
    /// They arrive nevertheless.
    Arrive,
}

struct Stranger {
    name: &'static str,
    protocol: u8,
    keys: &'static str,
    then: Then,
    script: Script,
}

fn stranger(
    (name, protocol): (&'static str, u8),
    then: Then,
    script: impl Fn(&Heard, &Arc<AtomicBool>) -> Say + Send + Sync + 'static,
) -> Stranger {
    Stranger { name, protocol, keys: "", then, script: Box::new(script) }
}

/// An upstream that answers this to CONNECT.
fn at_connect(who: (&'static str, u8), then: Then, say: impl Fn() -> Say + Send + Sync + 'static) -> Stranger {
    stranger(who, then, move |heard, _| if heard.is_connect() { say() } else { Say::Usual })
}

/// An upstream that accepts the connection and also sends these bytes.
fn also(who: (&'static str, u8), then: Then, bytes: &'static [u8]) -> Stranger {
    at_connect(who, then, move || Say::Also(bytes.to_vec()))
}

/// An upstream that sends these bytes instead of CONNACK and closes the connection.
fn last(who: (&'static str, u8), then: Then, bytes: &'static [u8]) -> Stranger {
    at_connect(who, then, move || Say::Last(bytes.to_vec()))
}

/// A CONNACK of version 5 with these properties.
fn connack(reason: u8, properties: &[u8]) -> Vec<u8> {
    packet(0x20, &[&[0, reason], &[properties.len() as u8], properties])
}

/// An upstream that accepts with these properties.
fn accepting(name: &'static str, then: Then, properties: &'static [u8]) -> Stranger {
    at_connect((name, 5), then, move || Say::Instead(connack(0, properties)))
}

/// An upstream that refers to another server, which may be itself.
fn naming(name: &'static str, reason: u8, reference: &'static str) -> Stranger {
    let property = [&[0x1c, 0, reference.len() as u8][..], reference.as_bytes()].concat();
    let then = Then::Wait("which is gone to only if it stands in `addresses`");
    at_connect((name, 5), then, move || Say::Last(connack(reason, &property)))
}

/// Faults before the connection is accepted.
fn at_the_door() -> Vec<Stranger> {
    use Then::{Arrive, Wait, WaitQuietly};
    let mut all = vec![
        at_connect(("closes", 4), Wait("it closed the connection"), || Say::Close),
        at_connect(("resets", 5), WaitQuietly, || Say::Reset),
        at_connect(("in-pieces", 5), Arrive, || Say::Pieces),
        last(("http", 4), Wait("it"), b"HTTP/1.1 400 Bad Request\r\n\r\n"),
        last(("five-bytes", 4), Wait("not MQTT"), b"\x20\xff\xff\xff\xff\x01"),
        last(("no-connack", 5), Wait("not MQTT"), b"\x30\x05\0\x01a\0x"),
        last(("half-connack", 5), Wait("it closed the connection"), b"\x20\x03\0"),
        last(("refuses-4", 4), Wait("not authorized"), b"\x20\x02\0\x05"),
        last(("refuses-5", 5), Wait("not authorized"), b"\x20\x03\0\x87\0"),
        last(("away", 4), Wait("not available"), b"\x20\x02\0\x03"),
        naming("names-itself", 0x9c, "127.0.0.1"),
        naming("names-another", 0x9d, "192.0.2.1:1883"),
        naming("names-nonsense", 0x9c, "\u{1b}[2J\r\n#"),
        at_connect(("names-nobody", 5), Wait("no server"), || Say::Last(connack(0x9d, &[]))),
        accepting("receive-1", Arrive, &[0x21, 0, 1]),
        accepting("receive-0", Arrive, &[0x21, 0, 0]),
        accepting("packet-20", Wait("at most 20 bytes"), &[0x27, 0, 0, 0, 20]),
        accepting("packet-0", Wait("at most 0 bytes"), &[0x27, 0, 0, 0, 0]),
        accepting("qos-0", Arrive, &[0x24, 0]),
        accepting("no-retain", Arrive, &[0x25, 0]),
        accepting("no-wildcards", Arrive, &[0x28, 0, 0x29, 0, 0x2a, 0]),
        accepting("keep-alive-1", Arrive, &[0x13, 0, 1]),
        accepting("keep-alive-0", Arrive, &[0x13, 0, 0]),
        accepting("no-aliases", Arrive, &[0x22, 0, 0]),
        accepting("another-id", Arrive, b"\x12\0\x05other\x11\0\0\0\0"),
        at_connect(("remembers", 5), Arrive, || Say::Instead(packet(0x20, &[&[1, 0, 0]]))),
    ];
    let mut silent = at_connect(("silent", 5), Wait("it does not answer"), || Say::Nothing);
    silent.keys = "connect_timeout = \"2 s\"";
    all.push(silent);
    all
}

/// Faults after the connection was accepted.
fn within() -> Vec<Stranger> {
    use Then::{Arrive, Wait};
    vec![
        also(("connack-4", 4), Wait("a second CONNACK"), b"\x20\x02\0\0"),
        also(("connack-5", 5), Wait("a second CONNACK"), b"\x20\x03\0\0\0"),
        also(("connect", 4), Wait("it sent CONNECT"), b"\x10\x0d\0\x04MQTT\x04\x02\0\x3c\0\x01x"),
        also(("subscribe", 5), Wait("it sent SUBSCRIBE"), b"\x82\x07\0\x01\0\0\x01#\0"),
        also(("unsubscribe", 4), Wait("it sent UNSUBSCRIBE"), b"\xa2\x05\0\x01\0\x01#"),
        also(("pingreq", 4), Wait("it sent PINGREQ"), b"\xc0\0"),
        also(("auth", 5), Wait("it sent AUTH"), b"\xf0\x02\x18\0"),
        also(("type-0", 4), Wait("not MQTT"), b"\0\0"),
        also(("type-15", 4), Wait("not MQTT"), b"\xf0\0"),
        also(("huge", 4), Wait("268435460 bytes"), b"\x90\xff\xff\xff\x7f"),
        also(("qos-3", 4), Wait("not MQTT"), b"\x36\x06\0\x01a\0\x01x"),
        also(("empty-topic", 4), Wait("which is empty"), b"\x30\x03\0\0x"),
        also(("wildcard", 5), Wait("contains a wildcard"), b"\x32\x0b\0\x05dow/#\0\x01\0x"),
        also(("not-utf-8", 4), Wait("not MQTT"), b"\x30\x05\0\x02\xff\xfex"),
        also(("no-packet-id", 4), Wait("not MQTT"), b"\x32\x06\0\x01a\0\0x"),
        also(("alias", 5), Wait("topic alias"), b"\x30\x07\0\0\x03\x23\0\x01x"),
        also(("alias-0", 5), Wait("topic alias"), b"\x30\x08\0\x01a\x03\x23\0\0x"),
        also(("leaves", 5), Wait("server shutting down"), b"\xe0\x02\x8b\0"),
        also(("is-full", 5), Wait("quota exceeded"), b"\xe0\x02\x97\0"),
        also(("moves", 5), Wait("gone to only if"), b"\xe0\x06\x9d\x04\x1c\0\x01x"),
        also(("says-bye", 4), Wait("it closed the connection"), b"\xe0\0"),
        also(("lies", 5), Arrive, b"\x30\x0c\0\x06down/x\x02\x01\x01\xff"),
        also(("unknown-ids-4", 4), Arrive, UNKNOWN),
        also(("unknown-ids-5", 5), Arrive, UNKNOWN_5),
        stranger(("no-codes", 4), Wait("not MQTT"), |heard, _| match heard.filters() {
            Some(_) => Say::Instead(packet(0x90, &[&heard.packet.id().to_be_bytes()])),
            None => Say::Usual,
        }),
        stranger(("many-codes", 5), Arrive, |heard, _| match heard.filters() {
            Some(_) => Say::Instead(packet(0x90, &[&heard.packet.id().to_be_bytes(), &[0], &[1; 40]])),
            None => Say::Usual,
        }),
    ]
}

const UNKNOWN: &[u8] =
    b"\x40\x02\x3f\xfe\x50\x02\x3f\xfd\x62\x02\x3f\xfc\x70\x02\x3f\xfb\x90\x03\x3f\xfa\0\xb0\x02\x3f\xf9";
const UNKNOWN_5: &[u8] =
    b"\x40\x02\x3f\xfe\x50\x03\x3f\xfd\x92\x62\x02\x3f\xfc\x70\x02\x3f\xfb\x90\x04\x3f\xfa\0\0\xb0\x04\x3f\xf9\0\0";

/// Upstreams that keep connections open, flood the gateway, or end connections when a message comes.
fn that_last() -> Vec<Stranger> {
    use Then::{Arrive, WaitQuietly};
    let flood = |protocol: u8, qos: u8| {
        let none: &[u8] = if protocol == 5 { &[0] } else { &[] };
        let id: &[u8] = if qos > 0 { &[0, 7] } else { &[] };
        packet(0x31 | qos << 1, &[b"\0\x06down/x", id, none, &[b'x'; 100]]).repeat(50)
    };
    let floods = |name: &'static str, protocol: u8, qos: u8| {
        stranger((name, protocol), WaitQuietly, move |heard, lasts| match heard.filters() {
            Some(_) => Say::Flood(flood(protocol, qos), lasts.clone()),
            None => Say::Usual,
        })
    };
    let mut pings = stranger(("no-pingresp", 4), Arrive, |heard, _| match heard.packet.kind() {
        12 => Say::Nothing,
        _ => Say::Usual,
    });
    pings.keys = "keep_alive = \"5 s\"";
    vec![
        pings,
        floods("floods-4", 4, 0),
        floods("floods-5", 5, 1),
        floods("floods-exactly", 5, 2),
        stranger(("deaf", 5), WaitQuietly, |heard, lasts| match heard.is_connect() {
            true => Say::Deaf(lasts.clone()),
            false => Say::Usual,
        }),
        stranger(("closes-at-messages", 4), WaitQuietly, |heard, _| match heard.publish() {
            Some(_) => Say::Close,
            None => Say::Usual,
        }),
        stranger(("resets-at-messages", 5), WaitQuietly, |heard, _| match heard.publish() {
            Some(_) => Say::Reset,
            None => Say::Usual,
        }),
    ]
}

fn upstream(stranger: &Stranger, port: u16) -> String {
    let Stranger { name, protocol, keys, .. } = stranger;
    format!(
        "[[upstream]]\nname = \"{name}\"\naddresses = [\"mqtt://127.0.0.1:{port}\"]\nclient_id = \"{name}\"\n\
         protocol = {protocol}\nretry = {{ min = \"100 ms\", max = \"{} ms\" }}\n{keys}\n\
         [[upstream.out]]\ntopic_filter = \"loft/#\"\n[[upstream.in]]\ntopic_filter = \"down/#\"\nqos = 2\n",
        RETRY_MAX.as_millis()
    )
}

/// The upstreams by their names.
fn shown(http: u16) -> HashMap<String, serde_json::Value> {
    let all = http::get(http, "/api/v1/upstreams").json();
    let all = all.as_array().unwrap().iter();
    all.map(|shown| (shown["name"].as_str().unwrap().to_owned(), shown.clone())).collect()
}

/// Checks that local clients can exchange messages.
fn local_clients_go_on(gateway: &Gateway, text: &str) {
    let mut reader = Connect::new("local-reader").open(gateway.port);
    reader.subscribe("here/a", 1);
    let mut writer = Connect::new("local-writer").open(gateway.port);
    writer.publish("here/a", text, 1, false);
    assert_eq!(reader.receive().text(), text);
}

/// The present problem of an upstream, if it has one.
fn complaint(
    stranger: &Stranger,
    shown: &serde_json::Value,
    log: &[String],
    attempts: usize,
    since: Instant,
) -> String {
    let lines: Vec<&String> = log.iter().filter(|line| line.contains(&format!("\"{}\"", stranger.name))).collect();
    if let Then::Wait(why) = stranger.then
        && !lines.iter().any(|line| line.contains(why))
    {
        return format!("{}: nothing says {why:?}: {lines:#?}", stranger.name);
    }
    // a wait may be shortened by half, and the first waits are shorter
    let most = (since.elapsed().as_millis() / (RETRY_MAX.as_millis() / 2)) as usize + 10;
    if attempts > most {
        return format!("{}: {attempts} attempts, at most {most} were expected", stranger.name);
    }
    if lines.len() > 60 {
        return format!("{}: {} lines", stranger.name, lines.len());
    }
    let dropped: u64 =
        shown["ledger"]["dropped"].as_object().unwrap().values().map(|count| count.as_u64().unwrap()).sum();
    if dropped > 0 { format!("{}: {shown}", stranger.name) } else { String::new() }
}

#[test]
fn whatever_upstreams_do_local_clients_go_on_and_what_was_accepted_arrives_once_they_are_well() {
    let are_strange = Arc::new(AtomicBool::new(true));
    let strangers: Vec<Stranger> = at_the_door().into_iter().chain(within()).chain(that_last()).collect();
    let (mut played, mut config) = (Vec::new(), String::new());
    let strangers: Vec<Stranger> = strangers
        .into_iter()
        .map(|mut stranger| {
            let script = std::mem::replace(&mut stranger.script, Box::new(|_, _| Say::Usual));
            let lasts = are_strange.clone();
            played.push(Played::new(move |heard| match lasts.load(Ordering::Relaxed) {
                true => script(heard, &lasts),
                false => Say::Usual,
            }));
            config += &upstream(&stranger, played.last().unwrap().port);
            stranger
        })
        .collect();
    let since = Instant::now();
    let (gateway, http) = start(&config);
    publish(&gateway, "a", &TEXTS, false);
    local_clients_go_on(&gateway, "at first");
    let attempts = |at: usize| played[at].log().connections.len();
    let complaints = || {
        let (shown, log) = (shown(http), gateway.log());
        let of =
            |(at, stranger): (usize, &Stranger)| complaint(stranger, &shown[stranger.name], &log, attempts(at), since);
        strangers.iter().enumerate().map(of).filter(|text| !text.is_empty()).collect::<Vec<_>>()
    };
    let begin = Instant::now();
    while !complaints().is_empty() {
        assert!(begin.elapsed() < Duration::from_secs(60), "{:#?}", complaints());
        std::thread::sleep(Duration::from_millis(50));
    }
    for (stranger, played) in strangers.iter().zip(&played) {
        if stranger.then == Then::Arrive {
            played.wait_for(&TEXTS);
        }
    }
    local_clients_go_on(&gateway, "in between");
    are_strange.store(false, Ordering::Relaxed);
    for (stranger, played) in strangers.iter().zip(&played) {
        played.wait_for(&TEXTS);
        wait_until(stranger.name, || shown(http)[stranger.name]["ledger"]["pending"] == 0);
        let ledger = shown(http)[stranger.name]["ledger"].clone();
        let arrived = ledger["acked"].as_u64().unwrap() + ledger["sent_unconfirmed"].as_u64().unwrap();
        assert_eq!(arrived, TEXTS.len() as u64, "{}: {ledger}", stranger.name);
    }
    local_clients_go_on(&gateway, "in the end");
    let most = gateway.memory_kib("VmHWM") >> 10;
    assert!(most < 400, "{most} MiB");
    assert!(!gateway.log().iter().any(|line| line.contains("panicked") || line.contains('\u{1b}')));
}

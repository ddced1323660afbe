//! Messages do not go round between gateways.

use super::*;

/// The properties of a message that has passed through these gateways.
fn passed(gateways: &[&str]) -> Vec<u8> {
    let mut properties = Vec::new();
    for gateway in gateways {
        via::append(&mut properties, via::Id::parse(gateway).unwrap()).unwrap();
    }
    properties
}

#[test]
fn nothing_enters_a_gateway_twice() {
    let upstream = "0000000a";
    let mut bench = Bench::new(|settings| settings.both.push(rule("x/#", "", "", OutQos::Keep)));
    bench.append(&Draft { origin: Origin::upstream("home"), ..draft("x/1", b"came from there") });
    bench.append(&Draft { properties: &passed(&["00000001", upstream]), ..draft("x/1", b"was there") });
    bench.append(&Draft { properties: &passed(&["00000001"; via::MOST]), ..draft("x/1", b"went round") });
    bench.append(&Draft { properties: &passed(&["00000001"]), ..draft("x/1", b"good") });
    bench.connect(Link { gateway: via::Id::parse(upstream), ..V5 });
    bench.pump(0);
    assert_eq!(bench.sent[0].properties, passed(&["00000001", via::Id::ours().as_str()]));
    assert_eq!(bench.deliver(1), ["good"]);
    let dropped = bench.ledger().dropped;
    assert_eq!((dropped.came_from_there, dropped.looped), (2, 1));
    let message = InMessage {
        packet_id: 7,
        topic: "x/2".into(),
        payload: Bytes::new(),
        qos: Qos::AtLeastOnce,
        retain: true,
        is_repeated: false,
        expiry: Some(5),
        properties: passed(&["00000001"]),
    };
    let inbound = bench.session.incoming(message.clone()).unwrap();
    assert_eq!((inbound.topic.as_str(), inbound.packet_id), ("x/2", 7));
    assert_eq!(inbound.properties, passed(&["00000001", upstream]), "where it came from is noted");
    let was_here = InMessage { properties: passed(&[via::Id::ours().as_str(), upstream]), ..message.clone() };
    assert_eq!(bench.session.incoming(was_here), Err(NotTaken::Unwanted));
    let at = |topic: String| bench.session.incoming(InMessage { topic, ..message.clone() });
    assert_eq!(at("y".into()), Err(NotTaken::Unwanted));
    // like topics of clients, those of upstreams have at most 200 levels
    assert!(at("x".to_owned() + &"/a".repeat(199)).is_ok());
    let deep = "x".to_owned() + &"/a".repeat(200);
    assert_eq!(at(deep.clone()), Err(NotTaken::Lost(InboundLoss::Levels, deep)));
    let everywhere = InMessage { properties: passed(&["00000001"; via::MOST]), ..message.clone() };
    assert_eq!(bench.session.incoming(everywhere), Err(NotTaken::Lost(InboundLoss::Loop, "x/2".into())));
}

#[test]
fn two_gateways_at_one_upstream_do_not_echo() {
    // what one gateway sends comes to the other, which does not send it back
    let other = Bench::new(|settings| {
        settings.out.clear();
        settings.both.push(rule("x/#", "", "", OutQos::Keep));
    });
    let mut one = Bench::new(|settings| {
        settings.out.clear();
        settings.both.push(rule("x/#", "", "", OutQos::Keep));
    });
    one.append(&draft("x/1", b"hello"));
    one.connect(V5);
    one.pump(0);
    let up = one.sent.remove(0);
    let message = InMessage {
        packet_id: 1,
        topic: up.topic,
        payload: up.payload,
        qos: up.qos,
        retain: false,
        is_repeated: false,
        expiry: None,
        // both gateways of this test have the same id
        properties: Vec::new(),
    };
    let inbound = other.session.incoming(message).unwrap();
    let mut other = other;
    let origin = Origin::upstream("home");
    other.append(&Draft { origin, ..draft(&inbound.topic, &inbound.payload) });
    other.connect(V5);
    other.pump(0);
    assert!(other.sent.is_empty());
    assert_eq!(other.ledger().dropped.came_from_there, 1);
}

//! Messages that are larger than a line or the gateway likes.

use std::sync::{Arc, Mutex};

use crate::played::{Played, Say};
use crate::support::packet::{V5, publish as publish_packet};
use crate::support::{Properties, http, wait_until};
use crate::{drained, publish, start, upstream};

#[test]
fn a_message_that_is_too_large_comes_down_once_and_holds_up_nothing() {
    for (protocol, qos) in [(4, 1), (4, 2), (5, 1), (5, 2)] {
        let (none, answers) = (Properties::new(), Arc::new(Mutex::new(Vec::new())));
        let answered = answers.clone();
        let played = Played::new(move |heard| {
            if let 4..=7 = heard.packet.kind() {
                answered.lock().unwrap().push((heard.packet.kind(), heard.packet.id()));
            }
            let properties = (heard.version == V5).then_some(&none);
            let message = |topic: &[u8], size: usize, id: u16| {
                publish_packet(topic, &vec![b'x'; size], qos << 1, Some(id), properties)
            };
            match heard.packet.kind() {
                8 => Say::Also([message(b"cmd/large", 3 << 20, 70), message(b"cmd/small", 1, 71)].concat()),
                // PUBREC is answered with PUBREL
                5 => Say::Instead([&[0x62, 2], &heard.packet.body[..2]].concat()),
                _ => Say::Usual,
            }
        });
        let rule = "[[upstream.in]]\ntopic_filter = \"cmd/#\"\nqos = 2\n";
        let (gateway, port) = start(&(upstream(played.port, &format!("protocol = {protocol}")) + rule));
        let line = gateway.wait_for_line("larger than max_packet_size");
        assert!(line.contains("ERROR") && line.contains("cmd/large") && line.contains("size=31457"), "{line}");
        wait_until("both are counted", || {
            let shown = &http::get(port, "/api/v1/upstreams").json()[0];
            shown["received"] == 1 && shown["received_dropped"] == 1
        });
        publish(&gateway, "a", &["1"], false);
        played.wait_for(&["1"]);
        assert_eq!(drained(port), 0);
        assert_eq!(played.log().connections.len(), 1, "protocol {protocol}, QoS {qos}");
        let last = if qos == 2 { 7 } else { 4 };
        wait_until("both are acknowledged", || {
            [70, 71].iter().all(|id| answers.lock().unwrap().contains(&(last, *id)))
        });
    }
}

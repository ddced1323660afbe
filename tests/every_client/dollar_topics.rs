//! Topics that begin with `$`, as gateways to clouds use them.

use crate::support::{Connect, Gateway, contents};

const NAMED: &str = "[broker.anonymous]\naccept = \"all\"\npublish = [\"#\", \"$aws/#\", \"$SYS/#\", \"$share/#\", \"$CONTROL/#\"]\n\
                     subscribe = [\"#\", \"$aws/#\"]";

#[test]
fn who_is_named_by_a_rule_publishes_them() {
    let gateway = Gateway::with(NAMED);
    let mut client = Connect::v5("thing").open(gateway.port);
    client.subscribe("$aws/#", 1);
    client.subscribe("#", 1);
    assert_eq!(client.publish("$aws/things/a", "x", 1, true), 0);
    for reserved in ["$SYS/broker/x", "$share/g/t", "$CONTROL/x", "$iothub/x"] {
        assert_eq!(client.publish(reserved, "x", 1, false), 0x87, "{reserved}");
    }
    assert_eq!(contents(&client.drain()), [("$aws/things/a", "x".into())], "once: # does not select it");
    // it is retained over a restart like any other
    let gateway = gateway.kill().restart();
    let mut client = Connect::v5("thing").open(gateway.port);
    client.subscribe("$aws/#", 1);
    assert_eq!(contents(&client.drain()), [("$aws/things/a", "x".into())]);
    drop(gateway);
    let closed = Gateway::start();
    let mut client = Connect::v5("thing").open(closed.port);
    assert_eq!(client.publish("$aws/things/a", "x", 1, false), 0x87, "the default \"#\" does not name it");
}

#[test]
fn they_are_forwarded_like_others() {
    let cloud = Gateway::with(NAMED);
    let mut watcher = Connect::new("watcher").open(cloud.port);
    watcher.subscribe("$aws/#", 1);
    let upstream = format!(
        "{NAMED}\n[[upstream]]\nname = \"cloud\"\naddresses = [\"mqtt://127.0.0.1:{}\"]\n\
         [[upstream.out]]\ntopic_filter = \"$aws/#\"",
        cloud.port
    );
    let gateway = Gateway::with(&upstream);
    Connect::new("thing").open(gateway.port).publish("$aws/things/a/shadow", "x", 1, false);
    assert_eq!(contents(&[watcher.receive()]), [("$aws/things/a/shadow", "x".into())]);
}

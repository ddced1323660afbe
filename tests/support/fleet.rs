//! A gateway in front of a cluster whose nodes are killed while it forwards.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::packet::publish;
use super::{Connect, Gateway, Setup, http};

/// The number of messages that are forwarded while nodes are killed.
pub const MESSAGES: usize = 20_000;
/// The longest wait for a cluster, which starts and catches up far more slowly than the gateway.
pub const LONG: Duration = Duration::from_secs(600);

/// Waits until `condition` holds. A cluster may need minutes.
#[track_caller]
pub fn wait_long(what: &str, mut condition: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < LONG, "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// Whether a server accepts a client, which needs a majority of the cluster.
pub fn takes_mqtt(port: u16) -> bool {
    let Ok(mut socket) = TcpStream::connect(("127.0.0.1", port)) else { return false };
    let mut answer = [0; 4];
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    let said = socket.write_all(&Connect::new(&format!("probe-{port}")).encode());
    said.and_then(|()| socket.read_exact(&mut answer)).is_ok() && answer[3] == 0
}

/// The gateway, which forwards `loft/#` as `sites/loft/#`.
pub struct Forwarding {
    gateway: Gateway,
    http: u16,
    nodes: Vec<u16>,
}

impl Forwarding {
    /// Starts a gateway that knows the ports of all nodes.
    pub fn start(name: &str, nodes: Vec<u16>) -> Forwarding {
        let addresses: Vec<String> = nodes.iter().map(|port| format!("\"mqtt://127.0.0.1:{port}\"")).collect();
        let config = format!(
            "[[upstream]]\nname = \"{name}\"\naddresses = [{}]\nprotocol = 4\nclient_id = \"loft\"\n\
             retry = {{ min = \"200 ms\", max = \"2 s\" }}\nrate = \"1500/s\"\n\
             [[upstream.out]]\ntopic_filter = \"loft/#\"\nremote_prefix = \"sites/\"\nretain = false\n",
            addresses.join(", ")
        );
        let (setup, http) = Setup::default().config(&config).http();
        Forwarding { gateway: setup.start(), http, nodes }
    }

    /// Publishes all messages, numbered, at QoS 1, and waits until each is acknowledged.
    pub fn publish_all(&self) {
        let mut publisher = Connect::new("publisher").open(self.gateway.port);
        for part in (0..MESSAGES).collect::<Vec<_>>().chunks(100) {
            let packet = |number: &usize| {
                publish(b"loft/a", number.to_string().as_bytes(), 2, Some(1 + (*number % 60_000) as u16), None)
            };
            publisher.send(&part.iter().flat_map(packet).collect::<Vec<u8>>());
            part.iter().for_each(|_| drop(publisher.expect(4)));
        }
        publisher.disconnect();
    }

    fn upstream(&self) -> Value {
        http::get(self.http, "/api/v1/upstreams").json()[0].clone()
    }

    /// The node to which the gateway is connected, or that it tries next.
    pub fn node(&self) -> usize {
        let address = self.upstream()["address"].as_str().unwrap().to_owned();
        self.nodes.iter().position(|port| address.ends_with(&format!(":{port}"))).unwrap()
    }

    /// Waits until this number of messages has arrived.
    pub fn wait_for(&self, messages: usize) {
        wait_long("a part is there", || self.upstream()["ledger"]["acked"].as_u64().unwrap() as usize > messages);
    }

    /// Waits until the gateway is connected to another node than this one.
    pub fn wait_for_another_than(&self, node: usize) {
        wait_long("another takes over", || self.upstream()["state"] == "connected" && self.node() != node);
    }

    /// Waits until no message is left to be sent, and checks the ledger.
    pub fn wait_for_all(&self) {
        wait_long("nothing waits", || self.upstream()["ledger"]["pending"] == 0);
        let ledger = self.upstream()["ledger"].clone();
        assert_eq!(ledger["acked"], MESSAGES, "{ledger}");
    }
}

//! The real thing: a cluster of three NATS servers with JetStream, of which the one that the gateway is connected to is
//! killed, comes back, and then another is killed. Every acknowledged message is with a durable subscriber afterwards.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::HashSet;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use support::packet::publish;
use support::{Connect, Process, Setup, free_port, http, wait_until};

const MESSAGES: usize = 20_000;
const LONG: Duration = Duration::from_secs(180);

/// A server of the cluster.
struct Node {
    process: Option<Process>,
    config: std::path::PathBuf,
    mqtt: u16,
    monitor: u16,
}

impl Node {
    fn start(&mut self) {
        let program =
            ["/usr/sbin/nats-server", "/usr/bin/nats-server"].into_iter().find(|path| Path::new(path).exists());
        let mut command = Command::new(program.unwrap_or("nats-server"));
        self.process = Some(Process::start(command.arg("-c").arg(&self.config)));
    }

    fn kill(&mut self) {
        self.process.take().unwrap().kill();
    }

    fn ask(&self, target: &str) -> Option<http::Answer> {
        http::try_request(self.monitor, "GET", target, &[], b"").ok().filter(|answer| answer.status == 200)
    }

    /// Whether it takes part in the cluster.
    fn is_healthy(&self) -> bool {
        self.ask("/healthz?js-server-only=true").is_some()
    }

    /// Messages that it has stored.
    fn messages(&self) -> u64 {
        self.ask("/jsz").and_then(|answer| answer.json()["messages"].as_u64()).unwrap_or(0)
    }
}

fn cluster(dir: &Path) -> Vec<Node> {
    let ports: Vec<[u16; 4]> = (0..3).map(|_| [free_port(), free_port(), free_port(), free_port()]).collect();
    let routes: Vec<String> = ports.iter().map(|[_, route, ..]| format!("nats-route://127.0.0.1:{route}")).collect();
    let node = |(number, [client, route, mqtt, monitor]): (usize, &[u16; 4])| {
        let config = dir.join(format!("{number}.conf"));
        let store = dir.join(format!("store{number}"));
        let text = format!(
            "server_name: n{number}\nlisten: 127.0.0.1:{client}\nhttp: 127.0.0.1:{monitor}\n\
             jetstream {{ store_dir: \"{}\", max_memory_store: 64M, max_file_store: 512M }}\n\
             mqtt {{ listen: \"127.0.0.1:{mqtt}\", max_ack_pending: 1000 }}\n\
             cluster {{ name: fleet, listen: 127.0.0.1:{route}, routes: [{}] }}\n",
            store.display(),
            routes.join(", ")
        );
        std::fs::write(&config, text).unwrap();
        let mut node = Node { process: None, config, mqtt: *mqtt, monitor: *monitor };
        node.start();
        node
    };
    ports.iter().enumerate().map(node).collect()
}

#[track_caller]
fn wait_long(what: &str, mut condition: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < LONG, "waited in vain: {what}");
        thread::sleep(Duration::from_millis(50));
    }
}

/// Takes up the session of the durable subscriber at a server, if that lets it.
fn keeper(port: u16) -> Option<support::Client> {
    let socket = std::net::TcpStream::connect(("127.0.0.1", port)).ok()?;
    socket.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
    let mut probe = socket.try_clone().ok()?;
    use std::io::{Read, Write};
    probe.write_all(&Connect::new("probe").encode()).ok()?;
    let mut answer = [0; 4];
    probe.read_exact(&mut answer).ok().filter(|()| answer[3] == 0)?;
    drop((probe, socket));
    Some(Connect::new("keeper").persistent().open(port))
}

#[test]
fn every_message_is_with_a_durable_subscriber_although_servers_are_killed() {
    let dir = tempfile::tempdir().unwrap();
    let mut nodes = cluster(dir.path());
    wait_long("a cluster", || nodes.iter().all(Node::is_healthy) && keeper(nodes[0].mqtt).is_some());
    let mut client = Connect::new("keeper").persistent().open(nodes[0].mqtt);
    client.subscribe("sites/loft/#", 1);
    client.disconnect();

    let addresses: Vec<String> = nodes.iter().map(|node| format!("\"mqtt://127.0.0.1:{}\"", node.mqtt)).collect();
    let config = format!(
        "[[upstream]]\nname = \"nats\"\naddresses = [{}]\nprotocol = 4\nclient_id = \"loft\"\n\
         retry = {{ min = \"200 ms\", max = \"2 s\" }}\nrate = \"1500/s\"\n\
         [[upstream.out]]\ntopic_filter = \"loft/#\"\nremote_prefix = \"sites/\"\nretain = false\n",
        addresses.join(", ")
    );
    let (setup, port) = Setup::default().config(&config).http();
    let gateway = setup.start();
    let mut publisher = Connect::new("publisher").open(gateway.port);
    for part in (0..MESSAGES).collect::<Vec<_>>().chunks(100) {
        let packet = |number: &usize| {
            publish(b"loft/a", number.to_string().as_bytes(), 2, Some(1 + (*number % 60_000) as u16), None)
        };
        publisher.send(&part.iter().flat_map(packet).collect::<Vec<u8>>());
        part.iter().for_each(|_| drop(publisher.expect(4)));
    }
    publisher.disconnect();
    let upstream = || http::get(port, "/api/v1/upstreams").json()[0].clone();
    let acked = || upstream()["ledger"]["acked"].as_u64().unwrap() as usize;
    let at = |nodes: &[Node]| {
        let address = upstream()["address"].as_str().unwrap().to_owned();
        nodes.iter().position(|node| address.ends_with(&format!(":{}", node.mqtt))).unwrap()
    };

    for part in [1, 2] {
        wait_long("a part is there", || acked() > part * MESSAGES / 5);
        let connected = at(&nodes);
        nodes[connected].kill();
        wait_long("another takes over", || upstream()["state"] == "connected" && at(&nodes) != connected);
        nodes[connected].start();
        let stored = nodes[at(&nodes)].messages();
        wait_long("it has caught up", || nodes[connected].is_healthy() && nodes[connected].messages() >= stored);
    }
    wait_long("nothing waits", || upstream()["ledger"]["pending"] == 0);
    let ledger = upstream()["ledger"].clone();
    assert_eq!(ledger["acked"], MESSAGES, "{ledger}");

    let mut arrived: HashSet<usize> = HashSet::new();
    let mut client = None;
    wait_until("the subscriber is let in", || {
        client = nodes.iter().find_map(|node| keeper(node.mqtt));
        client.is_some()
    });
    let mut client = client.unwrap();
    let begin = Instant::now();
    while arrived.len() < MESSAGES {
        assert!(begin.elapsed() < LONG, "{} have arrived", arrived.len());
        arrived.insert(client.receive().text().parse().unwrap());
    }
}

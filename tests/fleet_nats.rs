//! A real cluster of three NATS servers with JetStream as the upstream. The server to which the gateway is connected is
//! killed and comes back, and then another one is killed. A durable subscriber gets every acknowledged message.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::HashSet;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use support::fleet::{Forwarding, LONG, MESSAGES, takes_mqtt, wait_long};
use support::{Client, Connect, Process, free_port, http, wait_until};

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

    /// Whether the server takes part in the cluster.
    fn is_healthy(&self) -> bool {
        self.ask("/healthz?js-server-only=true").is_some()
    }

    /// The number of messages that the server has stored.
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

/// Resumes the session of the durable subscriber at a server, if the server accepts that.
fn keeper(port: u16) -> Option<Client> {
    takes_mqtt(port).then(|| Connect::new("keeper").persistent().open(port))
}

#[test]
fn every_message_is_with_a_durable_subscriber_although_servers_are_killed() {
    let dir = tempfile::tempdir().unwrap();
    let mut nodes = cluster(dir.path());
    wait_long("a cluster", || nodes.iter().all(Node::is_healthy) && keeper(nodes[0].mqtt).is_some());
    let mut client = Connect::new("keeper").persistent().open(nodes[0].mqtt);
    client.subscribe("sites/loft/#", 1);
    client.disconnect();

    let forwarding = Forwarding::start("nats", nodes.iter().map(|node| node.mqtt).collect());
    forwarding.publish_all();
    for part in [1, 2] {
        forwarding.wait_for(part * MESSAGES / 5);
        let connected = forwarding.node();
        nodes[connected].kill();
        forwarding.wait_for_another_than(connected);
        nodes[connected].start();
        let stored = nodes[forwarding.node()].messages();
        wait_long("it has caught up", || nodes[connected].is_healthy() && nodes[connected].messages() >= stored);
    }
    forwarding.wait_for_all();

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

//! A real cluster of three RabbitMQ nodes with the plugin for MQTT as the upstream. The node to which the gateway is
//! connected is killed and comes back, and then another one is killed. Every acknowledged message is in a quorum queue that
//! is bound to the topic exchange.

#![allow(clippy::unwrap_used)]

mod support;

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use support::fleet::{Forwarding, MESSAGES, takes_mqtt, wait_long};
use support::{Process, free_port, http};

const SERVER: &str = "/usr/lib/rabbitmq/bin/rabbitmq-server";

/// A node of the cluster.
struct Node {
    process: Option<Process>,
    name: String,
    dir: PathBuf,
    epmd: u16,
    amqp: u16,
    distribution: u16,
    mqtt: u16,
    management: u16,
}

impl Node {
    fn start(&mut self) {
        let dir = |name: &str| self.dir.join(name);
        let mut command = Command::new(SERVER);
        command
            .env("HOME", self.dir.parent().unwrap())
            .env("ERL_EPMD_PORT", self.epmd.to_string())
            .env("ERL_EPMD_ADDRESS", "127.0.0.1")
            .env("RABBITMQ_NODENAME", &self.name)
            .env("RABBITMQ_NODE_PORT", self.amqp.to_string())
            .env("RABBITMQ_DIST_PORT", self.distribution.to_string())
            .env("RABBITMQ_CONFIG_FILE", dir("rabbitmq.conf"))
            .env("RABBITMQ_CONF_ENV_FILE", "/dev/null")
            .env("RABBITMQ_ENABLED_PLUGINS_FILE", dir("plugins"))
            .env("RABBITMQ_MNESIA_BASE", dir("mnesia"))
            .env("RABBITMQ_LOG_BASE", dir("log"))
            .env("RABBITMQ_PID_FILE", dir("pid"))
            .env("RABBITMQ_LOGS", dir("log/rabbit.log"))
            .env("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", "+S 1:1");
        self.process = Some(Process::start(&mut command));
    }

    /// Kills the node, and the shell that has started it.
    fn kill(&mut self) {
        let Some(process) = self.process.take() else { return };
        let pid = fs::read_to_string(self.dir.join("pid")).ok().and_then(|pid| Pid::from_raw(pid.trim().parse().ok()?));
        if let Some(pid) = pid {
            // the process may have ended by itself
            let _ = kill_process(pid, Signal::KILL);
        }
        drop(process);
        // at a later kill, the number may belong to another process
        let _ = fs::remove_file(self.dir.join("pid"));
    }

    fn ask(&self, method: &str, target: &str, body: &Value) -> Option<http::Answer> {
        let headers = [("Authorization", "Basic Z3Vlc3Q6Z3Vlc3Q="), ("Content-Type", "application/json")];
        let body = if body.is_null() { String::new() } else { body.to_string() };
        let answer = http::try_request(self.management, method, target, &headers, body.as_bytes()).ok();
        answer.filter(|answer| answer.status < 300)
    }

    /// The number of nodes with a current copy of the queue.
    fn online(&self) -> Vec<String> {
        let queue = self.ask("GET", "/api/queues/%2f/loft", &Value::Null).map(|answer| answer.json());
        let online = queue.and_then(|queue| queue["online"].as_array().cloned()).unwrap_or_default();
        online.iter().filter_map(|name| name.as_str().map(str::to_owned)).collect()
    }

    /// Whether the node runs together with this number of nodes, which are all that it knows.
    fn sees(&self, count: usize) -> bool {
        let nodes = self.ask("GET", "/api/nodes", &Value::Null).map(|answer| answer.json());
        let nodes = nodes.and_then(|nodes| nodes.as_array().cloned()).unwrap_or_default();
        nodes.len() == count && nodes.iter().all(|node| node["running"] == true)
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The nodes, and the service by which they find each other.
fn cluster(dir: &Path) -> (Vec<Node>, Process) {
    let cookie = dir.join(".erlang.cookie");
    fs::write(&cookie, "loopback-only").unwrap();
    fs::set_permissions(&cookie, fs::Permissions::from_mode(0o400)).unwrap();
    let epmd = free_port();
    let mut command = Command::new("epmd");
    // otherwise a node would start one that keeps running
    let names = Process::start(command.args(["-port", &epmd.to_string(), "-address", "127.0.0.1"]));
    let node = |number: usize| {
        let (name, dir) = (format!("r{number}p{epmd}@localhost"), dir.join(number.to_string()));
        fs::create_dir(&dir).unwrap();
        let [amqp, distribution, mqtt, management] = [(); 4].map(|()| free_port());
        let peers =
            (1..=3).map(|peer| format!("cluster_formation.classic_config.nodes.{peer} = r{peer}p{epmd}@localhost\n"));
        let text = format!(
            "listeners.tcp.1 = 127.0.0.1:{amqp}\nmqtt.listeners.tcp.1 = 127.0.0.1:{mqtt}\nmqtt.allow_anonymous = true\n\
             management.tcp.ip = 127.0.0.1\nmanagement.tcp.port = {management}\n\
             cluster_formation.peer_discovery_backend = classic_config\n{}",
            peers.collect::<String>()
        );
        fs::write(dir.join("rabbitmq.conf"), text).unwrap();
        fs::write(dir.join("plugins"), "[rabbitmq_mqtt,rabbitmq_management].\n").unwrap();
        let mut node = Node { process: None, name, dir, epmd, amqp, distribution, mqtt, management };
        node.start();
        // nodes that start at the same time may not agree on which of them keeps the client ids
        wait_long("a node", || node.sees(number) && takes_mqtt(node.mqtt));
        node
    };
    ((1..=3).map(node).collect(), names)
}

/// Takes messages out of the queue until all have been seen.
fn drain(nodes: &[Node]) {
    let mut arrived: HashSet<usize> = HashSet::new();
    let request = json!({ "count": 2000, "ackmode": "ack_requeue_false", "encoding": "auto" });
    wait_long("all messages are in the queue", || {
        let answer = nodes.iter().find_map(|node| node.ask("POST", "/api/queues/%2f/loft/get", &request));
        let taken = answer.and_then(|answer| answer.json().as_array().cloned()).unwrap_or_default();
        arrived.extend(taken.iter().map(|message| message["payload"].as_str().unwrap().parse::<usize>().unwrap()));
        arrived.len() == MESSAGES
    });
}

#[test]
fn every_message_is_in_a_quorum_queue_although_nodes_are_killed() {
    let dir = tempfile::tempdir().unwrap();
    let (mut nodes, _names) = cluster(dir.path());
    wait_long("a cluster", || nodes.iter().all(|node| node.sees(3) && takes_mqtt(node.mqtt)));
    let queue = json!({ "durable": true, "arguments": { "x-queue-type": "quorum" } });
    let binding = json!({ "routing_key": "sites.loft.#" });
    wait_long("a queue", || nodes[0].ask("PUT", "/api/queues/%2f/loft", &queue).is_some());
    wait_long("a binding", || nodes[0].ask("POST", "/api/bindings/%2f/e/amq.topic/q/loft", &binding).is_some());
    wait_long("three replicas", || nodes[0].online().len() == 3);

    let forwarding = Forwarding::start("rabbit", nodes.iter().map(|node| node.mqtt).collect());
    forwarding.publish_all();
    for part in [1, 2] {
        forwarding.wait_for(part * MESSAGES / 5);
        let connected = forwarding.node();
        nodes[connected].kill();
        forwarding.wait_for_another_than(connected);
        nodes[connected].start();
        wait_long("it is back and its replica too", || {
            nodes.iter().all(|node| node.sees(3) && takes_mqtt(node.mqtt) && node.online().len() == 3)
        });
    }
    forwarding.wait_for_all();
    drain(&nodes);
}

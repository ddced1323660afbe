//! Clients of mosquitto work unchanged: every scenario runs with a real mosquitto and with the gateway, and both must look
//! the same to the client.

#![allow(clippy::unwrap_used)]

mod support;

use std::fmt::Debug;
use std::process::Command;

use support::{Gateway, Mosquitto, Process, python, wait_until};

const VERSIONS: [&str; 3] = ["mqttv31", "mqttv311", "mqttv5"];

/// Runs the scenario with a mosquitto and with the gateway.
#[track_caller]
fn on_both<T: PartialEq + Debug>(scenario: impl Fn(u16) -> T) -> T {
    let mosquitto = Mosquitto::with("");
    let gateway = Gateway::start();
    let (theirs, ours) = (scenario(mosquitto.port), scenario(gateway.port));
    assert_eq!(ours, theirs, "the gateway and mosquitto differ");
    ours
}

fn client(program: &str, port: u16, args: &str) -> Process {
    let port = port.to_string();
    // line by line, as on a terminal
    let mut command = Command::new("stdbuf");
    Process::start(command.args(["-oL", program, "-h", "localhost", "-p", &port]).args(args.split_whitespace()))
}

/// Runs mosquitto_pub to its end.
#[track_caller]
fn publish(port: u16, args: &str) {
    let (code, log) = client("mosquitto_pub", port, args).wait();
    assert_eq!(code, Some(0), "mosquitto_pub {args}: {log:?}");
}

/// Starts mosquitto_sub and waits until it has subscribed.
#[track_caller]
fn subscribe(port: u16, args: &str) -> Process {
    let subscriber = client("mosquitto_sub", port, &format!("-d {args}"));
    subscriber.wait_for_line("Subscribed ");
    rests(&subscriber);
    subscriber
}

/// Waits until a client of mosquitto waits for something. Its handler of SIGTERM takes locks and prints, so a signal while it
/// is busy can make it hang, or print a line twice that it has just written.
#[track_caller]
fn rests(client: &Process) {
    wait_until("it waits for messages", || client.is_asleep());
}

/// Ends a client of mosquitto in order, and returns everything that it printed.
#[track_caller]
fn end(client: Process) -> Vec<String> {
    rests(&client);
    client.stop().1
}

/// Its output without the debug output.
fn output(log: Vec<String>) -> Vec<String> {
    let is_debug = |line: &String| line.starts_with("Client ") || line.starts_with("Subscribed ");
    log.into_iter().filter(|line| !is_debug(line)).collect()
}

#[test]
fn python_scripts_need_no_change() {
    for (paho, number) in [("paho-1", 1), ("paho-2", 2)] {
        on_both(|port| {
            let port = port.to_string();
            let subscriber = python::start(paho, &format!("subscribe_paho{number}.py"), &[&port]);
            subscriber.wait_for_line("subscribed");
            let publisher = python::start(paho, &format!("publish_paho{number}.py"), &[&port]);
            let lines = subscriber.wait_for_lines("loft/motion1", 2);
            publisher.kill();
            for line in lines {
                let time: Vec<&str> = line.trim_start_matches("loft/motion1 ").split(':').collect();
                assert!(time.len() == 3 && time.iter().all(|part| part.len() == 2), "{line}");
            }
            subscriber.kill().into_iter().find(|line| line.starts_with("connected"))
        });
    }
}

#[test]
fn every_version_and_qos_of_the_command_line_clients() {
    on_both(|port| {
        let mut all = Vec::new();
        for receiver in VERSIONS {
            for qos in 0..=2 {
                let subscriber =
                    subscribe(port, &format!("-V {receiver} -q {qos} -t a/# -v -k 10 -C 9 -F %t;%q;%r;%p"));
                for sender in VERSIONS {
                    for published in 0..=2 {
                        let message = format!("{sender}-{published}");
                        publish(port, &format!("-V {sender} -q {published} -t a/b -m {message} -k 5"));
                    }
                }
                let (code, log) = subscriber.wait();
                assert_eq!(code, Some(0), "{log:?}");
                let mut received = output(log);
                // mosquitto's QoS 2 messages wait for TCP, so messages of other publishers overtake them
                received.sort();
                all.push((receiver, qos, received));
            }
        }
        all
    });
}

#[test]
fn retained_messages() {
    on_both(|port| {
        let mut all = Vec::new();
        for version in VERSIONS {
            publish(port, &format!("-V {version} -t kept/a -m one -r -q 1"));
            publish(port, &format!("-V {version} -t kept/b -m two -r"));
            publish(port, &format!("-V {version} -t kept/b -n -r -q 2"));
            let kept = client("mosquitto_sub", port, &format!("-V {version} -t kept/# -v --retained-only -W 1"));
            all.push(kept.wait());
            let removed = client("mosquitto_sub", port, &format!("-V {version} -t kept/# --remove-retained -W 1"));
            all.push(removed.wait());
            all.push(client("mosquitto_sub", port, &format!("-V {version} -t kept/# -v -W 1")).wait());
        }
        all
    });
}

#[test]
fn wills() {
    on_both(|port| {
        let mut all = Vec::new();
        for version in VERSIONS {
            let watcher = subscribe(port, &format!("-V {version} -t will/# -q 2 -C 3 -F %t;%q;%r;%p"));
            for (qos, retain) in [(1, "--will-retain"), (2, "")] {
                let will = format!("--will-topic will/a --will-payload gone --will-qos {qos} {retain}");
                let dying = subscribe(port, &format!("-V {version} -t other {will}"));
                dying.kill();
                watcher.wait_for_lines("will/a;", qos);
            }
            // The will is not published after an orderly end, so the third line is the one after it. In version 5 a
            // mosquitto_sub that is ended asks for its will.
            let orderly = subscribe(port, &format!("-V {version} -t other --will-topic will/b --will-payload no"));
            end(orderly);
            publish(port, &format!("-V {version} -t will/c -m last -q 2"));
            let (code, log) = watcher.wait();
            assert_eq!(code, Some(0));
            all.push(output(log));
            publish(port, "-t will/a -n -r");
        }
        all
    });
}

#[test]
fn sessions_of_the_command_line_clients() {
    on_both(|port| {
        let mut all = Vec::new();
        for version in VERSIONS {
            let expiry = if version == "mqttv5" { "-x 600" } else { "" };
            let session = format!("-V {version} -i sleeper -c {expiry} -q 2 -t news/#");
            end(subscribe(port, &session));
            for number in 0..20 {
                publish(port, &format!("-t news/{number} -q {} -m {number}", 1 + number % 2));
            }
            let (code, log) = client("mosquitto_sub", port, &format!("{session} -C 20 -F %t;%q;%p")).wait();
            assert_eq!(code, Some(0));
            all.push(log);
            publish(port, "-t news/x -q 1 -m x");
            // without -c the session is gone
            let clean = session.replace("-c -x 600", "").replace("-c", "");
            all.push(client("mosquitto_sub", port, &format!("{clean} -W 1")).wait().1);
        }
        all
    });
}

#[test]
fn timeouts_and_failures_have_the_same_exit_codes() {
    let codes = on_both(|port| {
        let timeout =
            VERSIONS.map(|version| client("mosquitto_sub", port, &format!("-V {version} -t a -W 1")).wait().0);
        let many = client("mosquitto_pub", port, "-t many -q 1 --repeat 50 --repeat-delay 0 -m x").wait().0;
        (timeout, many)
    });
    assert_eq!(codes, ([Some(27); 3], Some(0)));
}

#[test]
fn version_5_properties_and_requests() {
    on_both(|port| {
        let subscriber = subscribe(port, "-V mqttv5 -t a -C 1 -F %t;%p;%P;%C;%R;%D");
        let properties = "-D publish content-type text -D publish user-property a b -D publish response-topic r \
                          -D publish correlation-data c -D publish message-expiry-interval 100";
        publish(port, &format!("-V mqttv5 -t a -m x {properties}"));
        let received = output(subscriber.wait().1);

        let answering = subscribe(port, "-V mqttv5 -t ask -C 1");
        let asking = client("mosquitto_rr", port, "-V mqttv5 -t ask -e answers/1 -m question");
        let question = output(answering.wait().1);
        // it waits for the answer on its response topic
        publish(port, "-V mqttv5 -t answers/1 -m answer");
        (received, question, asking.wait())
    });
}

#[test]
fn a_publisher_reads_lines_from_its_input() {
    on_both(|port| {
        let subscriber = subscribe(port, "-t lines -q 1 -C 100");
        let mut publisher = client("mosquitto_pub", port, "-t lines -q 1 -l");
        let lines: String = (0..100).map(|number| format!("line {number}\n")).collect();
        publisher.input(lines.as_bytes());
        let sent = publisher.wait().0;
        (sent, output(subscriber.wait().1))
    });
}

#[test]
fn a_bridge_of_mosquitto_s_works_both_ways() {
    let gateway = Gateway::start();
    let config =
        format!("connection up\naddress 127.0.0.1:{}\ntopic # both 1 local/ remote/\nrestart_timeout 1", gateway.port);
    let bridging = Mosquitto::with(&config);
    let (here, there) = (subscribe(gateway.port, "-t remote/# -v"), subscribe(bridging.port, "-t local/# -v"));
    wait_until("the bridge is up", || {
        publish(bridging.port, "-t local/up -m x -q 1");
        here.log().iter().any(|line| line == "remote/up x")
    });
    publish(gateway.port, "-t remote/down -m y -q 1");
    there.wait_for_line("local/down y");
    let log = end(there);
    assert_eq!(log.iter().filter(|line| *line == "local/down y").count(), 1, "no echo");
    end(here);
}

//! Normal operation of a gateway logs no warning and no error.

mod support;

use support::packet::{Properties, V5, V31, V311};
use support::tls::{Authority, client_config, open};
use support::{Connect, Gateway, Mosquitto, Setup, free_port};

/// Clients of all kinds connect, send messages and disconnect, in order or abruptly.
fn a_day(gateway: &Gateway) {
    let port = gateway.port;
    for round in 0..5 {
        for version in [V31, V311, V5] {
            let id = format!("client-{version}");
            let mut client = Connect::version(version, &id).keep_alive(60).will("will", "gone", 1, true).open(port);
            client.subscribe("loft/#", 2);
            for qos in 0..=2 {
                client.publish("loft/motion1", format!("{round}"), qos, round % 2 == 0);
            }
            for _ in 0..3 {
                client.receive();
            }
            client.ping();
            match round {
                0 => client.disconnect(),
                1 => client.vanish(),
                2 => client.reset(),
                _ => drop(client),
            }
            let mut sleeper = Connect::version(version, &format!("sleeper-{version}")).persistent().open(port);
            sleeper.subscribe("loft/+", 1);
            sleeper.disconnect();
        }
        let twin = Connect::v5("twin").open(port);
        Connect::v5("twin").open(port).disconnect();
        drop(twin);
        let mut short = Connect::v5("short").open(port);
        short.publish_with("loft/a", "x", 1, true, &Properties::new().four(0x02, 1));
        short.publish("loft/a", "", 1, true);
    }
    for number in 0..50 {
        Connect::new(&format!("passer-by-{number}")).open(port).vanish();
    }
}

#[test]
fn clients_sensors_and_an_upstream_without_a_warning() {
    let authority = Authority::new();
    let mosquitto = Mosquitto::with("");
    let tls_port = free_port();
    let setup = Setup::default();
    authority.write_server_files(setup.dir());
    let config = format!(
        "[[broker.listener]]\naddress = \"127.0.0.1:{tls_port}\"\n\
         tls = {{ cert = \"server.crt\", key = \"server.key\" }}\n\
         [[sensor]]\nname = \"loft\"\npin = 17\ntopic = \"loft/motion1\"\nwarm_up = \"0 s\"\n\
         simulate = [\"100 ms on\", \"100 ms off\"]\n\
         [[upstream]]\nname = \"home\"\naddresses = [\"mqtt://127.0.0.1:{}\"]\n\
         [[upstream.out]]\ntopic_filter = \"loft/#\"\nremote_prefix = \"sites/\"\n",
        mosquitto.port
    );
    let gateway = setup.config(&config).start();
    a_day(&gateway);
    let (client, _) = open(&Connect::v5("tls"), tls_port, client_config(&authority, None));
    client.vanish();
    let (code, log) = gateway.stop();
    assert_eq!(code, Some(0));
    // the directory of a test may be in memory, which causes a warning
    let is_loud = |line: &&String| line.contains(" WARN ") || line.contains(" ERROR ");
    let loud: Vec<&String> = log.iter().filter(is_loud).filter(|line| !line.contains("a power cut")).collect();
    assert!(loud.is_empty(), "{loud:#?}");
    assert!(log.len() < 60, "INFO is for what people want to know, not for every client: {} lines", log.len());
}

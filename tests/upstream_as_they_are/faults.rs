//! An upstream that cannot be reached is listed among the faulty parts, and does not affect the others.

use std::fs;
use std::net::TcpListener;

use crate::played::{Played, Say};
use crate::support::packet::publish as publish_packet;
use crate::support::{Connect, free_port, http, wait_until};
use crate::{publish, start};

fn upstream(name: &str, port: u16, keys: &str) -> String {
    format!(
        "[[upstream]]\nname = \"{name}\"\naddresses = [\"mqtt://127.0.0.1:{port}\"]\nclient_id = \"{name}\"\n\
         retry = {{ min = \"100 ms\", max = \"400 ms\" }}\n{keys}\n[[upstream.out]]\ntopic_filter = \"loft/#\"\n"
    )
}

/// The fault of an upstream, if it has one.
fn fault(http: u16, name: &str) -> Option<serde_json::Value> {
    let faulty = http::get(http, "/api/v1/gateway").json()["faulty"].clone();
    faulty.as_array().unwrap().iter().find(|fault| fault["part"] == format!("upstream {name}")).cloned()
}

#[test]
fn an_upstream_that_is_not_there_is_named_until_it_is() {
    let (port, dir) = (free_port(), tempfile::tempdir().unwrap());
    let secret = dir.path().join("password");
    let refusing = Played::new(|heard| match heard.is_connect() {
        true => Say::Last(vec![0x20, 3, 0, 0x87, 0]),
        false => Say::Usual,
    });
    let (secretive, well) = (Played::new(|_| Say::Usual), Played::new(|_| Say::Usual));
    let keys = format!("username = \"ada\"\npassword_file = \"{}\"", secret.display());
    let config = [
        upstream("down", port, ""),
        upstream("refused", refusing.port, "protocol = 5"),
        upstream("secret", secretive.port, &keys),
        upstream("well", well.port, ""),
    ];
    let (gateway, http) = start(&config.concat());
    let expected = [
        ("down", "Connection refused", "it is tried again"),
        ("refused", "it refuses the connection", "username, password, client_id"),
        ("secret", "password", "put it there"),
    ];
    for (name, problem, remedy) in expected {
        wait_until(name, || fault(http, name).is_some());
        let fault = fault(http, name).unwrap();
        assert!(fault["problem"].as_str().unwrap().contains(problem), "{fault}");
        assert!(fault["remedy"].as_str().unwrap().contains(remedy), "{fault}");
    }
    // each is a problem as long as it lasts, but being offline is no error in the log
    let problems = http::get(http, "/api/v1/problems").json();
    let texts = |is_now: bool| {
        let entries = problems.as_array().unwrap().iter().filter(|entry| entry["now"] == is_now);
        entries.map(|entry| entry["text"].to_string()).collect::<String>()
    };
    for problem in ["Connection refused", "it refuses the connection", "password"] {
        assert!(texts(true).contains(problem), "{problems}");
    }
    assert!(!texts(false).contains("Connection refused"), "{problems}");
    let ready = http::get(http, "/readyz");
    assert!(ready.head.contains(" 200 ") && ready.text().starts_with("ok; 3 parts are faulty\n"), "{}", ready.text());
    assert!(expected.iter().all(|(name, ..)| ready.text().contains(&format!("upstream {name}: "))));
    publish(&gateway, "a", &["1"], false);
    well.wait_for(&["1"]);
    assert!(fault(http, "well").is_none());

    let late = Played::on(TcpListener::bind(("127.0.0.1", port)).unwrap(), |_| Say::Usual);
    fs::write(&secret, "geheim\n").unwrap();
    for played in [&late, &secretive] {
        played.wait_for(&["1"]);
    }
    wait_until("only one is left", || http::get(http, "/readyz").text().starts_with("ok; 1 part is faulty\n"));
    assert!(fault(http, "refused").is_some());
}

#[test]
fn a_message_from_an_upstream_that_the_journal_can_never_take_holds_up_nothing() {
    for qos in [1, 2] {
        let played = Played::new(move |heard| match heard.publish() {
            Some(_) => Say::Also(
                [("large", vec![b'x'; 1900 << 10], 7), ("small", b"later".to_vec(), 8)]
                    .map(|(topic, payload, id)| {
                        publish_packet(format!("down/{topic}").as_bytes(), &payload, 0x30 | qos << 1, Some(id), None)
                    })
                    .concat(),
            ),
            None => Say::Usual,
        });
        let rule = format!("[[upstream.in]]\ntopic_filter = \"down/#\"\nqos = {qos}\n");
        let config = upstream("home", played.port, "protocol = 4") + &rule + "[journal]\nmax_size = \"4 MiB\"\n";
        let (gateway, port) = start(&config);
        // its session must keep them
        let mut reader = Connect::new("reader").persistent().open(gateway.port);
        reader.subscribe("down/#", 1);
        publish(&gateway, "a", &["1"], false);
        assert_eq!(reader.receive().text(), "later");
        let line = gateway.wait_for_line("message from upstream dropped");
        assert!(line.contains("ERROR") && line.contains("down/large") && line.contains("journal.max_size"), "{line}");
        wait_until("it is counted", || http::get(port, "/api/v1/upstreams").json()[0]["received_dropped"] == 1);
    }
}

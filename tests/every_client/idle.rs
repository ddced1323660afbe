//! The work of a gateway while nobody sends messages.

use std::thread::sleep;
use std::time::Duration;

use crate::support::{Client, Connect, Gateway};

/// The time of several beats, so that work on every second or fifth beat is included.
const WINDOW: Duration = Duration::from_secs(20);

#[test]
fn twenty_silent_clients_let_the_processor_sleep() {
    let gateway = Gateway::start();
    let clients: Vec<Client> = (0..20)
        .map(|number| {
            // the clients send pings from time to time
            let mut client = Connect::new(&format!("silent-{number}")).keep_alive(600).open(gateway.port);
            client.subscribe(&format!("node/{number}"), 0);
            client
        })
        .collect();
    // the work after a start and after connections takes half a minute
    let is_quiet = (0..6).any(|_| {
        let before = gateway.waits();
        sleep(WINDOW);
        // the figures of a thread that has ended are no longer counted
        let wakings = gateway.waits().saturating_sub(before);
        println!("{wakings} wakings in {WINDOW:?}");
        wakings <= WINDOW.as_secs()
    });
    assert!(is_quiet, "it is woken more than once a second");
    drop(clients);
}

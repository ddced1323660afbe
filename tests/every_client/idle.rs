//! What a gateway does while nobody has anything to say.

use std::thread::sleep;
use std::time::Duration;

use crate::support::{Client, Connect, Gateway};

/// Several beats, so that what happens on every second or fifth one counts as well.
const WINDOW: Duration = Duration::from_secs(20);

#[test]
fn twenty_silent_clients_let_the_processor_sleep() {
    let gateway = Gateway::start();
    let clients: Vec<Client> = (0..20)
        .map(|number| {
            // they ping now and then, as clients do
            let mut client = Connect::new(&format!("silent-{number}")).keep_alive(600).open(gateway.port);
            client.subscribe(&format!("node/{number}"), 0);
            client
        })
        .collect();
    // what follows a start and a connection takes half a minute
    let is_quiet = (0..6).any(|_| {
        let before = gateway.waits();
        sleep(WINDOW);
        // a thread that has ended takes its own with it
        let wakings = gateway.waits().saturating_sub(before);
        println!("{wakings} wakings in {WINDOW:?}");
        wakings <= WINDOW.as_secs()
    });
    assert!(is_quiet, "it is woken more than once a second");
    drop(clients);
}

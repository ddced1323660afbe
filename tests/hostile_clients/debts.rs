//! Whoever has cost the others so much that it must wait for minutes waits alone.

use std::io::ErrorKind;

use crate::support::packet::{Properties, subscribe};
use crate::support::{Client, Connect, Gateway, Setup, debt, http};

/// The clients of the network in debt that come while others are served.
const NEWCOMERS: usize = 30;

#[test]
fn a_guest_in_debt_keeps_no_other_network_waiting() {
    let (setup, http) = Setup::default().http();
    let gateway = setup.start();
    let (debtors, subscribers) = debt::in_debt(gateway.port, Connect::v5);
    drop((debtors, subscribers));
    // each of them waits for a second longer than the one before
    let newcomers: Vec<_> = (0..NEWCOMERS)
        .map(|number| {
            let mut newcomer = Connect::v5(&format!("newcomer-{number}")).open(gateway.port);
            newcomer.send(&subscribe(1, &[("kitchen", 1)], Some(&Properties::new())));
            newcomer
        })
        .collect();
    for id in ["kitchen", "door"] {
        let mut guest = Connect::v5(id).open_from(9, gateway.port);
        guest.subscribe("kitchen", 1);
        guest.publish("kitchen", "x", 1, false);
        assert_eq!(guest.receive().text(), "x");
    }
    let waits = |newcomer: &Client| {
        newcomer.socket.set_nonblocking(true).unwrap();
        newcomer.socket.peek(&mut [0]).is_err_and(|error| error.kind() == ErrorKind::WouldBlock)
    };
    assert!(newcomers.iter().any(waits), "its own network waits");
    assert_eq!(http::get(http, "/livez").status, 200);
}

#[test]
fn the_wills_of_clients_in_debt_keep_no_others_waiting() {
    let mut gateway = Gateway::with("[broker]\nmax_sessions = 20\n[broker.anonymous]\naccept = \"all\"\n");
    let delayed = |id: &str, topic: &str, seconds| {
        Connect::v5(id).persistent().will_with(topic, id, 0, false, Properties::new().four(0x18, seconds))
    };
    let mut watcher = Connect::v5("watcher").open_from(9, gateway.port);
    watcher.subscribe("innocent/left", 0);
    // sessions with so many filters are not written to the card at once
    let connect = |id: &str| if id.starts_with("filters") { Connect::v5(id) } else { delayed(id, "debtor/left", 1) };
    let (debtors, subscribers) = debt::in_debt(gateway.port, connect);
    let innocent = delayed("innocent", "innocent/left", 2).open_from(9, gateway.port);
    debtors.into_iter().for_each(|debtor| debtor.vanish());
    innocent.vanish();
    assert_eq!(watcher.receive().text(), "innocent");
    // and sessions beyond their number end, with wills that are still to come
    for number in 0..30 {
        delayed(&format!("away-{number}"), "x", 900).open_from(9, gateway.port).disconnect();
    }
    gateway.wait_for_line("more clients are away than broker.max_sessions");
    drop(subscribers);
    assert!(gateway.is_running());
}

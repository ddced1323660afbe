//! Whoever has cost the others so much that it must wait for minutes waits alone.

use std::io::ErrorKind;

use crate::support::packet::{Properties, subscribe};
use crate::support::{Connect, Setup, debt, http};

#[test]
fn a_guest_in_debt_keeps_no_other_network_waiting() {
    let (setup, http) = Setup::default().http();
    let gateway = setup.start();
    let (debtors, subscribers) = debt::in_debt(gateway.port, Connect::v5);
    drop((debtors, subscribers));
    let mut same = Connect::v5("same-network").open(gateway.port);
    same.send(&subscribe(1, &[("kitchen", 1)], Some(&Properties::new())));
    for id in ["kitchen", "door"] {
        let mut guest = Connect::v5(id).open_from(9, gateway.port);
        guest.subscribe("kitchen", 1);
        guest.publish("kitchen", "x", 1, false);
        assert_eq!(guest.receive().text(), "x");
    }
    same.socket.set_nonblocking(true).unwrap();
    let waits = same.socket.peek(&mut [0]);
    assert!(waits.is_err_and(|error| error.kind() == ErrorKind::WouldBlock), "its own network waits");
    assert_eq!(http::get(http, "/livez").status, 200);
}

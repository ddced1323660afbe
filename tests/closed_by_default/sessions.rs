//! Sessions belong to users: a client id gives no access to the session of another user.

use super::{PASSWORD, user};
use crate::support::broker::Setup;
use crate::support::packet::V5;
use crate::support::{Connect, Gateway};

fn gateway() -> Gateway {
    let users = user("ada", "publish = [\"a/#\"]\nsubscribe = [\"a/#\"]")
        + &user("bob", "publish = [\"b/#\"]\nsubscribe = [\"b/#\"]");
    Gateway::with(&users)
}

fn persistent(id: &str) -> Connect {
    Connect::new(id).persistent()
}

#[test]
fn the_client_id_of_another_user_touches_nothing_of_it() {
    let gateway = gateway();
    let ada = || persistent("x").login("ada", PASSWORD);
    let mut away = ada().open(gateway.port);
    assert_eq!(away.subscribe("a/#", 1), 1);
    away.disconnect();
    let mut publisher = Connect::new("p").login("ada", PASSWORD).open(gateway.port);
    for number in 0..10 {
        assert_eq!(publisher.publish("a/t", number.to_string(), 1, false), 0);
    }
    // a user, a client without a user name, and both of them once more after kill -9
    let (mut bob, connack) = persistent("x").login("bob", PASSWORD).open_with(gateway.port);
    assert!(!connack.present);
    assert_eq!(bob.subscribe("b/#", 1), 1);
    let (guest, connack) = persistent("x").open_with(gateway.port);
    assert!(!connack.present);
    bob.ping();
    drop((guest, bob));
    let gateway = gateway.kill().restart();
    let (bob, connack) = persistent("x").login("bob", PASSWORD).open_with(gateway.port);
    assert!(connack.present, "its own session");
    let (mut back, connack) = ada().open_with(gateway.port);
    assert!(connack.present);
    for number in 0..10 {
        assert_eq!(back.receive().payload, number.to_string().as_bytes());
    }
    drop(bob);
}

#[test]
fn the_same_client_id_of_two_users_is_connected_twice() {
    let gateway = gateway();
    let mut ada = Connect::version(V5, "x").login("ada", PASSWORD).open(gateway.port);
    let mut bob = Connect::version(V5, "x").login("bob", PASSWORD).open(gateway.port);
    let mut guest = Connect::version(V5, "x").open(gateway.port);
    ada.subscribe("a/#", 1);
    bob.subscribe("b/#", 1);
    ada.publish("a/t", "for ada", 1, false);
    bob.publish("b/t", "for bob", 1, false);
    assert_eq!(ada.receive().payload, b"for ada");
    assert_eq!(bob.receive().payload, b"for bob");
    guest.ping();
    // the same user takes over its own session
    let mut again = Connect::version(V5, "x").login("ada", PASSWORD).open(gateway.port);
    ada.closed_with(0x8e);
    again.ping();
    bob.ping();
}

#[test]
fn a_node_that_was_given_a_password_leaves_no_session_behind() {
    let gateway = Setup::default().config(&(user("ada", "") + "[broker.anonymous]\naccept = \"all\"")).start();
    let mut before = persistent("node").open(gateway.port);
    before.subscribe("t", 1);
    before.disconnect();
    let (_node, connack) = persistent("node").login("ada", PASSWORD).open_with(gateway.port);
    assert!(!connack.present, "what was queued for anybody is for nobody in particular");
    let (_guest, connack) = persistent("node").open_with(gateway.port);
    assert!(!connack.present, "the session without a user has ended");
}

#[test]
fn sessions_of_clients_without_a_user_do_not_push_out_a_users() {
    let rules = user("ada", "") + "[broker]\nmax_sessions = 20\n[broker.anonymous]\naccept = \"all\"";
    let gateway = Setup::default().config(&rules).start();
    let ada = || persistent("x").login("ada", PASSWORD);
    let mut away = ada().open(gateway.port);
    away.subscribe("t", 1);
    away.disconnect();
    assert_eq!(Connect::new("p").open(gateway.port).publish("t", "kept", 1, false), 0);
    for number in 0..60 {
        let mut guest = persistent(&format!("guest-{number}")).open(gateway.port);
        guest.subscribe("t", 1);
        guest.disconnect();
    }
    let (mut back, connack) = ada().open_with(gateway.port);
    assert!(connack.present);
    assert_eq!(back.receive().payload, b"kept");
}

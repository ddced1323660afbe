//! Groups whose members may receive different things: what some may not have waits for those that may.

use std::collections::BTreeSet;

use super::{PASSWORD, hash, user};
use crate::support::{Client, Connect, Gateway, free_port};

const GUESTS: &str =
    "[broker.anonymous]\naccept = \"all\"\npublish = [\"#\"]\nsubscribe = [\"public/#\", \"fence/#\"]\n";
const FILTER: &str = "$share/g/+/jobs";

/// A guest that is in the group.
fn guest(gateway: &Gateway) -> Client {
    let mut guest = Connect::v5("guest").open(gateway.port);
    assert_eq!(guest.subscribe(FILTER, 1), 1);
    guest
}

/// Publishes jobs that guests may not receive, and waits until the group has come to the end of them.
fn publish(gateway: &Gateway, guest: &mut Client, jobs: std::ops::Range<u32>) {
    let mut publisher = Connect::v5("publisher").open(gateway.port);
    jobs.for_each(|number| assert_eq!(publisher.publish("loft/jobs", number.to_string(), 1, false), 0));
    publisher.publish("public/jobs", "end", 1, false);
    assert_eq!(guest.receive().topic, "public/jobs");
}

/// Waits for this many different jobs, and returns their numbers. After a restart some may come twice.
fn jobs(client: &mut Client, count: usize) -> BTreeSet<u32> {
    let mut jobs = BTreeSet::new();
    while jobs.len() < count {
        let message = client.receive();
        if message.topic == "loft/jobs" {
            jobs.insert(message.text().parse().unwrap());
        }
    }
    jobs
}

#[test]
fn who_may_sign_in_at_one_listener_alone_is_waited_for_after_a_restart_too() {
    for is_guest in [false, true] {
        let own = free_port();
        let who = match is_guest {
            true => "anonymous = { accept = \"all\", publish = [\"#\"], subscribe = [\"#\"] }\n".to_owned(),
            false => format!("[[broker.listener.user]]\nname = \"ada\"\npassword_hash = \"{}\"\n", hash()),
        };
        let gateway = Gateway::with(&format!("[[broker.listener]]\naddress = \"127.0.0.1:{own}\"\n{who}{GUESTS}"));
        let worker = || {
            let worker = Connect::v5("worker").persistent();
            if is_guest { worker } else { worker.login("ada", PASSWORD) }.open(own)
        };
        let mut client = worker();
        assert_eq!(client.subscribe(FILTER, 1), 1);
        client.disconnect();
        let gateway = gateway.end().restart();
        let mut guest = guest(&gateway);
        publish(&gateway, &mut guest, 0..5);
        assert_eq!(jobs(&mut worker(), 5), BTreeSet::from_iter(0..5), "as a guest: {is_guest}");
    }
}

#[test]
fn a_member_that_is_away_has_the_rights_of_the_rules_in_force() {
    let gateway = Gateway::with(&(user("ada", "subscribe = [\"public/#\"]\n") + GUESTS));
    let ada = |id: &str| Connect::v5(id).login("ada", PASSWORD);
    let worker = || ada("worker").persistent().open(gateway.port);
    let mut client = worker();
    assert_eq!(client.subscribe(FILTER, 1), 1);
    client.disconnect();
    let mut watcher = ada("watcher").open(gateway.port);
    let path = gateway.dir().join("pigateway.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replacen("subscribe = [\"public/#\"]", "subscribe = [\"loft/#\"]", 1)).unwrap();
    gateway.signal(rustix::process::Signal::HUP);
    watcher.closed_with(0x98);
    publish(&gateway, &mut guest(&gateway), 0..3);
    assert_eq!(jobs(&mut worker(), 3), BTreeSet::from_iter(0..3));
}

fn worker(gateway: &Gateway, id: &str) -> Connect {
    let worker = Connect::v5(id).login("ada", PASSWORD).persistent();
    let mut client = worker.open(gateway.port);
    assert_eq!(client.subscribe(FILTER, 1), 1);
    client.disconnect();
    worker
}

#[test]
fn jobs_of_a_worker_that_is_back_soon_do_not_go_to_one_that_never_comes_back() {
    for is_killed in [false, true] {
        let gateway = Gateway::with(&(user("ada", "") + GUESTS));
        worker(&gateway, "gone");
        let worker = worker(&gateway, "away");
        publish(&gateway, &mut guest(&gateway), 0..5);
        let gateway = if is_killed { gateway.kill().restart() } else { gateway };
        assert_eq!(jobs(&mut worker.open(gateway.port), 5), BTreeSet::from_iter(0..5), "killed: {is_killed}");
    }
}

#[test]
fn many_jobs_wait_for_a_worker_however_far_the_others_go_on() {
    for is_killed in [false, true] {
        let gateway = Gateway::with(&(user("ada", "") + GUESTS));
        let worker = worker(&gateway, "away");
        let mut guest = guest(&gateway);
        publish(&gateway, &mut guest, 0..100);
        (0..300).for_each(|_| publish(&gateway, &mut guest, 0..0));
        publish(&gateway, &mut guest, 100..110);
        let gateway = if is_killed { gateway.kill().restart() } else { gateway };
        let mut worker = worker.open(gateway.port);
        assert_eq!(jobs(&mut worker, 110), BTreeSet::from_iter(0..110), "killed: {is_killed}");
    }
}

#[test]
fn jobs_that_wait_are_given_up_when_nobody_may_receive_them_any_more() {
    let gateway = Gateway::with(&(user("ada", "") + GUESTS));
    worker(&gateway, "away");
    let mut guest = guest(&gateway);
    publish(&gateway, &mut guest, 0..5);
    // the session of the worker ends
    let mut worker = Connect::v5("away").login("ada", PASSWORD).open(gateway.port);
    assert_eq!(worker.subscribe(FILTER, 1), 1);
    assert_eq!(worker.publish("loft/jobs", "5", 1, false), 0);
    assert_eq!(jobs(&mut worker, 1), BTreeSet::from_iter(5..6));
}

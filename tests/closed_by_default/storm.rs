//! After a power cut, two hundred clients come back at the same time.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use super::{PASSWORD, user};
use crate::support::{Client, Connect, Gateway, Setup};

const CLIENTS: usize = 200;
/// The users of a house with many devices of each.
const USERS: usize = 20;
/// Two argon2 checks at a time would need 40 MiB more than one.
const PEAK_KIB: u64 = 100 << 10;

/// All clients, which have this number of users, connect at once.
fn storm(gateway: &Gateway, users: usize) -> Vec<Client> {
    let port = gateway.port;
    std::thread::scope(|scope| {
        let connecting: Vec<_> = (0..CLIENTS)
            .map(|number| {
                let name = format!("user-{}", number % users);
                let connect = Connect::new(&format!("client-{number}")).login(&name, PASSWORD);
                scope.spawn(move || {
                    // real clients wait longer than a test
                    connect.open_patiently(TcpStream::connect(("127.0.0.1", port)).unwrap())
                })
            })
            .collect();
        connecting.into_iter().map(|client| client.join().unwrap()).collect()
    })
}

#[test]
fn two_hundred_clients_with_passwords_come_back_within_little_memory() {
    let users: String = (0..CLIENTS).map(|number| user(&format!("user-{number}"), "")).collect();
    let gateway = Setup::default().config(&users).start();
    let clients = storm(&gateway, CLIENTS);
    assert!(gateway.memory_kib("VmHWM") < PEAK_KIB, "{} KiB", gateway.memory_kib("VmHWM"));
    clients.into_iter().for_each(Client::vanish);
    // their passwords are known now
    for mut client in storm(&gateway, CLIENTS) {
        client.ping();
    }
    assert!(gateway.memory_kib("VmHWM") < PEAK_KIB, "{} KiB", gateway.memory_kib("VmHWM"));
}

#[test]
fn all_devices_of_a_house_behind_one_address_come_back_within_seconds() {
    let users: String = (0..USERS).map(|number| user(&format!("user-{number}"), "")).collect();
    let gateway = Setup::default().config(&users).start();
    let nodes = storm(&gateway, USERS);
    nodes.into_iter().for_each(Client::vanish);
    // after a restart no password is remembered, but the address is
    let gateway = gateway.end().restart();
    let begin = Instant::now();
    let nodes = storm(&gateway, USERS);
    assert_eq!(nodes.len(), CLIENTS);
    assert!(begin.elapsed() < Duration::from_secs(30), "{:?}", begin.elapsed());
}

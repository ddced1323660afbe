//! After a power cut, two hundred clients come back at the same time.

use std::net::TcpStream;

use super::{PASSWORD, user};
use crate::support::{Client, Connect, Gateway, Setup};

const CLIENTS: usize = 200;
/// Two argon2 checks at a time would need 40 MiB more than one.
const PEAK_KIB: u64 = 100 << 10;

fn storm(gateway: &Gateway) -> Vec<Client> {
    let port = gateway.port;
    std::thread::scope(|scope| {
        let connecting: Vec<_> = (0..CLIENTS)
            .map(|number| {
                let connect = Connect::new(&format!("client-{number}")).login(&format!("user-{number}"), PASSWORD);
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
    let clients = storm(&gateway);
    assert!(gateway.memory_kib("VmHWM") < PEAK_KIB, "{} KiB", gateway.memory_kib("VmHWM"));
    clients.into_iter().for_each(Client::vanish);
    // their passwords are known now
    for mut client in storm(&gateway) {
        client.ping();
    }
    assert!(gateway.memory_kib("VmHWM") < PEAK_KIB, "{} KiB", gateway.memory_kib("VmHWM"));
}

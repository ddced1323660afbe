//! Clients that cost the others so much that they owe more time than any test is patient.

use std::net::{SocketAddr, TcpStream};

use socket2::{Domain, Socket, Type};

use super::packet::{Properties, publish};
use super::{Client, Connect};

/// The levels of a topic that thousands of filters select.
const LEVELS: u32 = 15;
/// The clients that publish on such topics.
const CLIENTS: usize = 24;

/// A topic of this name that all filters of [`subscribe`] select.
pub fn dear_topic(name: &str) -> String {
    "a/".repeat(LEVELS as usize - 1) + name
}

/// Subscribes to thousands of filters that overlap, with connections that are made by `connect`.
pub fn subscribe(port: u16, connect: impl Fn(&str) -> Connect) -> Vec<Client> {
    let level = |number: usize, at: u32| if at + 1 == LEVELS || number >> at & 1 == 1 { "+" } else { "a" };
    let filter = |number: usize| (0..LEVELS).map(|at| level(number, at)).collect::<Vec<_>>().join("/");
    let filters: Vec<String> = (0..1 << (LEVELS - 1)).map(filter).collect();
    let mut clients = Vec::new();
    for (number, some) in filters.chunks(4096).enumerate() {
        let mut client = connect(&format!("filters-{number}")).open(port);
        for some in some.chunks(1024) {
            let some: Vec<(&str, u8)> = some.iter().map(|filter| (filter.as_str(), 0)).collect();
            assert_eq!(client.subscribe_all(&some, &Properties::new()), vec![0; some.len()]);
        }
        clients.push(client);
    }
    clients
}

/// Clients of MQTT 5, made by `connect`, that are in debt. Their subscribers are still connected.
pub fn in_debt(port: u16, connect: impl Fn(&str) -> Connect) -> (Vec<Client>, Vec<Client>) {
    // connected first, so that none of them waits for the debt of the others
    let mut debtors: Vec<Client> = (0..CLIENTS).map(|number| connect(&format!("debtor-{number}")).open(port)).collect();
    let subscribers = subscribe(port, connect);
    let mut observer = Connect::v5("observer").open_from(8, port);
    observer.subscribe(&dear_topic("+"), 0);
    let topic = dear_topic("x");
    let burst = publish(topic.as_bytes(), b"x", 0x30, None, Some(&Properties::new())).repeat(2);
    debtors.iter_mut().for_each(|debtor| debtor.send(&burst));
    for _ in 0..2 * CLIENTS {
        observer.receive();
    }
    (debtors, subscribers)
}

impl Connect {
    /// Connects from the address of this host with this last number, which counts as a network of its own.
    #[track_caller]
    pub fn open_from(&self, last: u8, port: u16) -> Client {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from(([127, 0, 0, last], 0)).into()).unwrap();
        socket.connect(&SocketAddr::from(([127, 0, 0, 1], port)).into()).unwrap();
        self.open_patiently(TcpStream::from(socket))
    }
}

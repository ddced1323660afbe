//! As many clients as are accepted, each of which takes as much memory as it can at the same time. Together they stay
//! within the memory that the systemd unit allows on the smallest Pi, and others do not notice.

use std::io::Write;
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use socket2::{Domain, Socket, Type};

use super::assert_it_serves_but;
use crate::support::broker::{Setup, password_hash};
use crate::support::packet::{Properties, publish};
use crate::support::{Client, Connect, Gateway, wait_until};

/// The limit for a debug build in KiB. The unit allows 60 % of the memory that a Zero has beside its graphics, which are
/// 280 MiB.
const MOST: u64 = 260 << 10;
const LARGE: usize = 100_000;
const LARGEST: usize = 2_000_000;
const LARGEST_WILL: usize = 60_000;
const PASSWORD: &str = "correct horse";

/// A socket with a small receive buffer.
fn small_socket(port: u16) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.connect(&std::net::SocketAddr::from(([127, 0, 0, 1], port)).into()).unwrap();
    TcpStream::from(socket)
}

/// Clients that take as much memory as they can, as guests or as a user.
struct Villains<'a> {
    gateway: &'a Gateway,
    user: Option<&'a str>,
    count: usize,
    clients: Vec<Client>,
}

impl<'a> Villains<'a> {
    fn new(gateway: &'a Gateway, user: Option<&'a str>) -> Villains<'a> {
        Villains { gateway, user, count: 0, clients: Vec::new() }
    }

    /// Connects with the largest will, if there is memory for one more, and with a small receive buffer.
    fn open(&mut self, change: impl FnOnce(Connect) -> Connect) -> Client {
        self.count += 1;
        let connect = Connect::v5(&format!("villain-{}", self.name())).keep_alive(0);
        let connect = match self.user {
            Some(user) => change(connect).login(user, PASSWORD),
            None => change(connect),
        };
        let largest = connect.clone().will("last/will", &"x".repeat(LARGEST_WILL), 0, false);
        match largest.ask_patiently(small_socket(self.gateway.port)) {
            (client, 0) => client,
            (_, reason) => {
                assert_eq!(reason, 0x97);
                connect.open_patiently(small_socket(self.gateway.port))
            }
        }
    }

    /// A topic for the last client.
    fn name(&self) -> String {
        format!("{}/{}", self.user.unwrap_or("guest"), self.count)
    }

    fn said(&self, what: &str) {
        let (rss, most) = (self.gateway.memory_kib("VmRSS"), self.gateway.memory_kib("VmHWM"));
        println!("{} {what}: {rss} KiB, {most} KiB at most", self.user.unwrap_or("guests"));
    }

    /// Clients with full queues that read nothing.
    fn do_not_read(&mut self, count: usize) {
        let mut topics = Vec::new();
        for _ in 0..count {
            let mut client = self.open(|connect| connect);
            topics.push(self.name());
            assert_eq!(client.subscribe_all(&[(&self.name(), 0), ("everybody", 0)], &Properties::new()), [0, 0]);
            self.clients.push(client);
        }
        let mut publisher = self.open(|connect| connect);
        for _ in 0..45 {
            for topic in &topics {
                publisher.publish(topic, vec![b'x'; LARGE], 0, false);
            }
            publisher.ping();
        }
        publisher.publish("everybody", vec![b'x'; LARGEST], 0, false);
        publisher.ping();
        self.clients.push(publisher);
        self.said("do not read");
    }

    /// Clients that read all messages and acknowledge nothing, or only the first half of QoS 2.
    fn do_not_acknowledge(&mut self, count: usize, is_persistent: bool) {
        let mut publisher = self.open(|connect| connect);
        for at in 0..count {
            let endless = Properties::new().two(0x21, u16::MAX).four(0x11, if is_persistent { 3600 } else { 0 });
            let mut client = self.open(|connect| connect.clean(!is_persistent).properties(endless));
            let (topic, qos) = (self.name(), 1 + (at % 2) as u8);
            assert_eq!(client.subscribe(&topic, qos), qos);
            for _ in 0..12 {
                publisher.publish(&topic, vec![b'x'; 5 * LARGE], qos, false);
            }
            (0..3).for_each(|_| client.ping());
            while let Some(message) = client.has_come() {
                if message.qos == 2 {
                    client.ack(0x50, message.id);
                }
            }
            self.clients.push(client);
        }
        self.clients.push(publisher);
        self.said(if is_persistent { "persistent, do not acknowledge" } else { "do not acknowledge" });
    }

    /// Clients that send all but the end of the largest packet.
    fn begin_packets(&mut self, count: usize) {
        let whole = publish(b"half", &vec![b'x'; LARGEST], 0x30, None, Some(&Properties::new()));
        for _ in 0..count {
            let mut client = self.open(|connect| connect);
            client.socket.set_nonblocking(true).unwrap();
            // the sockets hold many of the bytes that the gateway does not read yet
            let _ = client.try_send(&whole[..whole.len() - 10]);
            self.clients.push(client);
        }
        self.said("half packets");
    }

    /// Clients with the greatest number and length of filters, and of topics behind aliases in both directions.
    fn subscribe_at_length(&mut self, count: usize) {
        for _ in 0..count {
            let mut client = self.open(|connect| connect.properties(Properties::new().two(0x22, u16::MAX)));
            for at in 0..31 {
                let filter = format!("{}/{at}/{}", self.name(), "y".repeat(65_000));
                client.subscribe(&filter, 0);
            }
            let short: Vec<String> = (0..2000).map(|at| format!("{}/{at}/+", self.name())).collect();
            let short: Vec<(&str, u8)> = short.iter().map(|filter| (filter.as_str(), 0)).collect();
            client.subscribe_all(&short, &Properties::new());
            for alias in [1, 2] {
                let long = format!("{}/{}", self.name(), "z".repeat(60_000));
                client.send(&publish(long.as_bytes(), b"", 0x30, None, Some(&Properties::new().two(0x23, alias))));
            }
            for at in 0..200 {
                client.publish(&format!("{}/{at}/a", self.name()), "x", 0, false);
            }
            client.ping();
            self.clients.push(client);
        }
        self.said("filters and aliases");
    }

    /// Clients with a thousand shared subscriptions each, and large messages for all of them.
    fn share(&mut self, count: usize) {
        for _ in 0..count {
            let mut client = self.open(|connect| connect);
            let name = self.name();
            let filters: Vec<String> = (0..1000).map(|at| format!("$share/g/{name}/{at}")).collect();
            let all: Vec<(&str, u8)> = filters.iter().map(|filter| (filter.as_str(), 0)).collect();
            client.subscribe_all(&all, &Properties::new());
            let mut publisher = self.open(|connect| connect);
            for at in 0..60 {
                publisher.publish(&format!("{name}/{at}"), vec![b'x'; LARGE], 0, false);
            }
            publisher.ping();
            self.clients.extend([client, publisher]);
        }
        self.said("shared subscriptions");
    }

    /// Retained messages up to the limit.
    fn retain(&mut self) {
        let mut client = self.open(|connect| connect);
        for at in 0..12 {
            client.publish(&format!("{}/kept/{at}", self.name()), vec![b'x'; LARGEST], 0, true);
        }
        client.ping();
        self.clients.push(client);
        self.said("retained");
    }
}

/// Answers by HTTP that are not read, and requests that are not complete.
fn ask(http: u16) -> Vec<TcpStream> {
    let body = [
        &b"PUT /api/v1/topics/half HTTP/1.1\r\nHost: localhost\r\nContent-Length: 2000000\r\n\r\n"[..],
        &[b'x'; 60_000],
    ]
    .concat();
    let head = [&b"GET /api/v1/topics/half HTTP/1.1\r\nHost: localhost\r\nX-Long: "[..], &[b'x'; 30_000]].concat();
    let upgrade = b"GET /mqtt HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
        Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    let connect = Connect::new(&"x".repeat(65_000)).encode();
    let frame =
        [&[0x82, 0xff, 0, 0, 0, 0][..], &(connect.len() as u32).to_be_bytes(), &[0; 4], &connect[..60_000]].concat();
    let half_open = [&upgrade[..], &frame].concat();
    let get = |target: &str| format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n").into_bytes();
    let asked = [
        (40, body),
        (20, head),
        (40, half_open),
        (40, get("/api/v1/topics/guest/1/kept/1")),
        (40, get("/api/v1/topics?filter=%23")),
        (70, get("/api/v1/stream?filter=%23&status=true")),
    ];
    let mut sockets = Vec::new();
    for (count, bytes) in asked {
        for _ in 0..count {
            let mut socket = small_socket(http);
            socket.write_all(&bytes).unwrap();
            sockets.push(socket);
        }
    }
    sockets
}

/// Measures round trips of a pair of clients until it is told to stop.
fn converse(port: u16, user: Option<&str>, over: &AtomicBool, count: &AtomicU32) {
    let named = |name: &str| match user {
        Some(user) => Connect::v5(name).login(user, PASSWORD),
        None => Connect::v5(name),
    };
    let topic = format!("good/{}", user.unwrap_or("guest"));
    let mut reader = named("good-reader").open(port);
    reader.subscribe(&topic, 1);
    let mut publisher = named("good-publisher").open(port);
    while !over.load(Ordering::Relaxed) {
        let payload = vec![b'x'; 1 + count.load(Ordering::Relaxed) as usize % 20_000];
        assert_eq!(publisher.publish(&topic, &payload, 1, false), 0);
        assert_eq!(reader.receive().payload.len(), payload.len());
        count.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn the_worst_of_all_at_once_stays_within_the_memory_of_a_zero() {
    let hash = password_hash(PASSWORD);
    let users =
        ["ada", "bob", "eve"].map(|name| format!("[[broker.user]]\nname = \"{name}\"\npassword_hash = \"{hash}\"\n"));
    let (setup, http) =
        Setup::default().config(&format!("{}[broker.anonymous]\naccept = \"all\"\n", users.concat())).http();
    let mut gateway = setup.start();
    let port = gateway.port;
    let (over, counts) = (AtomicBool::new(false), [const { AtomicU32::new(0) }; 2]);
    std::thread::scope(|scope| {
        for (user, count) in [None, Some("eve")].into_iter().zip(&counts) {
            let over = &over;
            scope.spawn(move || converse(port, user, over, count));
        }
        // the pairs end even if a check fails here
        let _end = End(&over);
        do_their_worst(&gateway, http);
        // others are served meanwhile
        for count in &counts {
            let before = count.load(Ordering::Relaxed);
            wait_until("others go on", || count.load(Ordering::Relaxed) > before + 20);
        }
    });
    let most = gateway.memory_kib("VmHWM");
    println!("{most} KiB at most; {counts:?} round trips of others");
    assert!(most < MOST, "{most} KiB at most");
    assert_it_serves_but(&mut gateway, &["has lost its oldest messages"]);
}

/// Tells the pairs to stop when it is dropped.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn do_their_worst(gateway: &Gateway, http: u16) {
    let mut all = [None, Some("ada"), Some("bob")].map(|user| Villains::new(gateway, user));
    for (villains, part) in all.iter_mut().zip([2, 1, 1]) {
        villains.retain();
        villains.begin_packets(5 * part);
        villains.do_not_acknowledge(9 * part, false);
        villains.do_not_acknowledge(3 * part, true);
        villains.share(part);
        villains.do_not_read(20 * part);
        // this comes last, because it takes all filters, so that nobody else gets any
        villains.subscribe_at_length(4 * part);
    }
    let sockets = ask(http);
    all[0].said("and HTTP");
    // the messages for them are on their way
    wait_until("answers wait", || sockets.iter().filter(|socket| socket.peek(&mut [0; 1]).is_ok()).count() > 100);
    let mut publisher = all[0].open(|connect| connect);
    for at in 0..30 {
        publisher.publish(&format!("streamed/{at}"), vec![b'x'; 60_000], 0, false);
    }
    publisher.publish("everybody", vec![b'x'; LARGEST], 0, false);
    publisher.ping();
    all[0].said("and HTTP, and more");
}

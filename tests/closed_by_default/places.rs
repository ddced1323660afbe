//! The shares of one client in common resources: places, subscriptions and retained messages.
//!
//! A test host has no usable address but its own. Its many addresses from 127.0.0.0/8 stand for several networks, and
//! connections through a proxy count as coming from outside.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};

use base64ct::{Base64, Encoding};
use socket2::{Domain, Socket, Type};

use super::{PASSWORD, user};
use crate::support::broker::Setup;
use crate::support::http::{get, request};
use crate::support::packet::Properties;
use crate::support::{Client, Connect, Gateway, ReadSome, wait_until};

const ALL: &str = "[broker.anonymous]\naccept = \"all\"\n";

/// Connects from this address of the host.
fn open_from(connect: &Connect, last: u8, port: u16) -> (Client, u8) {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    socket.bind(&SocketAddr::from(([127, 0, 0, last], 0)).into()).unwrap();
    socket.connect(&SocketAddr::from(([127, 0, 0, 1], port)).into()).unwrap();
    let stream = TcpStream::from(socket);
    let (client, connack) = connect.try_over(Box::new(stream.try_clone().unwrap()), stream);
    (client, connack.reason)
}

/// Connects guests until no more are accepted.
fn flood(last: u8, port: u16) -> Vec<Client> {
    let clients = (0..1000).map_while(|number| {
        let (client, reason) = open_from(&Connect::v5(&format!("flood-{last}-{number}")), last, port);
        (reason == 0).then_some(client)
    });
    clients.collect()
}

fn ada(id: &str) -> Connect {
    Connect::v5(id).login("ada", PASSWORD)
}

fn authorization() -> String {
    format!("Basic {}", Base64::encode_string(format!("ada:{PASSWORD}").as_bytes()))
}

#[test]
fn guests_cannot_take_the_places_of_users_or_of_one_another() {
    let rules = user("ada", "") + "[broker]\nmax_connections = 40\n" + ALL;
    let (setup, http) = Setup::default().config(&rules).http();
    let gateway = setup.start();
    let mut guests = flood(1, gateway.port);
    assert_eq!(guests.len(), 30);
    assert_eq!(Connect::v5("one more").refused(gateway.port), 0x89);
    // a guest of another network takes the place of the last of these guests
    let (mut other, reason) = open_from(&Connect::v5("other"), 2, gateway.port);
    assert_eq!(reason, 0);
    guests.pop().unwrap().closed_with(0x89);
    // users have places that guests cannot take, by MQTT, WebSocket and HTTP
    let mut users: Vec<Client> = (0..9).map(|number| ada(&number.to_string()).open(gateway.port)).collect();
    users.push(web(http, &[], &ada("web")).unwrap());
    assert_eq!(request(http, "GET", "/api/v1/clients", &[("Authorization", &authorization())], b"").status, 200);
    users.iter_mut().for_each(Client::ping);
    // beyond these the user takes places of guests, as long as they have more
    users.extend((10..18).map(|number| ada(&number.to_string()).open(gateway.port)));
    assert_eq!(ada("one more").refused(gateway.port), 0x89);
    users.iter_mut().for_each(Client::ping);
    other.ping();
    guests[0].ping();
    // the same client again has its own place
    ada("0").open(gateway.port).ping();
    users[0].closed_with(0x8e);
    gateway.wait_for_line("its place was needed");
}

#[test]
fn a_client_that_comes_back_to_its_session_goes_before_strangers() {
    let gateway = Gateway::with(&format!("[broker]\nmax_connections = 20\n{ALL}"));
    let sleeper = Connect::v5("sleeper").persistent();
    let mut away = sleeper.open(gateway.port);
    away.subscribe("news", 1);
    away.disconnect();
    let mut strangers = flood(1, gateway.port);
    assert_eq!(strangers.len(), 20);
    let (mut back, connack) = sleeper.open_with(gateway.port);
    assert!(connack.present);
    back.ping();
    strangers.pop().unwrap().closed_with(0x89);
    strangers[0].ping();
}

/// A minimal client for MQTT over WebSocket, with binary frames that are not fragmented.
struct Web {
    stream: TcpStream,
    left: usize,
}

impl Read for Web {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.left == 0 {
            let mut head = [0; 2];
            self.stream.read_exact(&mut head)?;
            self.left = usize::from(head[1]);
            if self.left == 126 {
                self.stream.read_exact(&mut head)?;
                self.left = usize::from(u16::from_be_bytes(head));
            }
        }
        let most = buffer.len().min(self.left);
        let count = self.stream.read_some(&mut buffer[..most])?;
        self.left -= count;
        Ok(count)
    }
}

impl Write for Web {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // a mask of zeros is valid
        let part = &bytes[..bytes.len().min(125)];
        let frame = [&[0x82, 0x80 | part.len() as u8, 0, 0, 0, 0], part].concat();
        self.stream.write_all(&frame)?;
        Ok(part.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A client by WebSocket; `None` if it was refused.
fn web(port: u16, headers: &[&str], connect: &Connect) -> Option<Client> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let more: String = headers.iter().map(|header| format!("{header}\r\n")).collect();
    let head = "GET /mqtt HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    stream.write_all(format!("{head}{more}\r\n").as_bytes()).unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        answer.push(byte[0]);
    }
    assert!(answer.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&answer));
    let web = Web { stream: stream.try_clone().unwrap(), left: 0 };
    let (client, connack) = connect.try_over(Box::new(web), stream);
    (connack.reason == 0).then_some(client)
}

#[test]
fn guests_from_elsewhere_never_lock_out_this_host() {
    let (setup, http) = Setup::default().config(&format!("[broker]\nmax_connections = 64\n{ALL}")).http();
    let gateway = setup.start();
    let elsewhere = ["X-Forwarded-For: 198.51.100.7"];
    let strangers: Vec<Client> =
        (0..100).map_while(|number| web(http, &elsewhere, &Connect::v5(&format!("stranger-{number}")))).collect();
    assert_eq!(strangers.len(), 42, "three quarters of what guests may have");
    let mut here: Vec<Client> = (0..22).map(|number| Connect::v5(&number.to_string()).open(gateway.port)).collect();
    assert_eq!(get(http, "/api/v1/clients").status, 200);
    here.iter_mut().for_each(Client::ping);
}

#[test]
fn idle_http_connections_keep_nobody_out() {
    let rules = user("ada", "") + ALL;
    let (setup, http) = Setup::default().config(&rules).http();
    let _gateway = setup.start();
    let idle: Vec<TcpStream> = (0..1200).map(|_| TcpStream::connect(("127.0.0.1", http)).unwrap()).collect();
    assert_eq!(get(http, "/api/v1/clients").status, 200, "somebody new may be anybody");
    let header = ("Authorization", authorization());
    let header = (header.0, header.1.as_str());
    assert_eq!(request(http, "GET", "/api/v1/clients", &[header], b"").status, 200);
    web(http, &[], &ada("web")).unwrap().ping();
    drop(idle);
}

#[test]
fn subscriptions_of_guests_leave_room_for_users_and_for_other_guests() {
    let gateway = Setup::default().config(&(user("ada", "") + ALL)).start();
    // a long filter counts as much as many short ones
    let long = |client: u8, number: u8| format!("{client}/{number}/{}", "x".repeat(60_000));
    let mut guests = Vec::new();
    let mut granted = 0;
    for number in 0..12 {
        let (mut client, _) = open_from(&Connect::v5(&format!("greedy-{number}")).persistent(), 1, gateway.port);
        granted += (0..34).filter(|filter| client.subscribe(&long(number, *filter), 1) == 1).count();
        // subscriptions of absent clients still count
        if number % 2 == 0 {
            client.disconnect();
        } else {
            guests.push(client);
        }
    }
    assert_eq!(granted, 40_000 / 469, "each 128 bytes of a filter count as one");
    assert_eq!(guests[0].subscribe(&long(99, 99), 1), 0x97);
    let (mut other, _) = open_from(&Connect::v5("other"), 2, gateway.port);
    assert_eq!(other.subscribe("news", 1), 1);
    let filters: Vec<String> = (0..2000).map(|number| format!("ada/{number}")).collect();
    let mut users = ada("user").open(gateway.port);
    for block in filters.chunks(100) {
        let wanted: Vec<(&str, u8)> = block.iter().map(|filter| (filter.as_str(), 1)).collect();
        assert!(users.subscribe_all(&wanted, &Properties::new()).iter().all(|granted| *granted == 1));
    }
    // freed subscriptions are available again
    assert_eq!(guests[0].unsubscribe(&long(1, 0)), 0);
    assert_eq!(guests[0].subscribe(&long(99, 99), 1), 1);
    gateway.wait_for_line("too many subscriptions");
}

#[test]
fn retained_topics_of_guests_leave_room_for_users_by_every_door() {
    let rules = user("ada", "") + "[broker]\nmax_retained = 50\n" + ALL;
    let (setup, http) = Setup::default().config(&rules).http();
    let gateway = setup.start();
    let mut guest = Connect::v5("guest").open(gateway.port);
    let kept = (0..60).filter(|number| guest.publish(&format!("g/{number}"), "x", 1, true) == 0).count();
    assert_eq!(kept, 50, "who is alone may have all");
    assert_eq!(Connect::v5("another").open(gateway.port).publish("g/more", "x", 1, true), 0x97);
    assert_eq!(request(http, "PUT", "/api/v1/topics/g/web?retain=true", &[], b"x").status, 507);
    let mut user = ada("user").open(gateway.port);
    let kept = (0..60).filter(|number| user.publish(&format!("u/{number}"), "x", 1, true) == 0).count();
    assert_eq!(kept, 10);
    let header = authorization();
    let put = |topic: &str| {
        let target = format!("/api/v1/topics/{topic}?retain=true");
        request(http, "PUT", &target, &[("Authorization", &header)], b"x").status
    };
    assert_eq!(put("u/web"), 507, "the same user by another door");
    // after a restart each message still counts for the same holder
    let gateway = gateway.kill().restart();
    let mut guest = Connect::v5("guest").open(gateway.port);
    assert_eq!(guest.publish("g/more", "x", 1, true), 0x97);
    assert_eq!(guest.publish("g/0", "", 1, true), 0);
    assert_eq!(ada("user").open(gateway.port).publish("u/more", "x", 1, true), 0x97, "this user has its share");
    wait_until("metrics count it", || {
        let text = request(http, "GET", "/metrics", &[("Authorization", &header)], b"").text();
        text.lines()
            .any(|line| line.starts_with("pigateway_security_events_total{event=\"quota\"} ") && !line.ends_with(" 0"))
    });
}

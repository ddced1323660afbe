//! The cost of many filters of different shapes, retained messages, sessions and connections.

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use socket2::{Domain, Socket, Type};

use super::Figures;
use super::brokers::{Broker, Running};
use super::load::{KEEP_ALIVE, connect_packet};
use super::support::Connect;
use super::support::broker::{Mosquitto, password_hash};
use super::support::packet::{Properties, publish};
use super::support::tls::{self, Authority};
use super::support::{self, Process, wire};

/// The kind of which there are many.
#[derive(Clone, Copy, Debug)]
pub enum Curve {
    /// Filters, in this shape.
    Filters(Shape, usize),
    /// Retained messages.
    Retained(usize),
    /// Sessions of clients that are away.
    Sessions(usize),
    /// Silent connections.
    Idle(usize),
    /// Connections, one after the other.
    Connections,
    /// Connections by TLS, one after the other.
    Handshakes,
    /// Clients with passwords that come back at the same time, for a number of users. Measured only for the gateway.
    Passwords(usize),
}

/// The shapes of filters of which one matches each topic.
#[derive(Clone, Copy, Debug)]
pub enum Shape {
    /// `many/N/a`
    Exact,
    /// `+/N/a`
    Plus,
    /// `many/N/#`
    Hash,
}

impl Shape {
    fn filter(self, number: usize) -> String {
        match self {
            Shape::Exact => format!("many/{number}/a"),
            Shape::Plus => format!("+/{number}/a"),
            Shape::Hash => format!("many/{number}/#"),
        }
    }
}

/// All measurements, by name.
pub fn all() -> Vec<(String, Curve)> {
    let mut all = Vec::new();
    for (name, shape) in [("exact", Shape::Exact), ("plus", Shape::Plus), ("hash", Shape::Hash)] {
        for count in [1, 100, 10_000, 50_000] {
            all.push((format!("filters-{name}-{count}"), Curve::Filters(shape, count)));
        }
    }
    all.extend([1000, 10_000, 100_000].map(|count| (format!("retained-{count}"), Curve::Retained(count))));
    all.extend([100, 1000, 10_000].map(|count| (format!("sessions-{count}"), Curve::Sessions(count))));
    all.extend([100, 1000, 10_000].map(|count| (format!("connected-{count}"), Curve::Idle(count))));
    all.push(("connections".into(), Curve::Connections));
    all.push(("handshakes".into(), Curve::Handshakes));
    all.extend([20, 60, 200].map(|users| (format!("passwords-{users}"), Curve::Passwords(users))));
    all
}

const PASSWORD: &str = "correct horse";

/// The configuration of this many users with that password.
fn users(count: usize) -> String {
    let hash = password_hash(PASSWORD);
    let user = |number: usize| format!("[[broker.user]]\nname = \"user-{number}\"\npassword_hash = \"{hash}\"\n");
    (0..count).map(user).collect()
}

/// Measures the cost of many of a kind, with a broker that allows them.
pub fn many(broker: Broker, what: Curve, time: Duration) -> io::Result<Figures> {
    let gateway = broker.gateway();
    match (what, gateway) {
        (Curve::Handshakes, gateway) => {
            let (authority, dir) = (Authority::new(), tempfile::tempdir()?);
            let file = |name: &str| dir.path().join(name).display().to_string();
            authority.write_server_files(dir.path());
            let (cert, key) = (file("server.crt"), file("server.key"));
            let port = support::free_port();
            let running = match (broker, gateway) {
                (Broker::Mosquitto, _) => Running::Mosquitto(Mosquitto::with(&format!(
                    "listener {port} 127.0.0.1\ncertfile {cert}\nkeyfile {key}"
                ))),
                (_, Some(setup)) => Running::Pigateway(
                    setup
                        .config(&format!(
                            "[[broker.listener]]\naddress = \"127.0.0.1:{port}\"\ntls = {{ cert = \"{cert}\", key = \"{key}\" }}\n"
                        ))
                        .start(),
                ),
                _ => return Ok(Vec::new()),
            };
            let figures = handshakes(&authority, port, time);
            drop(running);
            Ok(figures)
        }
        (Curve::Passwords(count), Some(setup)) => {
            let gateway = setup.config(&users(count)).start();
            Ok(passwords(gateway.port, count))
        }
        (_, gateway) => {
            let running = match gateway {
                Some(setup) => Running::Pigateway(setup.config(&settings(what)).start()),
                None => broker.start()?,
            };
            let Some(process) = running.process() else { return Ok(Vec::new()) };
            measure(what, running.port(), time, process)
        }
    }
}

/// The settings that make the gateway allow this number. mosquitto has no such limits.
fn settings(curve: Curve) -> String {
    match curve {
        Curve::Filters(_, count) => users(count.div_ceil(EACH)),
        Curve::Retained(count) => format!("[broker]\nmax_retained = {}\nmax_retained_size = \"64 MiB\"\n", 2 * count),
        Curve::Sessions(count) => format!("[broker]\nmax_sessions = {}\n{}", 2 * count, users(OWNERS)),
        Curve::Idle(count) => format!("[broker]\nmax_connections = {}\n", 2 * count),
        _ => String::new(),
    }
}

/// A socket with one of the host's many addresses, because no network may have all connections.
fn socket(port: u16, network: usize) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    if network > 0 {
        // after many connections that have just ended, the system searches long for a port before it knows the other end
        socket.bind(&SocketAddr::from(([127, 0, 0, 1 + network as u8], 0)).into())?;
    }
    socket.connect(&SocketAddr::from(([127, 0, 0, 1], port)).into())?;
    socket.set_tcp_nodelay(true)?;
    let socket = TcpStream::from(socket);
    socket.set_read_timeout(Some(Duration::from_secs(60)))?;
    Ok(socket)
}

/// Sends CONNECT and reads the answer.
fn connected(port: u16, network: usize, packet: &[u8]) -> io::Result<TcpStream> {
    let mut socket = socket(port, network)?;
    socket.write_all(packet)?;
    let mut connack = [0; 4];
    socket.read_exact(&mut connack)?;
    if connack[3] != 0 {
        return Err(io::Error::other(format!("refused: {}", connack[3])));
    }
    Ok(socket)
}

/// Adds a user name and the password to a CONNECT.
fn with_user(mut packet: Vec<u8>, user: usize) -> Vec<u8> {
    packet[9] |= 0xc0;
    for text in [&format!("user-{user}"), PASSWORD] {
        packet.extend_from_slice(&(text.len() as u16).to_be_bytes());
        packet.extend_from_slice(text.as_bytes());
    }
    packet[1] = packet.len() as u8 - 2;
    packet
}

fn subscribe_all(socket: &mut TcpStream, filters: &[String]) -> io::Result<()> {
    for some in filters.chunks(200) {
        let packets: Vec<u8> = some.iter().flat_map(|filter| wire::subscribe(filter, 0)).collect();
        socket.write_all(&packets)?;
        let mut answers = vec![0; 5 * some.len()];
        socket.read_exact(&mut answers)?;
        if answers.chunks(5).any(|answer| answer[4] >= 0x80) {
            return Err(io::Error::other("a filter was refused"));
        }
    }
    Ok(())
}

/// Measures a broker on this port.
fn measure(curve: Curve, port: u16, time: Duration, broker: &Process) -> io::Result<Figures> {
    let memory = || broker.memory_kib("VmRSS");
    match curve {
        Curve::Filters(shape, count) => Ok(vec![(String::new(), "", filters(shape, count, port, time)?)]),
        Curve::Retained(count) => retained(count, port),
        Curve::Sessions(count) => sessions(count, port, broker),
        Curve::Idle(count) => {
            let before = memory();
            let clients = (0..count).map(|at| connected(port, at / 500, &connect_packet(&format!("idle-{at}"))));
            let clients: Vec<TcpStream> = clients.collect::<io::Result<_>>()?;
            let each = memory().saturating_sub(before) as f64 / clients.len() as f64;
            let one_more = median_time(|_| connected(port, 0, &connect_packet("one-more")), disconnect)?;
            Ok(vec![("each".into(), "KiB", each), ("one more".into(), "µs", one_more)])
        }
        Curve::Connections => Ok(vec![(String::new(), "/s", connections(port, time)?)]),
        Curve::Handshakes | Curve::Passwords(_) => Ok(Vec::new()),
    }
}

/// The filters of one client.
const EACH: usize = 10_000;

/// The number of deliveries per second of messages whose topics are each matched by one of the filters.
fn filters(shape: Shape, count: usize, port: u16, time: Duration) -> io::Result<f64> {
    let mut readers = Vec::new();
    for (network, from) in (0..count).step_by(EACH).enumerate() {
        // each reader has a user of its own, because no user, and no guests together, may have all subscriptions
        let connect = with_user(connect_packet(&format!("reader-{from}")), network);
        let mut reader = connected(port, network, &connect)?;
        let filters: Vec<String> = (from..count.min(from + EACH)).map(|number| shape.filter(number)).collect();
        subscribe_all(&mut reader, &filters)?;
        readers.push(reader);
    }
    let received = Arc::new(AtomicUsize::new(0));
    let reading: Vec<_> = readers
        .into_iter()
        .map(|reader| {
            let received = received.clone();
            thread::spawn(move || count_bytes(reader, &received))
        })
        .collect();
    let mut publisher = connected(port, 0, &connect_packet("publisher"))?;
    // all packets have the same size
    let packet = |number: usize| wire::publish(&format!("many/{number}/a"), 0, 64 - number.to_string().len()).bytes;
    let step = (count / 500).max(1);
    let some: Vec<u8> = (0..count).step_by(step).flat_map(packet).collect();
    let burst = some.repeat(500 / count.min(500));
    let (begin, mut sent) = (Instant::now(), 0);
    while begin.elapsed() < time {
        publisher.write_all(&burst)?;
        sent += burst.len();
        publisher.write_all(&[0xc0, 0])?;
        publisher.read_exact(&mut [0; 2])?;
        // publishers wait for earlier deliveries, so that no queue of a reader overflows
        let waiting = Instant::now();
        while received.load(Ordering::Relaxed) + burst.len() < sent {
            if waiting.elapsed() > LONGEST_DELIVERY {
                return Err(io::Error::other("messages were lost"));
            }
            thread::yield_now();
        }
    }
    // one last topic for each reader marks the end
    let last = |number: usize| wire::publish(&format!("many/{number}/a"), 0, 0).bytes;
    (0..count).step_by(EACH).try_for_each(|number| publisher.write_all(&last(number)))?;
    for reading in reading {
        reading.join().map_err(|_| io::Error::other("a reader has failed"))??;
    }
    let (elapsed, received) = (begin.elapsed(), received.load(Ordering::Relaxed));
    if received < sent {
        return Err(io::Error::other(format!("{} of {sent} bytes lost", sent - received)));
    }
    Ok(received as f64 / packet(0).len() as f64 / elapsed.as_secs_f64())
}

/// A message that a reader does not have within this time is lost.
const LONGEST_DELIVERY: Duration = Duration::from_secs(10);

/// Counts the bytes until a message without a payload comes. All other messages have 64 bytes with the number of their
/// topic.
fn count_bytes(mut socket: TcpStream, bytes: &AtomicUsize) -> io::Result<()> {
    let mut buffer = vec![0; 256 << 10];
    let mut held = 0;
    loop {
        held += match socket.read(&mut buffer[held..])? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => count,
        };
        let mut at = 0;
        while held - at >= 2 && held - at >= 2 + usize::from(buffer[at + 1]) {
            let len = 2 + usize::from(buffer[at + 1]);
            if len < 40 {
                return Ok(());
            }
            at += len;
            bytes.fetch_add(len, Ordering::Relaxed);
        }
        buffer.copy_within(at..held, 0);
        held -= at;
    }
}

fn retained(count: usize, port: u16) -> io::Result<Figures> {
    let mut publisher = connected(port, 0, &connect_packet("publisher"))?;
    for from in (0..count).step_by(1000) {
        let topic = |number: usize| format!("kept/{}/{}", number / 10, number % 10);
        let burst =
            (from..count.min(from + 1000)).flat_map(|at| publish(topic(at).as_bytes(), &[b'x'; 64], 0x31, None, None));
        publisher.write_all(&burst.collect::<Vec<u8>>())?;
        publisher.write_all(&[0xc0, 0])?;
        publisher.read_exact(&mut [0; 2])?;
    }
    let mut client = Connect::new("reader").keep_alive(KEEP_ALIVE).open(port);
    let mut times: Vec<Duration> = (0..200)
        .map(|round| {
            let begin = Instant::now();
            client.subscribe(&format!("kept/{}/+", round * 7919 % (count / 10)), 0);
            (0..10).for_each(|_| drop(client.receive()));
            begin.elapsed()
        })
        .collect();
    times.sort();
    let begin = Instant::now();
    client.subscribe_all(&[("kept/#", 0)], &Properties::new());
    (0..count).for_each(|_| drop(client.receive()));
    let all = count as f64 / begin.elapsed().as_secs_f64();
    Ok(vec![("ten".into(), "µs", times[100].as_secs_f64() * 1e6), ("all".into(), "/s", all)])
}

/// Each of these users has as many sessions as all guests together. One user's changes of sessions, or those of the guests,
/// may write only a few megabytes to the card at once, which is too little for thousands of sessions.
const OWNERS: usize = 19;

/// The CONNECT of a client that resumes its session. Every twentieth client is a guest.
fn persistent(number: usize) -> Vec<u8> {
    let mut packet = connect_packet(&format!("away-{number:05}"));
    packet[9] = 0;
    match (number % (OWNERS + 1)).checked_sub(1) {
        Some(user) => with_user(packet, user),
        None => packet,
    }
}

/// Messages for absent clients.
const KEPT: usize = 500;

fn sessions(count: usize, port: u16, broker: &Process) -> io::Result<Figures> {
    for number in 0..count {
        let mut client = connected(port, number / 500, &persistent(number))?;
        client.write_all(&wire::subscribe(&format!("away/{number}"), 1))?;
        client.read_exact(&mut [0; 5])?;
        client.write_all(&[0xe0, 0])?;
    }
    // only guests come back, because with passwords the brokers would do unequal work
    let guests = count / (OWNERS + 1);
    let guest = |round: usize| round * 7919 % guests * (OWNERS + 1);
    let back = |round| connected(port, guest(round) / 500, &persistent(guest(round)));
    let back = median_time(back, disconnect)?;
    let mut publisher = connected(port, 0, &connect_packet("publisher"))?;
    let keep = |round| {
        let mut packet = BytesMut::new();
        wire::publish(&format!("away/{}", guest(round)), 1, 64).put(&mut packet, 1);
        publisher.write_all(&packet)?;
        publisher.read_exact(&mut [0; 4])
    };
    // processor time, because the disk's time for a sync varies more than anything else here
    let before = broker.cpu_time();
    (0..KEPT).try_for_each(keep)?;
    let kept = broker.cpu_time().saturating_sub(before).as_secs_f64() * 1e6 / KEPT as f64;
    Ok(vec![("back".into(), "µs", back), ("kept".into(), "µs", kept)])
}

/// The median time of many calls in microseconds. What follows a call is not measured.
fn median_time<T>(
    mut call: impl FnMut(usize) -> io::Result<T>,
    mut then: impl FnMut(T) -> io::Result<()>,
) -> io::Result<f64> {
    let mut times = Vec::new();
    for round in 0..500 {
        let begin = Instant::now();
        let done = call(round)?;
        times.push(begin.elapsed());
        then(done)?;
    }
    times.sort();
    Ok(times[times.len() / 2].as_secs_f64() * 1e6)
}

fn disconnect(mut client: TcpStream) -> io::Result<()> {
    client.write_all(&[0xe0, 0])
}

fn connections(port: u16, time: Duration) -> io::Result<f64> {
    let packet = connect_packet("passer-by");
    let (begin, mut count) = (Instant::now(), 0);
    while begin.elapsed() < time {
        let mut client = connected(port, 0, &packet)?;
        client.write_all(&[0xe0, 0])?;
        count += 1;
    }
    Ok(f64::from(count) / begin.elapsed().as_secs_f64())
}

/// Makes TLS handshakes with CONNECT, one after the other and without resumption.
fn handshakes(authority: &Authority, port: u16, time: Duration) -> Figures {
    let (begin, mut count) = (Instant::now(), 0);
    while begin.elapsed() < time {
        tls::open(&Connect::new("passer-by"), port, tls::client_config(authority, None)).0.disconnect();
        count += 1;
    }
    vec![(String::new(), "/s", f64::from(count) / begin.elapsed().as_secs_f64())]
}

/// The time until two hundred clients that come at the same time are connected.
fn passwords(port: u16, users: usize) -> Figures {
    const CLIENTS: usize = 200;
    let begin = Instant::now();
    thread::scope(|scope| {
        let coming: Vec<_> = (0..CLIENTS)
            .map(|number| {
                scope.spawn(move || {
                    let user = format!("user-{}", number % users);
                    let connect = Connect::new(&format!("node-{number}")).login(&user, PASSWORD);
                    TcpStream::connect((IpAddr::from(Ipv4Addr::LOCALHOST), port))
                        .map(|socket| connect.open_patiently(socket))
                })
            })
            .collect();
        let in_the_house = coming.into_iter().filter_map(|client| client.join().ok()?.ok()).count();
        assert_eq!(in_the_house, CLIENTS);
    });
    vec![("until all are in".into(), "s", begin.elapsed().as_secs_f64())]
}

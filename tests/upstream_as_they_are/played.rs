//! An upstream that the test plays. It answers correctly unless the test chooses another answer.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::support::packet::{Packet, Publish, Reader, V5, packet};
use crate::support::wait_until;

/// The answer to a packet.
pub enum Say {
    /// The correct answer.
    Usual,
    /// The connection ends.
    Close,
    /// No answer.
    Nothing,
    /// These bytes, and then the end of the connection.
    Last(Vec<u8>),
    /// These bytes instead of the correct answer.
    Instead(Vec<u8>),
    /// The correct answer and these bytes.
    Also(Vec<u8>),
    /// The correct answer, one byte at a time.
    Pieces,
    /// The correct answer, and then these bytes again and again while the flag is set. Nothing is read meanwhile.
    Flood(Vec<u8>, Arc<AtomicBool>),
    /// The correct answer. Then nothing is read while the flag is set.
    Deaf(Arc<AtomicBool>),
    /// The connection is reset.
    Reset,
    /// No answer to anything from now on, and nothing is read, as on a line that has failed.
    Gone,
}

/// A packet from a gateway.
pub struct Heard {
    /// The number of the connection, from 0 on.
    pub connection: usize,
    /// The number of packets on the connection before this one.
    pub before: usize,
    /// Protocol level.
    pub version: u8,
    /// The packet.
    pub packet: Packet,
}

impl Heard {
    /// The message, if the packet is a PUBLISH.
    pub fn publish(&self) -> Option<Publish> {
        (self.packet.kind() == 3).then(|| Publish::read(&self.packet, self.version))
    }

    /// The filters of a SUBSCRIBE.
    pub fn filters(&self) -> Option<Vec<String>> {
        (self.packet.kind() == 8).then(|| self.named(true))
    }

    /// The filters of an UNSUBSCRIBE.
    pub fn given_up(&self) -> Option<Vec<String>> {
        (self.packet.kind() == 10).then(|| self.named(false))
    }

    fn named(&self, has_options: bool) -> Vec<String> {
        let mut reader = Reader(&self.packet.body);
        reader.number(2);
        if self.version == V5 {
            reader.properties();
        }
        let mut filters = Vec::new();
        while !reader.0.is_empty() {
            filters.push(reader.text());
            if has_options {
                reader.number(1);
            }
        }
        filters
    }

    /// Whether it is a CONNECT.
    pub fn is_connect(&self) -> bool {
        self.packet.kind() == 1
    }

    /// Flags of a CONNECT.
    pub fn flags(&self) -> u8 {
        self.packet.body[7]
    }

    /// The password of a CONNECT of version 3.1.1 without a will.
    pub fn password(&self) -> String {
        let mut reader = Reader(&self.packet.body[10..]);
        reader.text();
        reader.text();
        reader.text()
    }
}

/// The packets that the upstream has received and answered correctly.
#[derive(Default)]
pub struct Log {
    /// The times of connections, and their versions.
    pub connections: Vec<(Instant, u8)>,
    /// Messages that were acknowledged, or came at QoS 0.
    pub messages: Vec<Publish>,
    /// When these messages arrived.
    pub times: Vec<Instant>,
    /// Filters that were subscribed to.
    pub filters: Vec<String>,
}

/// The upstream.
pub struct Played {
    /// The port of the upstream.
    pub port: u16,
    log: Arc<Mutex<Log>>,
}

type Script = dyn Fn(&Heard) -> Say + Send + Sync;

impl Played {
    /// Starts an upstream with these answers.
    pub fn new(script: impl Fn(&Heard) -> Say + Send + Sync + 'static) -> Played {
        Played::on(TcpListener::bind("127.0.0.1:0").unwrap(), script)
    }

    /// Starts an upstream with this listener.
    pub fn on(listener: TcpListener, script: impl Fn(&Heard) -> Say + Send + Sync + 'static) -> Played {
        let port = listener.local_addr().unwrap().port();
        let (log, script): (Arc<Mutex<Log>>, Arc<Script>) = (Arc::default(), Arc::new(script));
        let (shared, number) = (log.clone(), AtomicUsize::new(0));
        thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let number = number.fetch_add(1, Ordering::Relaxed);
                let (log, script) = (shared.clone(), script.clone());
                thread::spawn(move || converse(stream, number, &log, &*script));
            }
        });
        Played { port, log }
    }

    /// What the upstream has received.
    pub fn log(&self) -> std::sync::MutexGuard<'_, Log> {
        self.log.lock().unwrap()
    }

    /// The texts of messages on topics other than that of the status.
    pub fn texts(&self) -> Vec<String> {
        let log = self.log();
        log.messages.iter().filter(|message| message.topic != "status").map(Publish::text).collect()
    }

    /// Waits until all of these have arrived, in any order and any number of times.
    #[track_caller]
    pub fn wait_for(&self, texts: &[&str]) {
        wait_until(&format!("{texts:?}"), || {
            let arrived = self.texts();
            texts.iter().all(|text| arrived.iter().any(|arrived| arrived == text))
        });
    }
}

fn converse(mut stream: TcpStream, connection: usize, log: &Mutex<Log>, script: &Script) {
    let (mut version, mut before) = (0, 0);
    while let Some(packet) = read(&mut stream) {
        if packet.kind() == 1 {
            version = packet.body[6];
            log.lock().unwrap().connections.push((Instant::now(), version));
        }
        let heard = Heard { connection, before, version, packet };
        before += 1;
        let (answer, is_last) = match script(&heard) {
            Say::Usual => (usual(&heard, &mut log.lock().unwrap()), heard.packet.kind() == 14),
            Say::Close => (Vec::new(), true),
            Say::Nothing => (Vec::new(), false),
            Say::Last(bytes) => (bytes, true),
            Say::Instead(bytes) => (bytes, false),
            Say::Also(bytes) => ([usual(&heard, &mut log.lock().unwrap()), bytes].concat(), false),
            Say::Pieces => {
                let answer = usual(&heard, &mut log.lock().unwrap());
                let _ = stream.set_nodelay(true);
                if answer.iter().any(|byte| stream.write_all(&[*byte]).is_err()) {
                    return;
                }
                (Vec::new(), false)
            }
            Say::Flood(bytes, lasts) => {
                let answer = usual(&heard, &mut log.lock().unwrap());
                let _ = stream.write_all(&answer);
                while lasts.load(Ordering::Relaxed) && stream.write_all(&bytes).is_ok() {
                    thread::sleep(Duration::from_millis(10));
                }
                return;
            }
            Say::Deaf(lasts) => {
                let answer = usual(&heard, &mut log.lock().unwrap());
                let _ = stream.write_all(&answer);
                while lasts.load(Ordering::Relaxed) {
                    thread::sleep(Duration::from_millis(10));
                }
                return;
            }
            Say::Gone => {
                thread::sleep(Duration::from_secs(600));
                return;
            }
            Say::Reset => {
                let _ = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
                return;
            }
        };
        if stream.write_all(&answer).is_err() {
            return;
        }
        if is_last {
            // closing with unread input would reset the connection, and the last answer would be lost
            let _ = stream.shutdown(Shutdown::Write);
            while read(&mut stream).is_some() {}
            return;
        }
    }
}

fn usual(heard: &Heard, log: &mut Log) -> Vec<u8> {
    let Heard { version, packet: said, .. } = heard;
    let none: &[u8] = if *version == V5 { &[0] } else { &[] };
    match said.kind() {
        1 => packet(0x20, &[&[0, 0], none]),
        3 => {
            let publish = Publish::read(said, *version);
            let answer = if publish.qos > 0 { packet(0x40, &[&publish.id.to_be_bytes()]) } else { Vec::new() };
            log.messages.push(publish);
            log.times.push(Instant::now());
            answer
        }
        8 => {
            let filters = heard.filters().unwrap_or_default();
            let codes = vec![1; filters.len()];
            log.filters.extend(filters);
            packet(0x90, &[&said.id().to_be_bytes(), none, &codes])
        }
        10 => packet(0xb0, &[&said.id().to_be_bytes(), none, if *version == V5 { &[0] } else { &[] }]),
        12 => packet(0xd0, &[]),
        _ => Vec::new(),
    }
}

/// The next packet.
pub fn read(stream: &mut TcpStream) -> Option<Packet> {
    let mut first = [0];
    stream.read_exact(&mut first).ok()?;
    let (mut length, mut shift) = (0, 0);
    loop {
        let mut byte = [0];
        stream.read_exact(&mut byte).ok()?;
        length |= usize::from(byte[0] & 0x7f) << shift;
        shift += 7;
        if byte[0] & 0x80 == 0 {
            break;
        }
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).ok()?;
    Some(Packet { first: first[0], body })
}

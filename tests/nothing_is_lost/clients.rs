//! Publishers that send unacknowledged messages again, and a recorder at the upstream.

use std::collections::VecDeque;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::BytesMut;

use super::support::ReadSome;
use super::support::packet::publish;
use super::support::wire::{connect, packets, put_ack, subscribe};

/// The number of messages of a publisher that wait for PUBACK.
const WINDOW: usize = 64;
/// A connection that is silent for this long is given up.
const SILENCE: Duration = Duration::from_secs(2);

/// The progress of all publishers together.
#[derive(Default)]
pub struct Progress {
    /// The number of acknowledged messages.
    pub acked: AtomicU64,
    /// The number of messages that were sent more than once.
    pub resent: AtomicU64,
    /// Each publisher may send only numbers below this one.
    pub limit: AtomicU32,
}

/// Publishes the numbers from 0 to `count` on `up/NAME`, in order, each until it is acknowledged.
pub fn start_publisher(name: usize, port: u16, count: u32, progress: Arc<Progress>) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let mut publisher = Publisher { name, count, next: 0, unacked: VecDeque::new(), progress };
        while publisher.is_unfinished() {
            // the gateway is down, or is killed meanwhile, which is the purpose of this test
            if publisher.connection(port).is_err() {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    })
}

struct Publisher {
    name: usize,
    count: u32,
    next: u32,
    /// Packet ids and numbers.
    unacked: VecDeque<(u16, u32)>,
    progress: Arc<Progress>,
}

impl Publisher {
    fn is_unfinished(&self) -> bool {
        self.next < self.count || !self.unacked.is_empty()
    }

    fn packet(&self, (id, number): (u16, u32), dup: u8) -> Vec<u8> {
        let topic = format!("up/{}", self.name);
        publish(topic.as_bytes(), format!("{number:0>100}").as_bytes(), 0x32 | dup, Some(id), None)
    }

    fn connection(&mut self, port: u16) -> io::Result<()> {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(SILENCE))?;
        stream.write_all(&connect(&format!("publisher{}", self.name)))?;
        let mut connack = [0; 4];
        stream.read_exact(&mut connack)?;
        let again: Vec<u8> = self.unacked.iter().flat_map(|message| self.packet(*message, 8)).collect();
        stream.write_all(&again)?;
        self.progress.resent.fetch_add(self.unacked.len() as u64, SeqCst);
        let mut input = BytesMut::new();
        let mut buffer = [0; 4096];
        while self.is_unfinished() {
            let limit = self.progress.limit.load(SeqCst).min(self.count);
            let mut output = Vec::new();
            while self.unacked.len() < WINDOW && self.next < limit {
                let message = (self.next as u16 % 60_000 + 1, self.next);
                self.unacked.push_back(message);
                self.next += 1;
                output.extend(self.packet(message, 0));
            }
            stream.write_all(&output)?;
            if self.unacked.is_empty() {
                // more numbers are allowed only after the next kill
                std::thread::sleep(Duration::from_millis(1));
                continue;
            }
            let count = stream.read_some(&mut buffer)?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            input.extend_from_slice(&buffer[..count]);
            packets(&mut input, |packet| {
                assert_eq!(packet.first, 0x40, "only PUBACK is expected");
                let (id, _) = self.unacked.pop_front().expect("an acknowledgement of something");
                assert_eq!(packet.ack_id(), id, "acknowledgements come in order");
                self.progress.acked.fetch_add(1, SeqCst);
            });
        }
        Ok(())
    }
}

/// Records all messages that arrive at the upstream below `up/`, in order, as publisher and number.
#[derive(Default)]
pub struct Recorder {
    received: Mutex<Vec<(usize, u32)>>,
    is_over: AtomicBool,
}

impl Recorder {
    /// Subscribes at the upstream. When `up/end` has arrived, the recorder has seen all messages.
    pub fn start(port: u16) -> Arc<Recorder> {
        let recorder = Arc::<Recorder>::default();
        let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("the upstream");
        stream.set_nodelay(true).expect("a socket");
        stream.write_all(&[connect("recorder"), subscribe("up/#", 1)].concat()).expect("the upstream takes it");
        let mut greeting = [0; 4 + 5];
        stream.read_exact(&mut greeting).expect("CONNACK and SUBACK");
        let records = recorder.clone();
        std::thread::spawn(move || records.run(stream));
        recorder
    }

    fn run(&self, mut stream: TcpStream) {
        let (mut input, mut acks) = (BytesMut::new(), BytesMut::new());
        let mut buffer = vec![0; 64 * 1024];
        loop {
            match stream.read_some(&mut buffer) {
                Ok(0) | Err(_) => return, // the test is over
                Ok(count) => input.extend_from_slice(&buffer[..count]),
            }
            let mut received = self.received.lock().expect("no panic");
            packets(&mut input, |packet| {
                put_ack(&mut acks, 0x40, packet.publish_id());
                let topic_end = 2 + usize::from(u16::from_be_bytes([packet.body[0], packet.body[1]]));
                match std::str::from_utf8(&packet.body[2..topic_end]).expect("a topic") {
                    "up/end" => self.is_over.store(true, SeqCst),
                    topic => {
                        let name = topic["up/".len()..].parse().expect("a publisher");
                        let text = std::str::from_utf8(packet.payload()).expect("a number");
                        received.push((name, text.parse().expect("a number")));
                    }
                }
            });
            drop(received);
            if stream.write_all(&acks).is_err() {
                return;
            }
            acks.clear();
        }
    }

    /// The number of messages that have arrived.
    pub fn count(&self) -> usize {
        self.received.lock().expect("no panic").len()
    }

    /// Whether the end has arrived.
    pub fn is_over(&self) -> bool {
        self.is_over.load(SeqCst)
    }

    /// The messages that have arrived.
    pub fn received(&self) -> Vec<(usize, u32)> {
        self.received.lock().expect("no panic").clone()
    }
}

//! Clients that publish and receive as fast as the other side allows, with one thread, batched writes and large reads.

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::{JoinHandle, LocalSet, spawn_local};

use super::support::wire::{self, Template, packets, put_ack};

/// The number of bytes that are written at a time, and the size of the read buffer.
const BLOCK: usize = 64 * 1024;
const READ: usize = 256 * 1024;
/// Deliveries that are missing for this long count as lost.
const LOST_AFTER: Duration = Duration::from_secs(3);

/// The keep alive of all clients in seconds.
pub const KEEP_ALIVE: u16 = 3600;

/// A load.
#[derive(Clone, Debug)]
pub struct Load {
    /// The number of publishing clients, each with a topic of its own.
    pub publishers: usize,
    /// The number of subscribing clients, each with subscriptions to all topics.
    pub subscribers: usize,
    /// The QoS of publications and subscriptions.
    pub qos: u8,
    /// The length of the payload in bytes.
    pub payload: usize,
    /// The greatest number of unacknowledged publications of a client at QoS 1 and 2.
    pub window: u16,
    /// When publishers stop.
    pub until: Until,
}

/// When publishers stop.
#[derive(Clone, Copy, Debug)]
pub enum Until {
    /// After this time.
    Time(Duration),
    /// After this number of messages of each publisher.
    Count(u64),
}

/// The result of a load.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// The expected number of deliveries.
    pub expected: u64,
    /// The number of deliveries that arrived.
    pub delivered: u64,
    /// The time from the first PUBLISH to the last delivery.
    pub elapsed: Duration,
}

impl Outcome {
    /// Deliveries per second.
    pub fn rate(&self) -> f64 {
        self.delivered as f64 / self.elapsed.as_secs_f64()
    }
}

struct Progress {
    delivered: Cell<u64>,
    last: Cell<Instant>,
}

/// Connects to the port, runs the load and waits for the last delivery.
pub fn run(port: u16, load: &Load) -> io::Result<Outcome> {
    run_between(port, port, load)
}

/// Runs the load with publishers at one port and subscribers at another.
pub fn run_between(port: u16, subscribe_at: u16, load: &Load) -> io::Result<Outcome> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, drive(port, subscribe_at, load))
}

/// Receives until this number of deliveries has arrived or no more arrive. Returns their number, and the time from the
/// first to the last.
pub fn collect(port: u16, expected: u64) -> io::Result<(u64, Duration)> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let collecting = async {
        let progress = Rc::new(Progress { delivered: Cell::new(0), last: Cell::new(Instant::now()) });
        let mut stream = client(port, "collector").await?;
        stream.write_all(&wire::subscribe("bench/#", 1)).await?;
        answer(&mut stream, 5, 0x90).await?;
        let receiving = spawn_local(receive(stream, progress.clone()));
        let mut begin = None;
        while progress.delivered.get() < expected {
            match begin {
                None if progress.delivered.get() > 0 => begin = Some(Instant::now()),
                Some(_) if progress.last.get().elapsed() > LOST_AFTER => break,
                _ => {}
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        receiving.abort();
        Ok((progress.delivered.get(), begin.map_or(Duration::ZERO, |begin| progress.last.get() - begin)))
    };
    LocalSet::new().block_on(&runtime, collecting)
}

async fn drive(port: u16, subscribe_at: u16, load: &Load) -> io::Result<Outcome> {
    let progress = Rc::new(Progress { delivered: Cell::new(0), last: Cell::new(Instant::now()) });
    let mut receiving = Vec::new();
    for number in 0..load.subscribers {
        let mut stream = client(subscribe_at, &format!("sub-{number}")).await?;
        stream.write_all(&wire::subscribe("bench/#", load.qos)).await?;
        answer(&mut stream, 5, 0x90).await?;
        receiving.push(spawn_local(receive(stream, progress.clone())));
    }
    let mut streams = Vec::new();
    for number in 0..load.publishers {
        streams.push(client(port, &format!("pub-{number}")).await?);
    }
    let begin = Instant::now();
    progress.last.set(begin);
    let publishing: Vec<JoinHandle<io::Result<u64>>> = streams
        .into_iter()
        .enumerate()
        .map(|(number, stream)| {
            let template = wire::publish(&format!("bench/topic/{number}"), load.qos, load.payload);
            let load = load.clone();
            spawn_local(async move {
                match load.qos {
                    0 => flood(stream, &template, load.until).await,
                    _ => converse(stream, &template, &load).await,
                }
            })
        })
        .collect();
    let mut expected = 0;
    for publisher in publishing {
        expected += publisher.await?? * load.subscribers as u64;
    }
    while progress.delivered.get() < expected && progress.last.get().elapsed() < LOST_AFTER {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let elapsed = progress.last.get() - begin;
    receiving.iter().for_each(JoinHandle::abort);
    Ok(Outcome { expected, delivered: progress.delivered.get(), elapsed })
}

/// CONNECT with a keep alive of an hour, because the stock rumqttd refuses clients without one.
pub fn connect_packet(client_id: &str) -> Vec<u8> {
    let mut packet = wire::connect(client_id);
    packet[10..12].copy_from_slice(&KEEP_ALIVE.to_be_bytes());
    packet
}

async fn client(port: u16, id: &str) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
    stream.set_nodelay(true)?;
    stream.write_all(&connect_packet(id)).await?;
    answer(&mut stream, 4, 0x20).await?;
    Ok(stream)
}

async fn answer(stream: &mut TcpStream, len: usize, first: u8) -> io::Result<()> {
    let mut packet = vec![0; len];
    stream.read_exact(&mut packet).await?;
    let good = packet[0] == first && packet[3] < 0x80 && (first != 0x20 || packet[3] == 0);
    if good { Ok(()) } else { Err(io::Error::other(format!("refused: {packet:x?}"))) }
}

/// Clients that stay connected and silent.
pub fn idle_clients(port: u16, count: usize) -> io::Result<Vec<std::net::TcpStream>> {
    use std::io::{Read, Write};
    let mut clients = Vec::new();
    for number in 0..count {
        let mut stream = std::net::TcpStream::connect(("127.0.0.1", port))?;
        stream.write_all(&connect_packet(&format!("idle-{number}")))?;
        stream.write_all(&wire::subscribe(&format!("idle/{number}"), 1))?;
        stream.read_exact(&mut [0; 9])?;
        clients.push(stream);
    }
    Ok(clients)
}

/// Publishes at QoS 0.
async fn flood(mut stream: TcpStream, template: &Template, until: Until) -> io::Result<u64> {
    let begin = Instant::now();
    let per_block = (BLOCK / template.bytes.len()).max(1);
    let block = template.bytes.repeat(per_block);
    let mut sent = 0;
    loop {
        match until {
            Until::Time(time) if begin.elapsed() >= time => break,
            Until::Count(count) if sent >= count => break,
            _ => {}
        }
        stream.write_all(&block).await?;
        sent += per_block as u64;
        // all clients share a thread, and otherwise one would write until its socket is full while no subscriber reads
        tokio::task::yield_now().await;
    }
    // the end of the connection must not overtake what was written
    stream.write_all(&[0xe0, 0]).await?;
    let _ = stream.read_u8().await;
    Ok(sent)
}

/// Publishes at QoS 1 or 2, with as many in flight as the window allows.
async fn converse(mut stream: TcpStream, template: &Template, load: &Load) -> io::Result<u64> {
    let begin = Instant::now();
    let (mut input, mut output) = (BytesMut::with_capacity(READ), BytesMut::with_capacity(BLOCK));
    let mut sent = u64::from(load.window);
    let mut in_flight = sent;
    (1..=load.window).for_each(|id| template.put(&mut output, id));
    while in_flight > 0 {
        stream.write_all_buf(&mut output).await?;
        input.reserve(BLOCK);
        if stream.read_buf(&mut input).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let goes_on = match load.until {
            Until::Time(time) => begin.elapsed() < time,
            Until::Count(count) => sent < count,
        };
        packets(&mut input, |packet| match packet.first {
            0x40 | 0x70 if goes_on => {
                template.put(&mut output, packet.ack_id());
                sent += 1;
            }
            0x40 | 0x70 => in_flight -= 1,
            0x50 => put_ack(&mut output, 0x62, packet.ack_id()),
            other => panic!("a publisher got a packet {other:#x}"),
        });
    }
    Ok(sent)
}

/// Receives and acknowledges.
async fn receive(mut stream: TcpStream, progress: Rc<Progress>) -> io::Result<()> {
    let (mut input, mut output) = (BytesMut::with_capacity(READ), BytesMut::with_capacity(BLOCK));
    loop {
        input.reserve(READ / 2);
        if stream.read_buf(&mut input).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut delivered = 0;
        packets(&mut input, |packet| match (packet.first >> 4, packet.qos()) {
            (3, qos) => {
                delivered += 1;
                match qos {
                    0 => {}
                    1 => put_ack(&mut output, 0x40, packet.publish_id()),
                    _ => put_ack(&mut output, 0x50, packet.publish_id()),
                }
            }
            (6, _) => put_ack(&mut output, 0x70, packet.ack_id()),
            (other, _) => panic!("a subscriber got a packet of type {other}"),
        });
        if delivered > 0 {
            progress.delivered.set(progress.delivered.get() + delivered);
            progress.last.set(Instant::now());
        }
        if !output.is_empty() {
            stream.write_all_buf(&mut output).await?;
        }
    }
}

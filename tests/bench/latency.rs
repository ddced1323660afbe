//! The time from sending a PUBLISH to its arrival at other clients, at a steady rate.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::BytesMut;

use super::load::connect_packet;
use super::support::wire::{self, packets};

/// Messages that are sent before the measurement, so that it has nothing of connections and first uses.
const WARM_UP: usize = 50;

/// A steady load.
#[derive(Clone, Copy)]
pub struct Steady {
    pub qos: u8,
    pub subscribers: usize,
    /// The number of messages.
    pub count: usize,
    /// The time between two of them.
    pub distance: Duration,
}

/// Calls `warm` when everything is warm, sends the messages, and returns the sorted times of their deliveries.
pub fn measure(port: u16, load: Steady, warm: impl FnOnce()) -> io::Result<Vec<Duration>> {
    let Steady { qos, subscribers, count, distance } = load;
    let (origin, received) = (Instant::now(), Arc::new(AtomicUsize::new(0)));
    let mut receiving = Vec::new();
    for number in 0..subscribers {
        let mut subscriber = connect(port, &format!("latency-sub-{number}"))?;
        subscriber.write_all(&wire::subscribe("latency", qos))?;
        subscriber.read_exact(&mut [0; 5])?;
        let received = received.clone();
        receiving.push(std::thread::spawn(move || receive(subscriber, WARM_UP + count, origin, &received)));
    }
    let mut publisher = connect(port, "latency-pub")?;
    let mut acks = publisher.try_clone()?;
    // PUBACKs are read, as by every client, but not awaited
    std::thread::spawn(move || io::copy(&mut acks, &mut io::sink()));
    publish(&mut publisher, Steady { count: WARM_UP, distance: Duration::from_millis(2), ..load }, origin)?;
    while received.load(Ordering::Relaxed) < WARM_UP * subscribers {
        if receiving.iter().any(|receiving| receiving.is_finished()) {
            return Err(io::Error::other("a subscriber has failed"));
        }
        std::thread::sleep(distance);
    }
    warm();
    publish(&mut publisher, load, origin)?;
    let mut times = Vec::with_capacity(count * subscribers);
    for receiving in receiving {
        let all = receiving.join().map_err(|_| io::Error::other("a subscriber has failed"))??;
        times.extend_from_slice(&all[WARM_UP..]);
    }
    times.sort();
    Ok(times)
}

fn connect(port: u16, id: &str) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(&connect_packet(id))?;
    stream.read_exact(&mut [0; 4])?;
    Ok(stream)
}

fn publish(stream: &mut TcpStream, load: Steady, origin: Instant) -> io::Result<()> {
    let template = wire::publish("latency", load.qos, 32);
    let mut packet = BytesMut::new();
    let begin = Instant::now();
    for number in 0..load.count {
        let due = begin + load.distance * number as u32;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        packet.clear();
        match load.qos {
            0 => packet.extend_from_slice(&template.bytes),
            _ => template.put(&mut packet, (number % 60_000) as u16 + 1),
        }
        let now = origin.elapsed().as_nanos() as u64;
        packet[template.payload_at..template.payload_at + 8].copy_from_slice(&now.to_be_bytes());
        stream.write_all(&packet)?;
    }
    Ok(())
}

fn receive(mut stream: TcpStream, count: usize, origin: Instant, received: &AtomicUsize) -> io::Result<Vec<Duration>> {
    let mut times = Vec::with_capacity(count);
    let mut input = BytesMut::new();
    let mut buffer = vec![0; 16 * 1024];
    while times.len() < count {
        let len = stream.read(&mut buffer)?;
        let now = origin.elapsed().as_nanos() as u64;
        if len == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        input.extend_from_slice(&buffer[..len]);
        let (mut acks, before) = (Vec::new(), times.len());
        packets(&mut input, |packet| {
            let payload = &packet.body[packet.body.len() - 32..];
            let mut sent = [0; 8];
            sent.copy_from_slice(&payload[..8]);
            times.push(Duration::from_nanos(now.saturating_sub(u64::from_be_bytes(sent))));
            if packet.qos() == 1 {
                let [high, low] = packet.publish_id().to_be_bytes();
                acks.extend_from_slice(&[0x40, 2, high, low]);
            }
        });
        stream.write_all(&acks)?;
        received.fetch_add(times.len() - before, Ordering::Relaxed);
    }
    Ok(times)
}

//! The time from sending a PUBLISH to its arrival at another client, at a steady rate.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use bytes::BytesMut;

use super::support::wire::{self, packets};

/// Sends this number of messages at this interval, and returns the sorted times.
pub fn measure(port: u16, qos: u8, count: usize, distance: Duration) -> io::Result<Vec<Duration>> {
    let mut subscriber = connect(port, "latency-sub")?;
    subscriber.write_all(&wire::subscribe("latency", qos))?;
    subscriber.read_exact(&mut [0; 5])?;
    let publisher = connect(port, "latency-pub")?;
    let origin = Instant::now();
    let receiving = std::thread::spawn(move || receive(subscriber, count, origin));
    let mut acks = publisher.try_clone()?;
    // PUBACKs are read, as by every client, but not awaited
    std::thread::spawn(move || io::copy(&mut acks, &mut io::sink()));
    publish(publisher, qos, count, distance, origin)?;
    let times = receiving.join().map_err(|_| io::Error::other("the subscriber has failed"))?;
    let mut times = times?;
    times.sort();
    Ok(times)
}

fn connect(port: u16, id: &str) -> io::Result<TcpStream> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    stream.write_all(&wire::connect(id))?;
    stream.read_exact(&mut [0; 4])?;
    Ok(stream)
}

fn publish(mut stream: TcpStream, qos: u8, count: usize, distance: Duration, origin: Instant) -> io::Result<()> {
    let template = wire::publish("latency", qos, 32);
    let mut packet = BytesMut::new();
    let begin = Instant::now();
    for number in 0..count {
        let due = begin + distance * number as u32;
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
        packet.clear();
        match qos {
            0 => packet.extend_from_slice(&template.bytes),
            _ => template.put(&mut packet, (number % 60_000) as u16 + 1),
        }
        let now = origin.elapsed().as_nanos() as u64;
        packet[template.payload_at..template.payload_at + 8].copy_from_slice(&now.to_be_bytes());
        stream.write_all(&packet)?;
    }
    Ok(())
}

fn receive(mut stream: TcpStream, count: usize, origin: Instant) -> io::Result<Vec<Duration>> {
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
        let mut acks = Vec::new();
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
    }
    Ok(times)
}

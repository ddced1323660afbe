//! A line to an upstream with a limited number of bytes a second.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// The line. It ends with the process.
pub struct Line {
    carried: Arc<AtomicU64>,
}

impl Line {
    /// Starts a line from this port to a broker.
    pub fn between(port: u16, broker: u16, bytes_per_second: u64) -> io::Result<Line> {
        let listener = TcpListener::bind(("127.0.0.1", port))?;
        let line = Line { carried: Arc::default() };
        let carried = line.carried.clone();
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(broker) = TcpStream::connect(("127.0.0.1", broker)) else { return };
                let (Ok(from), Ok(to)) = (client.try_clone(), broker.try_clone()) else { return };
                let carried = carried.clone();
                thread::spawn(move || carry(from, to, bytes_per_second, &carried));
                // the answers are small, so they are not limited
                thread::spawn(move || carry(broker, client, u64::MAX, &AtomicU64::new(0)));
            }
        });
        Ok(line)
    }

    /// The number of bytes that the line has carried to the upstream.
    pub fn carried(&self) -> u64 {
        self.carried.load(Ordering::Relaxed)
    }
}

fn carry(mut from: TcpStream, mut to: TcpStream, bytes_per_second: u64, carried: &AtomicU64) {
    // a smaller piece would take less time than a sleep
    let mut buffer = [0; 4096];
    let mut free = Instant::now();
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        free = free.max(Instant::now()) + Duration::from_secs(count as u64) / bytes_per_second.min(1 << 30) as u32;
        thread::sleep(free.saturating_duration_since(Instant::now()));
        if to.write_all(&buffer[..count]).is_err() {
            return;
        }
        carried.fetch_add(count as u64, Ordering::Relaxed);
    }
}

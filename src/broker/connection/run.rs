//! The loop of a connection.

use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, sleep_until};

use super::super::registry::Kick;
use super::{Connection, End, Reason};

/// Stop producing output beyond this many unsent bytes.
pub(super) const OUT_FULL: usize = 64 * 1024;
/// Stop reading while this much input waits for its place.
const BATCH_FULL: usize = 256 * 1024;
/// Stop reading while this many acknowledgements wait for their receipts.
const ACKS_FULL: usize = 10_000;
/// And while this many answers to SUBSCRIBE wait for the disk.
const SUBACKS_FULL: usize = 100;
/// Stop reading while this many bytes of answers wait for the client.
const ANSWERS_FULL: usize = 256 * 1024;
/// Stop reading while this many retained messages wait for the client.
const RETAINED_FULL: usize = 100_000;
const SMALLEST_READ: usize = 4 * 1024;
const LARGEST_READ: usize = 64 * 1024;
/// A client that takes nothing for this long has gone.
const STALL: Duration = Duration::from_secs(30);
const NEVER: Duration = Duration::from_secs(365 * 24 * 3600);

impl Connection {
    /// Reads, delivers and writes until the connection ends.
    pub(super) async fn run<R, W>(&mut self, reader: &mut R, writer: &mut W, input: &mut BytesMut, kick: &Kick) -> End
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let core = self.core.clone();
        let mut pace = Pace::new(self.keep_alive);
        let mut alarm = std::pin::pin!(sleep_until(pace.read_by()));
        loop {
            // before trying, so that room made meanwhile is not missed
            let room = core.ingress.room().notified();
            if self.out.is_empty() {
                // whatever comes to be sent now has been waiting for no time
                pace.last_write = Instant::now();
                if self.out.capacity() > OUT_FULL {
                    self.out = BytesMut::new(); // a burst is over
                }
            }
            let placed = match self.receive(input) {
                Ok(placed) => placed,
                Err(end) => return end,
            };
            self.flush_acks();
            let idle = self.deliver();
            if !self.out.is_empty() && alarm.deadline() > pace.write_by() {
                alarm.as_mut().reset(pace.write_by());
            }
            let may_read = self.may_read();
            if may_read {
                input.reserve(pace.read_size);
            }
            tokio::select! {
                result = reader.read_buf(input), if may_read => match result {
                    Ok(0) | Err(_) => return End::Closed,
                    Ok(count) => {
                        core.stats.bytes_received.add(count as u64);
                        pace.has_read(count);
                    }
                },
                result = writer.write_buf(&mut self.out), if !self.out.is_empty() => match result {
                    Ok(0) | Err(_) => return End::Closed,
                    Ok(count) => {
                        core.stats.bytes_sent.add(count as u64);
                        pace.last_write = Instant::now();
                    }
                },
                () = self.subscriber.inbox.filled(), if idle => {}
                () = durable_ready(&self.session), if idle => {}
                _ = self.synced.changed(), if !self.acks.is_empty() || !self.subacks.is_empty() => {}
                () = room, if !placed => {}
                () = alarm.as_mut() => match pace.check(!self.out.is_empty()) {
                    Ok(next) => alarm.as_mut().reset(next),
                    Err(end) => return end,
                },
                reason = kick.kicked() => return End::Ended(reason),
            }
        }
    }
}

/// When a client has last been heard of and has last taken something, and how much it sends at a time.
struct Pace {
    /// Silence longer than this ends the connection.
    patience: Duration,
    last_read: Instant,
    last_write: Instant,
    read_size: usize,
}

impl Pace {
    fn new(keep_alive: u16) -> Pace {
        let patience = match keep_alive {
            0 => NEVER,
            seconds => Duration::from_millis(u64::from(seconds) * 1500), // [MQTT-3.1.2-22]
        };
        let now = Instant::now();
        Pace { patience, last_read: now, last_write: now, read_size: SMALLEST_READ }
    }

    fn read_by(&self) -> Instant {
        self.last_read + self.patience
    }

    fn write_by(&self) -> Instant {
        self.last_write + STALL
    }

    /// A client that fills the buffer gets a larger one, an idle one none.
    fn has_read(&mut self, count: usize) {
        self.last_read = Instant::now();
        if count >= self.read_size {
            self.read_size = (self.read_size * 2).min(LARGEST_READ);
        } else if count < SMALLEST_READ / 4 {
            self.read_size = SMALLEST_READ;
        }
    }

    /// When to look again, or why the connection ends.
    fn check(&self, has_output: bool) -> Result<Instant, End> {
        let now = Instant::now();
        if now >= self.read_by() {
            return Err(End::Ended(Reason::KEEP_ALIVE_TIMEOUT));
        }
        if has_output && now >= self.write_by() {
            return Err(End::Stalled);
        }
        Ok(self.read_by().min(if has_output { self.write_by() } else { now + NEVER }))
    }
}

impl Connection {
    /// Whether more may come in: a client that does not take its answers is not asked for more.
    fn may_read(&self) -> bool {
        self.batch.size() < BATCH_FULL
            && self.acks.len() < ACKS_FULL
            && self.subacks.len() < SUBACKS_FULL
            && self.out.len() < ANSWERS_FULL
            && self.session.retained.len() < RETAINED_FULL
    }
}

async fn durable_ready(session: &super::Session) {
    match &session.durable {
        Some(durable) => durable.reader.ready().await,
        None => std::future::pending().await,
    }
}

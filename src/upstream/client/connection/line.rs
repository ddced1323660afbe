//! Tells whether a silent line is dead or only slow.
//!
//! What was written is in the kernel's buffer, which takes megabytes, and a slow line needs minutes for a large message. The
//! answers to it, and to a ping behind it, come only then. So when an answer is overdue, the kernel is asked how much of what
//! was written the other side has: as long as that grows, the line is alive. In the same way a large message that arrives
//! holds up the answers behind it.

use std::os::fd::AsFd;
use std::time::Duration;

use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

use super::{Broken, Request, UpstreamConnection};
use crate::net::queue::unacknowledged;
use crate::upstream::wire::LineProgress;

/// Fewer bytes that leave are no reason for a delay.
const FEW: u64 = 4 << 10;
/// Fewer bytes of a message that arrives are no reason for a delay. The slowest lines carry several times as much in the time
/// between two looks.
const FEW_DOWN: u64 = 512;
/// The same for a ping that waits behind a message, in bytes a second. It bounds how long a packet that never ends can keep a
/// connection without a single answer.
const SLOWEST_DOWN: f64 = 64.0;
/// The bytes that layers above TCP may add behind a packet.
const ADDED: u64 = 512;
/// How long an upstream may take to answer what has certainly arrived there.
const TO_ANSWER: Duration = Duration::from_secs(30);

/// The state of the keep alive.
pub(super) struct KeepAlive {
    pub(super) ticks: Interval,
    /// Whether anything was read.
    pub(super) heard: bool,
    /// Whether a whole packet was read since the last tick.
    pub(super) has_packet: bool,
    /// The bytes that had been read at the last tick.
    read: u64,
    /// Set when a PINGREQ was sent at the last tick: the number of bytes that must be written until it is out.
    asked: Option<u64>,
    period: Duration,
    /// What the line had carried at the last tick, while a ping was overdue.
    carried: Option<i64>,
}

impl KeepAlive {
    pub(super) fn new(period: Duration) -> KeepAlive {
        let mut ticks = interval_at(Instant::now() + period, period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        KeepAlive { ticks, heard: false, has_packet: false, read: 0, asked: None, period, carried: None }
    }
}

/// What is known of the line.
#[derive(Default)]
pub(super) struct Line {
    /// When an overdue answer was last looked for, and what the line had carried then, up and down.
    looked: Option<(Instant, i64, u64)>,
    /// When the last ping was encoded.
    pinged: Option<Instant>,
    /// When the last ping that was answered was encoded, and when the answer came.
    answered: Option<(Instant, Instant)>,
    /// The bytes that were read.
    pub(super) read: u64,
}

impl Line {
    /// Records that the upstream has answered a ping, so that it has everything before it.
    pub(super) fn ping_answered(&mut self) {
        self.answered = self.pinged.take().map(|asked| (asked, Instant::now())).or(self.answered);
    }
}

impl UpstreamConnection {
    /// The bytes that wait in the kernel for the other side, and a measure of those that it has. Layers between, such as TLS, make
    /// it inexact, but it grows only when the other side acknowledges something or when there was room to write.
    fn carried(&self) -> (u64, i64) {
        let waiting = self.socket.as_ref().and_then(|socket| unacknowledged(socket.as_fd())).unwrap_or_default();
        (waiting, self.written as i64 - waiting as i64)
    }

    /// Whether a part of a packet has arrived.
    fn is_arriving(&self) -> bool {
        !self.input.is_empty() || self.oversized.is_some()
    }

    /// What the line does while an answer has been owed for this long.
    pub(in crate::upstream::client) fn line(&mut self, owed: Duration) -> LineProgress {
        let (waiting, up) = self.carried();
        let down = self.line.read;
        // a look from before the answer was owed tells nothing
        let before = self.line.looked.filter(|(at, ..)| at.elapsed() < owed);
        self.line.looked = Some((Instant::now(), up, down));
        let is_arriving = self.is_arriving();
        let answered = self.line.answered.filter(|(asked, _)| asked.elapsed() < owed);
        let is_there = answered.is_some_and(|(_, heard)| heard.elapsed() >= TO_ANSWER);
        let is_leaving = !is_there && waiting + self.output.len() as u64 >= FEW;
        match before {
            None if is_leaving || is_arriving => LineProgress::Unsure,
            None => LineProgress::Nothing,
            // less than that may be answers which an upstream with a wrong length makes a part of the message
            Some((_, _, before)) if is_arriving && down - before >= FEW_DOWN => LineProgress::Moves,
            // the last part may have arrived just now
            Some((_, before, _)) if !is_there && up > before && (is_leaving || up - before >= FEW as i64) => {
                LineProgress::Moves
            }
            Some(_) => LineProgress::Nothing,
        }
    }

    pub(super) fn tick(&mut self) {
        let few = FEW_DOWN.max((self.keep_alive.period.as_secs_f64() * SLOWEST_DOWN) as u64);
        let read = self.line.read - std::mem::replace(&mut self.keep_alive.read, self.line.read);
        // single bytes of a packet are no answer, and a large message holds up the one that is owed
        let is_heard = std::mem::take(&mut self.keep_alive.has_packet) || self.is_arriving() && read >= few;
        let overdue = self.keep_alive.asked.filter(|_| !is_heard);
        let Some(ping) = overdue else {
            self.keep_alive.carried = None;
            self.append(&Request::Ping);
            self.keep_alive.asked = Some(self.encoded);
            self.line.pinged.get_or_insert_with(Instant::now);
            return;
        };
        // on a slow line a ping may wait behind a large message
        let (waiting, up) = self.carried();
        let behind = self.written.saturating_sub(ping);
        let is_leaving = ping > self.written || waiting > behind + behind / 8 + ADDED;
        let alive = &mut self.keep_alive;
        match alive.carried.take() {
            Some(before) if up > before => alive.carried = Some(up).filter(|_| is_leaving),
            None if is_leaving => {
                alive.carried = Some(up);
                alive.ticks.reset_after(alive.period / 2);
            }
            _ => self.broken = Some(Broken::Silent),
        }
    }
}

//! The main loop of a connection.

use std::io;
use std::pin::Pin;
use std::time::Duration;

use bytes::BytesMut;
use futures_util::FutureExt;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::task::yield_now;
use tokio::time::{Instant, Sleep, sleep, sleep_until};

use super::super::registry::Kick;
use super::input::{SMALLEST_READ, read};
use super::leave::Leaving;
use super::output::SocketOutput;
use super::spare::LastBurst;
use super::turn::{WorkTurn, woken_tasks};
use super::{BrokerConnection, ConnectionEnd, Reason};
use crate::exchange::stats::Stats;
use crate::health::Overdue;
use crate::time::beat;
use crate::workers::worked;

/// Unsent bytes above which no more output is produced.
pub(super) const OUT_FULL: usize = 64 * 1024;
/// Bytes of messages without a place in the order above which nothing is read.
const BATCH_FULL: usize = 128 * 1024;
/// Acknowledgements that wait for receipts, above which nothing is read.
const ACKS_FULL: usize = 2500;
/// Answers to SUBSCRIBE that wait for the disk, above which nothing is read.
const SUBACKS_FULL: usize = 100;
/// Bytes of answers that wait for the client, above which nothing is read.
const ANSWERS_FULL: usize = 128 * 1024;
/// Subscriptions whose retained messages wait for the client, above which nothing is read.
const RETAINED_FULL: usize = 10_000;
const LARGEST_READ: usize = 64 * 1024;
/// Output up to this size is written before the loop waits, see [`BrokerConnection::write_at_once`].
const SMALL_WRITE: usize = 4 * 1024;
/// A client that reads nothing for this long counts as gone.
const STALL: Duration = Duration::from_secs(30);
/// How long the connection is served after that time, before it ends.
const LAST_CHANCE: Duration = Duration::from_millis(200);
/// The interval at which a message that waits for memory is tried again.
const SHORT: Duration = Duration::from_millis(250);
/// If the allowed silence is at least this long, it may be noticed up to one beat later.
const PATIENT: Duration = Duration::from_secs(30);
const NEVER: Duration = Duration::from_secs(365 * 24 * 3600);

impl BrokerConnection {
    /// Reads, delivers and writes until the connection ends.
    pub(super) async fn run<R, W>(
        &mut self,
        reader: &mut R,
        writer: &mut W,
        input: &mut BytesMut,
        kick: &Kick,
    ) -> ConnectionEnd
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let core = self.core.clone();
        let mut pace = ClientPace::new(self.keep_alive);
        let mut alarm = std::pin::pin!(sleep_until(pace.look_at()));
        let mut kicked = std::pin::pin!(kick.kicked());
        let mut turn = WorkTurn::new();
        loop {
            worked();
            turn.begins();
            // registered before the attempt, so that room that is made in between is not missed
            let room = core.ingress.room().notified();
            let freed = core.ingress.receiving().freed();
            let next = match self.work(input, &mut pace) {
                Ok(next) => next,
                Err(end) => return end,
            };
            self.set_alarm(alarm.as_mut(), &pace, next.may_read);
            if turn.is_over() {
                yield_now().await;
            } else if self.subscriber.inbox.turn.has_let_go() {
                // the publishers that it has woken wait for this thread otherwise, and the queue would run dry
                woken_tasks().await;
            }
            if next.writes_at_once {
                self.write_at_once(writer, &mut pace).await;
            }
            tokio::select! {
                result = read(reader, input, next.read_size), if next.may_read => match result {
                    Ok(0) | Err(_) => return pace.over(),
                    Ok(count) => self.has_read(count, &mut pace),
                },
                result = write(writer, &mut self.out), if !self.out.is_empty() || pace.is_unflushed => {
                    self.write_ended(result, writer, &mut pace);
                }
                () = self.subscriber.inbox.filled(), if next.is_idle => {}
                () = self.subscriber.inbox.turn.asked(), if !next.is_idle => {
                    self.read_now(&mut pace, reader, input, next.may_read);
                    self.is_asked = true;
                }
                () = durable_ready(&self.session), if next.is_idle => {}
                _ = self.synced.changed(), if !self.acks.is_empty() || !self.subacks.is_empty() => {}
                () = room, if !next.is_placed => {}
                () = freed, if next.waits_for_memory => {}
                () = late(next.late_at), if next.late_at.is_some() => {}
                () = soon(), if self.is_short => {}
                () = late(self.held_until), if self.held_until.is_some() => {}
                () = yield_now(), if self.has_more => {}
                () = alarm.as_mut() => match self.rung(&mut pace, reader, input, next.may_read) {
                    Ok(next) => alarm.as_mut().reset(next),
                    Err(end) => return end,
                },
                reason = kicked.as_mut(), if pace.leaving.is_none() => match Leaving::is_due(reason) {
                    false => return ConnectionEnd::Ended(reason),
                    true => self.leave(&mut pace, ConnectionEnd::Ended(reason)),
                },
            }
        }
    }

    /// Processes what was read, takes what waits for the client, and says what to wait for next.
    fn work(&mut self, input: &mut BytesMut, pace: &mut ClientPace) -> Result<NextWait, ConnectionEnd> {
        if self.out.is_empty() && !pace.is_unflushed {
            // output that is produced from here on has not waited yet
            pace.has_written();
            self.out.shrink(OUT_FULL);
        }
        let unsent = self.out.len();
        self.has_more = false;
        let is_placed = self.receive(input)?;
        if !is_placed {
            // the gateway does not read at present, so the client does not count as silent
            pace.last_read = Instant::now();
        }
        self.flush_acks();
        if self.is_deaf || (pace.leaving.is_some() && unsent >= ANSWERS_FULL) {
            // what a leaving client has sent counts even without an answer; only whole packets are cut off
            self.out.truncate(if self.is_deaf { 0 } else { unsent });
        }
        let is_idle = pace.leaving.is_none() && self.deliver();
        if is_idle && self.session.retained.len() > 0 {
            // the search for retained messages waits for its turn, which may just have come
            self.held_until = self.held_until.max(self.turn()).or_else(|| Some(Instant::now()));
        }
        let turn = &self.subscriber.inbox.turn;
        turn.set_blocked(!is_idle);
        if std::mem::take(&mut self.is_asked) {
            turn.answer();
        }
        self.note_in_hand();
        let may_read = self.may_read(pace, input);
        self.give_way()?;
        let writes_at_once = is_idle && may_read && !self.out.is_empty() && self.out.len() <= SMALL_WRITE;
        Ok(NextWait {
            is_placed,
            is_idle,
            writes_at_once,
            may_read,
            read_size: self.read_size(pace),
            waits_for_memory: self.waits_for_memory(),
            late_at: self.is_late_at(),
        })
    }

    /// Sets the alarm to the time of the next check.
    fn set_alarm(&self, mut alarm: Pin<&mut Sleep>, pace: &ClientPace, may_read: bool) {
        if let Some(leaving) = &pace.leaving {
            alarm.as_mut().reset(leaving.over_at(may_read));
        } else if (!self.out.is_empty() || pace.is_unflushed)
            && alarm.deadline() > pace.look_at_output()
            && !pace.stalled.is_running()
        {
            alarm.as_mut().reset(pace.look_at_output());
        }
        if let Some(over_at) = pace.burst.over_at().filter(|over_at| *over_at < alarm.deadline()) {
            alarm.reset(over_at);
        }
    }

    /// Writes output that is the last for the moment. The socket nearly always takes it, and then this turn of the loop is
    /// the only one for a message. Otherwise, as after an error, the loop writes it.
    ///
    /// Those who receive what this client has published write first, because a message is more urgent than its
    /// acknowledgement.
    async fn write_at_once<W: AsyncWrite + Unpin>(&mut self, writer: &mut W, pace: &mut ClientPace) {
        if std::mem::take(&mut self.has_delivered) {
            woken_tasks().await;
        }
        if let Some(Ok(Written::Some(count))) = write(writer, &mut self.out).now_or_never() {
            self.has_written(count, writer, pace);
        }
    }

    fn has_read(&mut self, count: usize, pace: &mut ClientPace) {
        pace.has_read(count, &self.core.stats);
        self.has_moved(count);
    }

    fn write_ended<W>(&mut self, result: io::Result<Written>, writer: &mut W, pace: &mut ClientPace)
    where
        W: AsyncWrite + Unpin,
    {
        match result {
            Ok(Written::All) => pace.is_unflushed = false,
            Ok(Written::Some(count)) => self.has_written(count, writer, pace),
            // what the client sent before it closed can still be read
            Err(_) => self.leave(pace, ConnectionEnd::Closed),
        }
    }

    /// Counts what was written, and passes on what TLS has kept back.
    fn has_written<W: AsyncWrite + Unpin>(&mut self, count: usize, writer: &mut W, pace: &mut ClientPace) {
        self.core.stats.bytes_sent.add(count as u64);
        pace.has_written();
        if count > SMALL_WRITE {
            pace.burst.is_at(pace.last_write);
        }
        // while there is more output, the next write does it
        pace.is_unflushed = self.out.is_empty() && !matches!(writer.flush().now_or_never(), Some(Ok(())));
    }

    /// Ends the connection for this reason as soon as what the client has sent before is processed.
    fn leave(&mut self, pace: &mut ClientPace, end: ConnectionEnd) {
        self.is_deaf |= matches!(end, ConnectionEnd::Closed | ConnectionEnd::Stalled);
        if !end.is_stopping() {
            self.subscriber.inbox.give_up();
        }
        pace.leaving.get_or_insert_with(|| Leaving::new(end));
    }

    /// Reads what has arrived, if anything has.
    fn read_now<R: AsyncRead + Unpin>(
        &mut self,
        pace: &mut ClientPace,
        reader: &mut R,
        input: &mut BytesMut,
        may_read: bool,
    ) -> bool {
        let read = if may_read { read(reader, input, self.read_size(pace)).now_or_never() } else { None };
        match read {
            Some(Ok(count)) if count > 0 => {
                self.has_read(count, pace);
                true
            }
            _ => false,
        }
    }

    /// Handles a timer: returns when to check again, or why the connection ends.
    fn rung<R>(
        &mut self,
        pace: &mut ClientPace,
        reader: &mut R,
        input: &mut BytesMut,
        may_read: bool,
    ) -> Result<Instant, ConnectionEnd>
    where
        R: AsyncRead + Unpin,
    {
        if self.give_back(&mut pace.burst) {
            // the buffer for input is given back with the next read
            pace.read_small();
        }
        // input that arrived while the process was stopped is not late
        if self.read_now(pace, reader, input, may_read) {
            return Ok(pace.look_at());
        }
        if pace.leaving.as_ref().is_some_and(|leaving| leaving.is_over(may_read)) {
            return Err(pace.over());
        }
        match pace.check(!self.out.is_empty() || pace.is_unflushed) {
            Err(ConnectionEnd::Stalled) => {
                self.leave(pace, ConnectionEnd::Stalled);
                Ok(Instant::now())
            }
            next => next,
        }
    }

    /// Whether more may be read. A client that does not read its answers is not read from. A leaving
    /// client is read from nevertheless, but gets no answers.
    fn may_read(&mut self, pace: &mut ClientPace, input: &mut BytesMut) -> bool {
        let is_open = !self.has_input
            && self.held_until.is_none()
            && self.change.is_none()
            && self.batch.size() < BATCH_FULL
            && !self.is_costly()
            && self.acks.len() < ACKS_FULL
            && self.subacks.len() < SUBACKS_FULL
            && self.subacks.iter().map(|(_, answer)| answer.len()).sum::<usize>() < ANSWERS_FULL
            && self.session.retained.len() < RETAINED_FULL
            && pace.leaving.as_ref().map_or(self.out.len() < ANSWERS_FULL, Leaving::may_read);
        if !is_open {
            self.is_not_read();
        }
        let may_read = is_open && self.has_memory(input);
        if !may_read {
            // the packet is not late while the gateway does not read
            pace.last_read = Instant::now();
        }
        may_read
    }

    /// How much is read at a time. A large packet has its memory already.
    fn read_size(&self, pace: &ClientPace) -> usize {
        if self.receiving.is_some() { 0 } else { pace.read_size }
    }
}

/// What a connection waits for after a piece of work.
struct NextWait {
    /// Whether its batch has a place in the order, so that it does not wait for room.
    is_placed: bool,
    /// Whether it has sent all that it may send at present.
    is_idle: bool,
    /// Whether its output is small and the last for the moment.
    writes_at_once: bool,
    may_read: bool,
    /// How much is read at a time, in bytes; 0 if a large packet has its memory already.
    read_size: usize,
    waits_for_memory: bool,
    /// When the packet that is being received is late.
    late_at: Option<Instant>,
}

/// When a client has last sent and last read something, and how much it sends at a time.
struct ClientPace {
    /// Silence longer than this ends the connection.
    patience: Duration,
    last_read: Instant,
    last_write: Instant,
    read_size: usize,
    burst: LastBurst,
    /// Whether everything was written and TLS still has some of it, because the socket did not take all.
    is_unflushed: bool,
    /// Set when the connection is about to end.
    leaving: Option<Leaving>,
    /// For how long the client could have been read from, or written to, since its time was over.
    silent: Overdue,
    stalled: Overdue,
}

impl ClientPace {
    fn new(keep_alive: u16) -> ClientPace {
        let patience = match keep_alive {
            0 => NEVER,
            seconds => Duration::from_millis(u64::from(seconds) * 1500), // [MQTT-3.1.2-22]
        };
        let now = Instant::now();
        ClientPace {
            patience,
            last_read: now,
            last_write: now,
            read_size: SMALLEST_READ,
            burst: LastBurst::default(),
            silent: Overdue::default(),
            stalled: Overdue::default(),
            is_unflushed: false,
            leaving: None,
        }
    }

    fn read_by(&self) -> Instant {
        self.last_read + self.patience
    }

    /// When to check whether the client is silent. If its keep alive is long, the check waits for the next beat, so that
    /// many clients are checked at the same time.
    fn look_at(&self) -> Instant {
        if self.patience < PATIENT { self.read_by() } else { beat::at_or_after(self.read_by()) }
    }

    fn write_by(&self) -> Instant {
        self.last_write + STALL
    }

    /// When to check whether the client takes what is written.
    fn look_at_output(&self) -> Instant {
        beat::at_or_after(self.write_by())
    }

    /// Adapts the read buffer: larger for a client that fills it.
    fn has_read(&mut self, count: usize, stats: &Stats) {
        stats.bytes_received.add(count as u64);
        if let Some(leaving) = &mut self.leaving {
            leaving.has_read(count);
        }
        self.last_read = Instant::now();
        self.silent.reset();
        if count >= SMALLEST_READ {
            self.burst.is_at(self.last_read);
        }
        if count >= self.read_size {
            self.read_size = (self.read_size * 2).min(LARGEST_READ);
        } else if count < SMALLEST_READ / 4 {
            self.read_small();
        }
    }

    /// Reads little at a time from now on.
    fn read_small(&mut self) {
        self.read_size = SMALLEST_READ;
    }

    /// Why the connection ends when there is nothing more to read.
    fn over(&mut self) -> ConnectionEnd {
        self.leaving.take().map_or(ConnectionEnd::Closed, Leaving::into_end)
    }

    fn has_written(&mut self) {
        self.last_write = Instant::now();
        self.stalled.reset();
    }

    /// Returns when to check again, or why the connection ends. The time in which this process did not run does not count
    /// against the client: what the client sent or read meanwhile is processed first.
    fn check(&mut self, has_output: bool) -> Result<Instant, ConnectionEnd> {
        let now = Instant::now();
        let is_silent = now >= self.read_by();
        let is_stalled = has_output && now >= self.write_by();
        if is_silent && self.silent.look(now) >= LAST_CHANCE {
            return Err(ConnectionEnd::Ended(Reason::KEEP_ALIVE_TIMEOUT));
        }
        if is_stalled && self.stalled.look(now) >= LAST_CHANCE {
            return Err(ConnectionEnd::Stalled);
        }
        if is_silent || is_stalled {
            return Ok(now + LAST_CHANCE);
        }
        Ok(if has_output { self.look_at().min(self.look_at_output()) } else { self.look_at() })
    }
}

/// What a write has achieved.
enum Written {
    /// This number of bytes was taken.
    Some(usize),
    /// Nothing is left, in TLS neither.
    All,
}

/// Writes output, or flushes if there is none. Safe to cancel.
async fn write<W: AsyncWrite + Unpin>(writer: &mut W, out: &mut SocketOutput) -> io::Result<Written> {
    if out.is_empty() {
        return writer.flush().await.map(|()| Written::All);
    }
    match writer.write_buf(out).await? {
        0 => Err(io::ErrorKind::WriteZero.into()),
        count => Ok(Written::Some(count)),
    }
}

/// The pause of a message that waits for memory. As a function of its own it makes its timer only where it is awaited,
/// because a timer that is made in vain costs as much as reading a small packet.
async fn soon() {
    sleep(SHORT).await;
}

/// Waits until `at`; for ever if it is `None`. Makes its timer only where it is awaited.
async fn late(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}

async fn durable_ready(session: &super::Session) {
    match &session.durable {
        Some(durable) => durable.reader.ready().await,
        None => std::future::pending().await,
    }
}

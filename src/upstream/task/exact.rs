//! Steps of QoS 2 exchanges that wait for the disk, and what precedes them where the upstream's session is another one.
//!
//! Where a connection leads to a session that the steps in the journal do not belong to (see [`SessionMark`]), nothing of the
//! journal leaves before these are forgotten, and that is safe: all that is in flight is sent again. In a session of another
//! time, packet ids may still be in use, and a new message under one of them would be taken for the old one: all of them are
//! released first. Only then the steps belong to that session, so whatever ends in between, it begins anew. A disk that takes
//! nothing of that for long ends the connection, with a fault that is shown: it is tried again, and nothing is lost.
//!
//! [`SessionMark`]: crate::upstream::mark::SessionMark

use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::time::Duration;

use tokio::time::Instant;
use tracing::{info, warn};

use super::Upstream;
use crate::journal::{Full, Note, Position};
use crate::message::Qos;
use crate::upstream::lanes::Lane;
use crate::upstream::session::{ANSWER_TIMEOUT_MS, EXACT_IDS};
use crate::upstream::wire::{Ack, Broken, Link, UpstreamClient};

/// Packet ids that are being released at once.
const PAGE: usize = 256;
/// After so many connections that ended meanwhile, packet ids are not released any more.
const MOST_ENDED: u32 = 2;

/// A disk that takes nothing is waited for no longer than this; then the connection ends.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is to be done before messages leave.
#[derive(Debug)]
enum ExactStep {
    /// The steps are to be noted as forgotten.
    Forget,
    /// That is safe at this place.
    Forgotten(Position),
    /// All packet ids are released.
    Release(Freed),
    /// The steps that follow are marked as those of this session; `false`: packet ids may be in use there.
    Mark(bool),
}

/// Packet ids that are being released.
#[derive(Debug)]
struct Freed {
    left: RangeInclusive<u16>,
    unanswered: usize,
    until: Instant,
}

impl Freed {
    fn new() -> Freed {
        Freed { left: EXACT_IDS, unanswered: 0, until: Instant::now() + Duration::from_millis(ANSWER_TIMEOUT_MS) }
    }

    fn answered(&mut self, packet_id: u16) {
        if EXACT_IDS.contains(&packet_id) {
            self.unanswered = self.unanswered.saturating_sub(1);
            self.until = Instant::now() + Duration::from_millis(ANSWER_TIMEOUT_MS);
        }
    }
}

/// Steps of QoS 2 that wait for the disk before the next packet goes out.
#[derive(Debug, Default)]
pub(super) struct Exact {
    /// PUBREL leaves when this place is safe.
    releases: VecDeque<(Position, u16)>,
    step: Option<ExactStep>,
    /// Packet ids may be in use in the session that is present.
    is_foreign: bool,
    /// The steps in the journal are not those of the session there: also on the next connection, until it is done.
    must_forget: bool,
    /// Whether this connection began as one with messages at QoS 2.
    begun_as: bool,
    /// The disk is waited for until then.
    until: Option<Instant>,
    /// Connections that the upstream ended while packet ids were released.
    ended: u32,
    /// Place of the newest PUBREC.
    recorded: Position,
}

impl Exact {
    pub(crate) fn waits_for_disk(&self) -> bool {
        !self.releases.is_empty()
            || matches!(self.step, Some(ExactStep::Forget | ExactStep::Forgotten(_) | ExactStep::Mark(_)))
    }

    pub(crate) fn deadline(&self) -> Option<Instant> {
        match &self.step {
            Some(ExactStep::Release(freed)) => Some(freed.until),
            Some(_) => self.until,
            None => None,
        }
    }

    /// Whether the disk has not taken for long what must be safe before messages leave.
    pub(crate) fn is_overdue(&self) -> bool {
        let waits = matches!(self.step, Some(ExactStep::Forget | ExactStep::Forgotten(_) | ExactStep::Mark(_)));
        waits && self.until.is_some_and(|until| until <= Instant::now())
    }

    /// Whether a connection that serves messages at QoS 2, or one that does not, must begin anew for what the rules say now.
    pub(crate) fn is_another(&self, is_exact: bool, has_exact: bool, marked: Option<bool>) -> bool {
        match marked {
            // what is marked is only that this is to be done again
            Some(_) if self.must_forget => self.begun_as != is_exact,
            Some(was_exact) => was_exact != is_exact,
            None => has_exact,
        }
    }

    pub(crate) fn disconnected(&mut self, why: &Broken) {
        self.releases.clear();
        let is_releasing = matches!(self.step.take(), Some(ExactStep::Release(_)));
        self.ended += u32::from(is_releasing && matches!(why, Broken::Closed | Broken::Dismissed(..)));
    }

    /// The upstream has answered to a PUBREL.
    pub(crate) fn answered(&mut self, packet_id: u16) {
        if let Some(ExactStep::Release(freed)) = &mut self.step {
            freed.answered(packet_id);
        }
    }
}

impl<C: UpstreamClient> Upstream<C> {
    /// Whether something is noted that a new session there would make wrong.
    pub(super) fn has_steps(&self) -> bool {
        self.inbox.has_steps()
            || self.exact.recorded > *self.synced.borrow()
            || self.consumers.all().any(|(_, consumer)| !self.journal.released(consumer).is_empty())
    }

    /// Whether what goes up or comes down, or has done so before, is to come exactly once.
    fn needs_steps(&self) -> bool {
        self.session.has_exact() || self.exact.must_forget || self.mark.is_exact() == Some(true) || self.has_steps()
    }

    /// There is a connection: whether exchanges go on, or begin anew.
    pub(super) fn begin_exact(&mut self, link: &Link) {
        let is_exact = self.session.is_exact();
        self.exact.begun_as = is_exact;
        if is_exact && link.max_qos < Qos::ExactlyOnce {
            let upstream = &self.name;
            warn!(upstream, "the upstream does not take QoS 2: messages of rules with qos = 2 may come there twice");
        }
        if link.session_present && !self.exact.must_forget && self.mark.goes_on(is_exact) {
            // where it cannot be written, there is a doubt after a crash, as there was one before
            let _ = self.mark.set(is_exact, false);
            return;
        }
        if !self.needs_steps() {
            return;
        }
        self.session.doubt_exchanges();
        self.exact.must_forget = true;
        self.exact.until = Some(Instant::now() + PATIENCE);
        self.exact.is_foreign = link.session_present
            && link.max_qos == Qos::ExactlyOnce
            && self.mark.is_foreign(is_exact)
            && (is_exact || self.mark.was_exact());
        if self.exact.is_foreign {
            self.session.forget_exchanges();
        }
        self.exact.step = Some(ExactStep::Forget);
        self.inbox.forget();
    }

    /// Whether messages may leave; does what is to be done before.
    fn go_on(&mut self, synced: Position) -> bool {
        loop {
            match &mut self.exact.step {
                None => return true,
                // what is on its way to the disk is not known as a step before it is there
                Some(ExactStep::Forget) if self.exact.recorded > synced => return false,
                Some(ExactStep::Forget) => match self.forget_exchanges() {
                    Ok(position) => self.exact.step = Some(ExactStep::Forgotten(position)),
                    // there is room again when something has become safe
                    Err(Full) => return false,
                },
                Some(ExactStep::Forgotten(position)) if *position > synced => return false,
                Some(ExactStep::Forgotten(_)) => {
                    self.readers.rewind();
                    let has_borne_it = self.exact.ended < MOST_ENDED;
                    if self.exact.is_foreign && !has_borne_it {
                        warn!(upstream = self.name, "the upstream ends the connection at PUBREL: going on without");
                    }
                    self.exact.step = Some(match self.exact.is_foreign && has_borne_it {
                        true => ExactStep::Release(Freed::new()),
                        false => ExactStep::Mark(!self.exact.is_foreign),
                    });
                }
                Some(ExactStep::Release(freed)) => {
                    while freed.unanswered < PAGE
                        && let Some(packet_id) = freed.left.clone().next()
                        && self.client.ack(Ack::Released(packet_id)).is_ok()
                    {
                        freed.left.next();
                        freed.unanswered += 1;
                    }
                    if freed.left.is_empty() && freed.unanswered == 0 {
                        self.exact.until = Some(Instant::now() + PATIENCE);
                        self.exact.step = Some(ExactStep::Mark(true));
                    } else if freed.until <= Instant::now() {
                        warn!(upstream = self.name, "the upstream does not answer to PUBREL: going on without");
                        self.exact.ended = self.exact.ended.max(MOST_ENDED);
                        self.exact.until = Some(Instant::now() + PATIENCE);
                        self.exact.step = Some(ExactStep::Mark(false));
                    } else {
                        return false;
                    }
                }
                // what is not sure is done again on the next connection, also after a restart: until then the session is marked
                // as one without messages at QoS 2, and with a doubt
                Some(ExactStep::Mark(is_sure)) => {
                    let is_sure = *is_sure;
                    if self.mark.set(self.session.is_exact() && is_sure, !is_sure).is_err() {
                        return false;
                    }
                    self.exact.must_forget = !is_sure;
                    if is_sure {
                        self.exact.ended = 0;
                    }
                    (self.exact.step, self.exact.until) = (None, None);
                    self.inbox.open();
                }
            }
        }
    }

    /// The place where it is safe.
    fn forget_exchanges(&mut self) -> Result<Position, Full> {
        let mut safe = self.inbox.note_forgotten()?;
        let mut count = 0;
        for (_, consumer) in self.consumers.all() {
            for ordinal in self.journal.released(consumer) {
                safe = safe.max(self.journal.note(consumer, Note::Again(ordinal))?);
                count += 1;
            }
        }
        if count > 0 {
            let upstream = &self.name;
            info!(
                upstream,
                count, "the upstream's session is not the one from before: what is in flight is sent again"
            );
        }
        Ok(safe)
    }

    /// The upstream has a message.
    pub(super) fn record(&mut self, lane: Lane, ordinal: u64, packet_id: u16) {
        // where the journal takes nothing at all, going on empties it; a crash by then may double the message
        let place = self.journal.note(self.consumers.id(lane), Note::Released(ordinal)).unwrap_or_default();
        self.exact.recorded = self.exact.recorded.max(place);
        self.exact.releases.push_back((place, packet_id));
    }

    /// Says PUBREL as far as PUBREC is safe; whether messages may leave.
    pub(super) fn release_safe(&mut self, synced: Position) -> bool {
        while let Some((position, packet_id)) = self.exact.releases.front().copied()
            && position <= synced
            && self.client.ack(Ack::Released(packet_id)).is_ok()
        {
            self.exact.releases.pop_front();
            self.session.released(packet_id, self.clock.boot_ms());
        }
        self.go_on(synced)
    }
}

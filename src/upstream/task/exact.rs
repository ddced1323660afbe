//! The steps of QoS 2 exchanges that wait for the disk, and the preparations if the upstream's session is another one.
//!
//! If a connection leads to a session to which the steps in the journal do not belong (see [`SessionMark`]), nothing of the
//! journal is sent before these steps are forgotten on disk; all messages in flight are sent again. In a session from
//! another time, packet ids may still be in use, and a new message under one of them would be taken for the old one, so all
//! of them are freed first. Only then the steps are assigned to that session, so an interruption makes the procedure start
//! again. If the disk does not accept this for long, the connection ends with a fault that is shown; it is tried again, and
//! nothing is lost.
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

/// The number of packet ids that are freed at a time.
const PAGE: usize = 256;
/// After this number of connections that ended meanwhile, packet ids are not freed any more.
const MOST_ENDED: u32 = 2;

/// The longest wait for the disk before the connection ends.
const PATIENCE: Duration = Duration::from_secs(30);

/// A step that must be done before messages are sent.
#[derive(Debug)]
enum ExactStep {
    /// Record that the old steps are forgotten.
    Forget,
    /// Wait until that is on disk, at this position.
    Forgotten(Position),
    /// Free all packet ids.
    Release(Freed),
    /// Record that the following steps belong to this session. `false` tells that packet ids may be in use there.
    Mark(bool),
}

/// The packet ids that are being freed.
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

/// The steps of QoS 2 exchanges that wait for the disk before the next packet is sent.
#[derive(Debug, Default)]
pub(super) struct Exact {
    /// PUBREL leaves when this position is on disk.
    releases: VecDeque<(Position, u16)>,
    step: Option<ExactStep>,
    /// Whether packet ids may be in use in the upstream's session.
    is_foreign: bool,
    /// Whether the steps in the journal do not belong to the upstream's session. It stays set over connections until they
    /// are forgotten.
    must_forget: bool,
    /// Whether this connection began with messages at QoS 2.
    begun_as: bool,
    /// The end of the wait for the disk.
    until: Option<Instant>,
    /// The number of connections that the upstream ended while packet ids were freed.
    ended: u32,
    /// The position of the newest recorded PUBREC.
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

    /// Whether the disk has not accepted for long what must be written before messages are sent.
    pub(crate) fn is_overdue(&self) -> bool {
        let waits = matches!(self.step, Some(ExactStep::Forget | ExactStep::Forgotten(_) | ExactStep::Mark(_)));
        waits && self.until.is_some_and(|until| until <= Instant::now())
    }

    /// Whether a connection must start anew, because the rules now need messages at QoS 2 or do not need them any more.
    pub(crate) fn is_another(&self, is_exact: bool, has_exact: bool, marked: Option<bool>) -> bool {
        match marked {
            // the record only says that this must be done again
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

    /// Records the upstream's answer to a PUBREL.
    pub(crate) fn answered(&mut self, packet_id: u16) {
        if let Some(ExactStep::Release(freed)) = &mut self.step {
            freed.answered(packet_id);
        }
    }
}

impl<C: UpstreamClient> Upstream<C> {
    /// Whether something is recorded that would be wrong in a new session.
    pub(super) fn has_steps(&self) -> bool {
        self.inbox.has_steps()
            || self.exact.recorded > *self.synced.borrow()
            || self.consumers.all().any(|(_, consumer)| !self.journal.released(consumer).is_empty())
    }

    /// Whether messages in any direction must arrive exactly once, or did so before.
    fn needs_steps(&self) -> bool {
        self.session.has_exact() || self.exact.must_forget || self.mark.is_exact() == Some(true) || self.has_steps()
    }

    /// Decides on a new connection whether exchanges continue or start anew.
    pub(super) fn begin_exact(&mut self, link: &Link) {
        let is_exact = self.session.is_exact();
        self.exact.begun_as = is_exact;
        if link.session_present && !self.exact.must_forget && self.mark.goes_on(is_exact) {
            // if this cannot be written, there is a doubt after a crash, as there was before
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

    /// Does the next steps of the preparation, and returns whether messages may be sent.
    fn go_on(&mut self, synced: Position) -> bool {
        loop {
            match &mut self.exact.step {
                None => return true,
                // a step counts as known only when it is on disk
                Some(ExactStep::Forget) if self.exact.recorded > synced => return false,
                Some(ExactStep::Forget) => match self.forget_exchanges() {
                    Ok(position) => self.exact.step = Some(ExactStep::Forgotten(position)),
                    // there is room again when something has been synced
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
                // an uncertain step is done again on the next connection, also after a restart; until then the session is
                // recorded as one without messages at QoS 2, with a doubt
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

    /// Forgets the exchanges, and returns the position at which that is on disk.
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

    /// Records that the upstream has a message.
    pub(super) fn record(&mut self, lane: Lane, ordinal: u64, packet_id: u16) {
        // if the journal accepts nothing at all, going on empties it; a crash before that may duplicate the message
        let place = self.journal.note(self.consumers.id(lane), Note::Released(ordinal)).unwrap_or_default();
        self.exact.recorded = self.exact.recorded.max(place);
        self.exact.releases.push_back((place, packet_id));
    }

    /// Sends PUBREL for messages whose PUBREC is on disk, and returns whether messages may be sent.
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

//! What an upstream has turned out not to take: the retain flag, or QoS 2. To find that out may cost connections, so it is
//! remembered over them for [`REMEMBERED_MS`], and then tried again. A reload tries it at once.

use tracing::{debug, info, warn};

use super::{SessionAction, UpstreamSession};
use crate::message::Qos;
use crate::upstream::wire::Link;

/// How long a refusal is remembered, in milliseconds.
pub(super) const REMEMBERED_MS: u64 = 3_600_000;

/// Whether a refusal is news.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RefusalNews {
    /// It was not known.
    New,
    /// It was tried again, in vain.
    Again,
    /// It is in force already.
    Known,
}

/// What is known of one thing that an upstream may refuse.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct RememberedRefusal {
    /// Until when it is not tried again.
    until: Option<u64>,
    is_said: bool,
    /// Whether the last attempt was refused.
    was_refused: bool,
}

impl RememberedRefusal {
    /// Whether it is not tried.
    pub(super) fn is_in_force(self) -> bool {
        self.until.is_some()
    }

    /// Whether it was refused the last time, and may be tried again.
    pub(super) fn is_tried_again(self) -> bool {
        self.was_refused && self.until.is_none()
    }

    /// When it is tried again.
    pub(super) fn until(self) -> Option<u64> {
        self.until
    }

    fn begin(&mut self, now: u64) -> RefusalNews {
        if self.until.is_some() {
            return RefusalNews::Known;
        }
        (self.until, self.was_refused) = (Some(now + REMEMBERED_MS), true);
        if std::mem::replace(&mut self.is_said, true) { RefusalNews::Again } else { RefusalNews::New }
    }

    /// Ends it when its time has come, and returns whether it has.
    fn end_due(&mut self, now: u64) -> bool {
        self.until.take_if(|until| *until <= now).is_some()
    }

    /// Ends it because of a reload, and returns whether it was in force.
    fn lift(&mut self) -> bool {
        self.is_said = false;
        self.until.take().is_some()
    }

    /// Records that the upstream has taken it, and returns whether it has refused it before.
    fn is_taken(&mut self) -> bool {
        let is_news = self.is_tried_again();
        if is_news {
            *self = RememberedRefusal::default();
        }
        is_news
    }
}

impl UpstreamSession {
    /// Sends everything without the retain flag for a while.
    pub(super) fn refuse_retain(&mut self, why: &str, now: u64) {
        let upstream = &self.name;
        match self.retain_refused.begin(now) {
            RefusalNews::Known => return,
            RefusalNews::Again => debug!(upstream, "the upstream still does not take the retain flag ({why})"),
            RefusalNews::New => warn!(
                upstream,
                "the upstream does not take the retain flag ({why}): status, will and messages go without it from now \
                 on, and it is tried again after an hour; retain = false on a rule says the same"
            ),
        }
        self.learned.is_news = true;
    }

    /// Sends nothing at QoS 2 to this address for a while.
    pub(super) fn refuse_exact(&mut self, why: &str, now: u64) {
        let upstream = &self.name;
        match self.exact_refused.begin(now) {
            RefusalNews::Known => return,
            RefusalNews::Again => debug!(upstream, "the upstream still does not take QoS 2 ({why})"),
            RefusalNews::New => warn!(
                upstream,
                "the upstream does not take QoS 2 ({why}): messages of rules with qos = 2 go at QoS 1 from now on, and may \
                 come there twice; QoS 2 is tried again after an hour"
            ),
        }
        self.learned.is_news = true;
        self.link = self.link.map(|link| self.taken(link));
    }

    /// A link without what the upstream has turned out not to take.
    pub(crate) fn taken(&self, link: Link) -> Link {
        let most = if self.exact_refused.is_in_force() { Qos::AtLeastOnce } else { Qos::ExactlyOnce };
        Link { max_qos: link.max_qos.min(most), ..link }
    }

    /// Ends refusals of which the time has come, before a new connection.
    pub(crate) fn end_refusals(&mut self, now: u64) {
        self.retain_refused.end_due(now);
        self.exact_refused.end_due(now);
    }

    /// When the retain flag is tried again on this connection. QoS 2 is tried again on the next one, because an upstream's
    /// answer to CONNECT says what a connection is for.
    pub(super) fn refusal_deadline(&self) -> Option<u64> {
        self.retain_refused.until().filter(|_| self.link.is_some())
    }

    /// Tries the retain flag again on this connection when its time has come, first with the status.
    pub(super) fn refusal_time(&mut self, now: u64, actions: &mut Vec<SessionAction>) {
        if self.link.is_some() && self.retain_refused.end_due(now) {
            self.say_status_again(now, actions);
        }
    }

    /// Tries again what was refused, because of a reload.
    pub(super) fn lift_refusals(&mut self, now: u64, actions: &mut Vec<SessionAction>) {
        let (retain, exact) = (self.retain_refused.lift(), self.exact_refused.lift());
        if self.link.is_none() {
            return;
        }
        if retain {
            self.say_status_again(now, actions);
        }
        if exact && self.rules.is_exact() {
            self.renews = true;
            actions.push(SessionAction::Renew);
        }
    }

    /// Records that the upstream has acknowledged something with the retain flag.
    pub(super) fn retain_is_taken(&mut self) {
        if self.retain_refused.is_taken() {
            self.wants_retained = true;
            info!(upstream = self.name, "the upstream takes the retain flag again");
        }
    }

    /// Records that the upstream has acknowledged something at QoS 2.
    pub(super) fn exact_is_taken(&mut self) {
        if self.exact_refused.is_taken() {
            info!(upstream = self.name, "the upstream takes QoS 2 again");
        }
    }

    /// Whether all retained messages are to be sent because the upstream takes the flag again, since the last call.
    pub(crate) fn take_wants_retained(&mut self) -> bool {
        std::mem::take(&mut self.wants_retained)
    }
}

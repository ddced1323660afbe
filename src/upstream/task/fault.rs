//! An upstream that is not there is a part with a fault, until it is.

use super::Upstream;
use crate::health::{Fault, Health};
use crate::upstream::wire::{Broken, UpstreamClient};

/// What names of these parts begin with.
pub(crate) const PART: &str = "upstream ";

impl<C: UpstreamClient> Upstream<C> {
    /// Tells this of an upstream that is not there, from now on. What happened is in the log already.
    pub(crate) fn report_to(mut self, health: Health) -> Self {
        self.health = health;
        self
    }

    /// There is no connection, for this reason, which is shown in these words.
    pub(super) fn is_down(&self, why: &Broken, shown: &str) {
        let remedy = match why {
            Broken::Unprepared(_) => "put it there; it is looked for at every attempt, and messages wait",
            Broken::Refused(..) | Broken::Version => {
                "make it accept us: username, password, client_id, certificate and protocol are what it looks at; \
                 messages wait, and it is tried again"
            }
            Broken::SentAway(_) => "it is tried again after a long pause, and messages wait",
            Broken::TakenOver => "give each gateway a client_id of its own; it is tried again, and messages wait",
            _ => "messages wait, and it is tried again until it works",
        };
        let fault = Fault::new(format!("{}: {shown}", self.shown.address), remedy);
        self.health.set(&format!("{PART}{}", self.name), Some(&fault));
    }

    /// What must be safe before messages leave is not, because the disk takes nothing.
    pub(super) fn disk_is_slow(&self) -> Broken {
        let why = self.journal.status().failing.unwrap_or_else(|| "the disk takes nothing".into());
        Broken::Failed(format!("the upstream's session is another one, and that cannot be noted in the journal: {why}"))
    }

    /// There is a connection, or none is wanted any more.
    pub(super) fn is_well(&self) {
        self.health.set(&format!("{PART}{}", self.name), None);
    }
}

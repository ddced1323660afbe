//! Reports an upstream without a connection as a faulty part, subscriptions that it does not serve as another, and a second
//! client with the same id.

use std::time::Duration;

use tracing::warn;

use super::Upstream;
use crate::health::{Fault, Health};
use crate::upstream::wire::{Broken, UpstreamClient};

/// The prefix of the names of these parts.
pub(crate) const PART: &str = "upstream ";

/// What follows the name of an upstream in the name of the part for its subscriptions.
const SUBSCRIPTIONS: &str = ": subscriptions";

/// The remedy for what needs no person.
const UNTIL_IT_WORKS: &str = "messages wait, and it is tried again until it works";

impl<C: UpstreamClient> Upstream<C> {
    /// Reports to this health from now on. The events are in the log already.
    pub(crate) fn report_to(mut self, health: Health) -> Self {
        self.health = health;
        self
    }

    /// Reports that there is no connection. `shown` is the reason in words.
    pub(super) fn is_down(&self, why: &Broken, shown: &str) {
        let remedy = match why {
            Broken::Unprepared(_) => "put it there; it is looked for at every attempt, and messages wait",
            Broken::Refused(..) | Broken::Version => {
                "make it accept us: username, password, client_id, certificate and protocol are what it looks at; \
                 messages wait, and it is tried again"
            }
            Broken::OtherThan(..) if self.approach.past(self.address).has_begun => UNTIL_IT_WORKS,
            Broken::Lasting(_) | Broken::OtherThan(..) => {
                "change that here or there; messages wait, and it is tried again"
            }
            Broken::NotYetValid(_) => {
                "see that this machine's clock is set over the network; messages wait, and it is tried again"
            }
            Broken::Unresolved(_) => {
                "see to the name resolution of this machine, or to the name in addresses; messages wait, and it is tried again"
            }
            Broken::SentAway(_) => "it is tried again after a long pause, and messages wait",
            Broken::TakenOver => "give each gateway a client_id of its own; it is tried again, and messages wait",
            _ => UNTIL_IT_WORKS,
        };
        let fault = Fault::new(format!("{}: {shown}", self.shown.address), remedy);
        self.health.set(&format!("{PART}{}", self.name), Some(&fault));
    }

    /// Reports that the disk does not accept what must be written before messages are sent.
    pub(super) fn disk_is_slow(&self) -> Broken {
        let why = self.journal.status().failing.unwrap_or_else(|| "the disk takes nothing".into());
        Broken::Failed(format!("the upstream's session is another one, and that cannot be noted in the journal: {why}"))
    }

    /// Ends the fault, because there is a connection.
    pub(super) fn is_well(&self) {
        self.health.set(&format!("{PART}{}", self.name), None);
    }

    /// Shows the subscriptions by which nothing comes down, while that is so.
    pub(super) fn look_at_missing(&mut self) {
        let missing = self.session.missing_subscriptions();
        if missing == self.missing {
            return;
        }
        let part = format!("{PART}{}{SUBSCRIPTIONS}", self.name);
        let fault = missing.first().map(|first| {
            let others = match missing.len() - 1 {
                0 => String::new(),
                others => format!(", and by {others} more"),
            };
            Fault::new(
                format!("nothing comes down by the subscription to {first}{others}"),
                "let this client subscribe to it there, or take the rule away; it is asked for again with every connection, \
                 each hour, and by a reload",
            )
        });
        self.health.set(&part, fault.as_ref());
        self.missing = missing;
    }

    /// Ends all faults, because no connection is wanted any more.
    pub(super) fn is_over(&self) {
        self.is_well();
        self.health.set(&format!("{PART}{}{SUBSCRIPTIONS}", self.name), None);
    }

    /// Checks whether another client may use our client id, and logs that.
    pub(super) fn look_for_twin(&mut self, why: &Broken, lasted: Duration) {
        let is_explained = self.session.blames() || self.inbox.blames() || self.passes.blames();
        if !self.twins.ended(why, lasted, is_explained) {
            return;
        }
        let (upstream, client_id, times) = (&self.name, &self.current.client_id, self.twins.times());
        warn!(
            upstream,
            client_id,
            times,
            "the upstream has accepted and ended connections in a row ({why}): does another client, such as \
             another gateway, use this client_id? or does the upstream take only so many messages in some time?"
        );
    }
}

//! Reading the retained store while messages come in.
//!
//! The store is read under the lock of the one order, so whoever searches it makes all others wait. It is therefore read in portions:
//! between them others have their turn, and what changes meanwhile is seen as it is then.

use super::ingress::Ingress;
use super::meter::Walk;
use super::retained::{Portion, SelectedRetained};
use crate::message::{Message, Origin};
use crate::workers::worked;

/// Topics that are looked at under the lock.
pub(crate) const TOPICS_AT_ONCE: usize = 1024;
/// What is taken at once of a search for many.
pub(crate) const PORTION: Portion = Portion { messages: 256, bytes: usize::MAX, topics: TOPICS_AT_ONCE };

impl Ingress {
    /// The retained message on a topic.
    pub(crate) fn retained(&self, topic: &str) -> Option<Message> {
        self.inner.sequencer.lock().retained.get(topic).cloned()
    }

    /// Goes on with what a subscription has selected, for this client.
    pub(crate) fn retained_behind(&self, filter: &str, after: &str, most: Portion, client: Origin) -> SelectedRetained {
        worked();
        let mut walk = Walk::default();
        let selected =
            SelectedRetained::take(&self.inner.sequencer.lock().retained, filter, after, (most, 1), &mut walk);
        self.inner.meter.charge(client, walk.cost(selected.found.len()));
        selected
    }

    /// Retained messages that `filter` selects and `wanted` takes, on topics behind `after`, in order of topic, for this client.
    pub(crate) fn select_retained(
        &self,
        (filter, after): (&str, &str),
        count: usize,
        client: Origin,
        wanted: impl Fn(&Message) -> bool,
    ) -> Vec<Message> {
        let mut taken = Vec::new();
        let mut after = Some(Box::from(after));
        while let Some(from) = after.filter(|_| taken.len() < count) {
            let SelectedRetained { found, behind } = self.retained_behind(filter, &from, PORTION, client);
            let room = count - taken.len();
            taken.extend(found.into_iter().filter(|message| wanted(message)).take(room));
            after = behind;
        }
        taken
    }
}

//! Reads the retained store while messages come in.
//!
//! The store is read under the lock of the ingress, so a search makes all others wait. It is therefore read in portions.
//! Others have their turn in between, and later portions contain changes made meanwhile.

use super::ingress::Ingress;
use super::meter::Walk;
use super::retained::{Portion, SelectedRetained};
use crate::message::{Message, Origin};
use crate::workers::worked;

/// The most topics that are examined under the lock at a time.
pub(crate) const TOPICS_AT_ONCE: usize = 1024;
/// The portion for a search for many messages.
pub(crate) const PORTION: Portion = Portion { messages: 256, bytes: usize::MAX, topics: TOPICS_AT_ONCE };

impl Ingress {
    /// The retained message on a topic.
    pub(crate) fn retained(&self, topic: &str) -> Option<Message> {
        self.inner.sequencer.lock().retained.get(topic).cloned()
    }

    /// Continues the search for a client's subscription.
    pub(crate) fn retained_behind(&self, filter: &str, after: &str, most: Portion, client: Origin) -> SelectedRetained {
        let mut walk = Walk::default();
        let selected = self.retained_in(filter, after, most, &mut walk);
        self.inner.meter.charge(client, walk.cost(selected.found.len()));
        selected
    }

    /// The same as a part of something that is charged as a whole.
    pub(crate) fn retained_in(&self, filter: &str, after: &str, most: Portion, walk: &mut Walk) -> SelectedRetained {
        worked();
        SelectedRetained::take(&self.inner.sequencer.lock().retained, filter, after, (most, 1), walk)
    }

    /// For this client, the retained messages that `filter` matches and `wanted` accepts, on topics after `after`, in the
    /// order of topics.
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

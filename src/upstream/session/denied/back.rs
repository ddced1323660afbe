//! What comes back from the shelf of messages whose topic or size is denied.

use crate::message::Message;
use crate::upstream::session::UpstreamSession;
use crate::upstream::session::put_off::hash;
use crate::upstream::session::sizes::size_there;

impl UpstreamSession {
    /// Whether a message on the shelf goes back to its lane: because it is not denied any more, or to be tried.
    pub(crate) fn takes_back(&mut self, message: &Message) -> bool {
        let topic = hash(message.view().topic());
        if !self.denied.knows_shelf
            && self.denied.key(message).is_none()
            && self.denied.has_room()
            && let Some(it) = self.denied.record(topic)
        {
            // the one that was tried is in its lane, and the upstream may have answered those before it
            (it.is_put_off, it.comes_back, it.is_after, it.due) = (true, true, true, 0);
        }
        let Some(key) = self.denied.key(message) else { return true };
        let Some(it) = self.denied.put_off(key) else {
            return self.denied.takes_back_head(key, size_there(message));
        };
        it.has_shelved = true;
        it.tried.is_none() && !std::mem::replace(&mut it.comes_back, true)
    }

    /// Whether all that waits was read, and a message that is to be tried was not there: then it comes from the shelf.
    pub(crate) fn misses_tried(&mut self) -> bool {
        let mut misses = self.denied.misses_heads();
        for it in self.denied.topics.iter_mut().filter(|it| it.comes_back && it.tried.is_none()) {
            (it.comes_back, misses) = (false, true);
        }
        misses
    }

    /// Records that all messages on the shelf were looked at.
    pub(crate) fn took_back(&mut self) {
        self.denied.took_back_heads();
        self.look_at_size();
        self.denied.knows_shelf = true;
        let without = self.denied.topics.iter_mut().filter(|it| it.tried.is_none() && !it.comes_back);
        without.for_each(|it| it.has_shelved = false);
    }
}

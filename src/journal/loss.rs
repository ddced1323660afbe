//! Logs messages that limits have dropped, which is lost data, with their owner and number. There is not a line for every
//! message, but one for each consumer and minute, and [`LINES`] in a minute for each part of the journal, so that guests do not
//! hide what others lose. The counters of consumers and of
//! [`super::report::Status`] are exact.

use std::time::Instant;

use tracing::error;

use super::consumers::Queue;
use super::pace::LogPace;
use super::parts::PARTS;
use super::{ConsumerId, Journal};
use crate::access::owner::ConsumerOwner;

/// The most lines of a part in a minute.
const LINES: u32 = 10;

impl Journal {
    /// Wants to know from [`Journal::take_given_up`] whether limits drop this message of a consumer. At most 16 are known.
    pub(crate) fn follow(&self, id: ConsumerId, ordinal: u64) {
        if let Some(queue) = self.shared.state.lock().queues.get_mut(id) {
            queue.follow_loss(ordinal);
        }
    }

    /// The ordinals of those that are followed and that limits have dropped since the last call.
    pub(crate) fn take_given_up(&self, id: ConsumerId) -> Vec<u64> {
        self.shared.state.lock().queues.get_mut(id).map(Queue::take_given_up).unwrap_or_default()
    }
}

/// The losses of all consumers since the start.
#[derive(Debug, Default)]
pub(crate) struct Losses {
    messages: u64,
    said: [LogPace; PARTS],
}

impl Losses {
    /// The number of messages.
    pub(crate) fn messages(&self) -> u64 {
        self.messages
    }

    /// Records that limits have dropped messages of this consumer.
    pub(crate) fn note(&mut self, queue: &mut Queue, messages: u64, bounds: &str) {
        self.messages += messages;
        let now = Instant::now();
        let said = &mut self.said[queue.part() as usize];
        let Some(messages) = queue.say_lost(messages, now, || said.admits(LINES, now)) else { return };
        let (owner, total) = (ConsumerOwner::of(queue.name()), queue.cursor().dropped);
        error!(messages, total, "{owner} has lost its oldest messages: they had to make room ({bounds})");
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{draft, limits};
    use super::super::{Journal, WhenFull};

    #[test]
    fn losses_are_counted_for_all_and_for_each() {
        let journal = Journal::default();
        let ids = ["session/a", "session/b"].map(|name| journal.register(name, limits(2, WhenFull::DropOldest)));
        for _ in 0..5 {
            journal.append(&draft("t", b"x", false), &ids).unwrap();
        }
        journal.append(&draft("t", b"x", false), &ids[..1]).unwrap();
        assert_eq!((journal.status().dropped, journal.backlog(ids[0]).dropped), (7, 4));
        assert_eq!(journal.backlog_of("session/b").unwrap().dropped, 3);
    }
}

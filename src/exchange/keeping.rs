//! Keeps incoming messages in the journal and in the store of retained messages.

use tracing::warn;

use super::retained::Retained;
use super::stats::Stats;
use crate::journal::{Appender, ConsumerId, Extra, Full, Position};
use crate::message::{Batch, Message, MessageRef, Qos};

/// Gives the journal what it must keep of a message, and returns the position, if there is one. A message that the journal
/// cannot retain is removed from `retained`, because it would be gone after a restart.
pub(super) fn write(
    journal: &mut Appender<'_>,
    (batch, offset): (&Batch, usize),
    retained: &mut Option<Message>,
    consumers: &[ConsumerId],
    received: Option<(ConsumerId, u16)>,
) -> Result<Option<Position>, Full> {
    // the gateway repeats its own announcements after every start
    let kept = retained.as_ref().filter(|message| !message.view().is_said_anew());
    match (kept, received) {
        (None, Some((session, packet_id))) if consumers.is_empty() => journal.received(session, packet_id).map(Some),
        (None, None) if consumers.is_empty() => Ok(None),
        (Some(message), _) if message.view().qos() == Qos::AtMostOnce => {
            let written = match consumers {
                [] => Ok(None),
                _ => journal.append(message, consumers, Extra { retained: true, ..Extra::default() }).map(Some),
            };
            // what has no room for its consumers can be retained nevertheless
            if !matches!(written, Ok(Some(_))) && journal.retain_later(message).is_err() {
                *retained = None;
            }
            written
        }
        _ => {
            let shared;
            let message = match kept {
                Some(message) => message,
                None => {
                    shared = batch.message_at(offset);
                    &shared
                }
            };
            let extra = Extra { retained: kept.is_some(), received, handed_over: None };
            journal.append(message, consumers, extra).map(Some)
        }
    }
}

/// Whether the retained store accepts a message.
pub(super) fn retains(stats: &Stats, retained: &Retained, message: MessageRef<'_>) -> bool {
    if !message.retain() {
        return false;
    }
    let fits = retained.fits(message).is_ok();
    if !fits {
        if stats.retained_refused.get() == 0 {
            warn!(
                topic = message.topic(),
                "its publisher has its share of the store of retained messages (broker.max_retained, \
                 broker.max_retained_size): messages on new topics are delivered but not retained"
            );
        }
        stats.retained_refused.add(1);
    }
    fits
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use crate::exchange::ingress::{Ingress, Route};
    use crate::exchange::live;
    use crate::exchange::retained::Retained;
    use crate::journal::{Journal, Limits, WhenFull};
    use crate::message::{BatchBuilder, Draft, Origin, Qos};
    use crate::time::TestClock;

    #[tokio::test]
    async fn a_batch_takes_the_journals_lock_once_or_not_at_all() {
        let starting = std::thread::spawn(|| live::start(Arc::default(), Arc::default()));
        let (link, _dispatcher) = starting.join().unwrap().unwrap();
        let (journal, store) = (Journal::default(), Retained::new(1000, 1 << 20));
        let ingress = Ingress::new(link, Arc::default(), journal.clone(), store, Arc::default(), TestClock::new(0, 0));
        let limits = Limits { messages: 1000, bytes: 1 << 20, when_full: WhenFull::DropOldest };
        let consumers = ["upstream/a", "session/u/ann\0b"].map(|name| journal.register(name, limits));
        let origin = Origin::gateway();
        ingress.add_route(
            "up/#",
            Route::Upstream { consumer: consumers[0], origin: Origin::upstream("a"), is_named: true },
        );
        ingress.add_route("up/+", Route::Session { consumer: consumers[1], qos: Qos::AtLeastOnce, not_from: None });
        for (topic, retain, locks, kept) in [("up/x", false, 1, 50), ("other", true, 2, 50), ("other", false, 2, 50)] {
            let mut batch = BatchBuilder::default();
            for _ in 0..50 {
                let (payload, qos, properties) = (&b"x"[..], Qos::AtLeastOnce, &[][..]);
                batch.push(&Draft { qos, retain, properties, origin, ..Draft::new(topic, payload) });
            }
            let accepted = ingress.publish_batch(&mut batch).await.unwrap();
            assert!(accepted.refused.is_empty());
            assert_eq!(journal.appends(), locks, "{topic} {retain}");
            assert_eq!(consumers.map(|id| journal.backlog(id).messages), [kept, kept]);
        }
    }
}

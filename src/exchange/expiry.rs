//! Deletes retained messages when they expire, whether anybody asks for them or not [MQTT-3.3.2-5].

use std::time::Duration;

use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::ingress::Ingress;
use crate::message::Message;

/// The number of messages that are deleted under one lock, so that nobody waits long for it.
const AT_ONCE: usize = 100;
/// The longest time between two checks while a message is to expire. The boot clock continues to run while the machine
/// sleeps, but timers do not.
const LONGEST: Duration = Duration::from_secs(60);

impl Ingress {
    /// Restores retained messages after a restart, and returns how many there are now.
    pub(crate) fn restore_retained(&self, messages: &[Message]) -> usize {
        let now = self.clock().boot_ms();
        let mut sequencer = self.inner.sequencer.lock();
        for message in messages.iter().filter(|message| message.view().remaining_expiry(now).is_ok()) {
            if sequencer.retained.restore(message).is_err() {
                self.inner.stats.retained_refused.add(1);
            }
        }
        sequencer.retained.len()
    }

    /// The numbers of retained messages and of their bytes.
    pub(crate) fn retained_size(&self) -> (usize, usize) {
        let sequencer = self.inner.sequencer.lock();
        (sequencer.retained.len(), sequencer.retained.bytes())
    }

    /// Deletes retained messages as they expire, until cancelled.
    pub(crate) async fn expire_retained(self, cancel: CancellationToken) {
        loop {
            let pause = self.expire_due();
            let changed = async {
                match pause {
                    Some(pause) => drop(timeout(pause.min(LONGEST), self.inner.expires.notified()).await),
                    None => self.inner.expires.notified().await,
                }
            };
            tokio::select! {
                () = cancel.cancelled() => return,
                () = changed => {}
            }
        }
    }

    /// Deletes some expired messages, and returns the time until the next one expires.
    fn expire_due(&self) -> Option<Duration> {
        let now = self.clock().boot_ms();
        let mut sequencer = self.inner.sequencer.lock();
        let expired = sequencer.retained.expire(now, AT_ONCE);
        if !expired.is_empty() {
            self.inner.journal.expire_retained(expired.iter().map(|topic| &**topic));
        }
        let next = sequencer.retained.next_expiry()?;
        Some(Duration::from_millis(next.saturating_sub(now as i64).max(0) as u64))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::exchange::live;
    use crate::exchange::retained::Retained;
    use crate::journal::Journal;
    use crate::message::{Draft, Origin, Qos};
    use crate::time::TestClock;

    fn draft(topic: &str, expiry: Option<u32>) -> Draft<'_> {
        let (payload, qos, properties, origin) = (&b"x"[..], Qos::AtMostOnce, &[][..], Origin::gateway());
        Draft { qos, retain: true, properties, expiry, origin, ..Draft::new(topic, payload) }
    }

    #[tokio::test(start_paused = true)]
    async fn retained_messages_expire_though_nobody_asks() {
        let starting = std::thread::spawn(|| live::start(Arc::default(), Arc::default()));
        let (link, _dispatcher) = starting.join().unwrap().unwrap();
        let clock = TestClock::new(0, 0);
        let store = Retained::new(1000, 1 << 20);
        let ingress = Ingress::new(link, Arc::default(), Journal::default(), store, Arc::default(), clock.clone());
        ingress.publish(&draft("late", Some(100))).await.unwrap();
        ingress.publish(&draft("stays", None)).await.unwrap();
        let cancel = CancellationToken::new();
        let running = tokio::spawn(ingress.clone().expire_retained(cancel.clone()));
        let pass = async |ms: u64| {
            clock.advance(ms);
            tokio::time::sleep(Duration::from_millis(ms)).await;
            ingress.retained_size().0
        };
        assert_eq!(pass(1000).await, 2);
        // many messages that arrive later and expire earlier
        for number in 0..3 * AT_ONCE {
            ingress.publish(&draft(&format!("soon/{number}"), Some(5))).await.unwrap();
        }
        assert_eq!(pass(3000).await, 3 * AT_ONCE + 2);
        assert_eq!(pass(1010).await, 2);
        assert_eq!(pass(94_000).await, 2);
        assert_eq!(pass(1000).await, 1);
        // while the machine sleeps, the boot clock continues to run and timers do not
        ingress.publish(&draft("asleep", Some(3600))).await.unwrap();
        assert_eq!(pass(10).await, 2);
        clock.advance(3_600_000);
        tokio::time::sleep(LONGEST).await;
        assert_eq!(ingress.retained_size().0, 1);
        cancel.cancel();
        running.await.unwrap();
    }
}

//! Retained messages expire when their time comes, whether anybody asks or not [MQTT-3.3.2-5].

use std::time::Duration;

use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::ingress::Ingress;
use crate::message::Message;

/// Messages that expire under one lock, so that nobody waits long for them.
const AT_ONCE: usize = 100;
/// The boot clock goes on while the machine sleeps, timers do not: it is looked at least this often while something is to
/// expire.
const LONGEST: Duration = Duration::from_secs(60);

impl Ingress {
    /// Puts retained messages back that were kept over a restart; returns how many there are now.
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

    /// Retained messages, and their bytes.
    pub(crate) fn retained_size(&self) -> (usize, usize) {
        let sequencer = self.inner.sequencer.lock();
        (sequencer.retained.len(), sequencer.retained.bytes())
    }

    /// Forgets retained messages as they expire, until cancelled.
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

    /// Forgets some of those whose time has come; says how long it is until the next one's has.
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
        Draft { topic, payload, qos, retain: true, properties, expiry, boot_ms: 0, origin }
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
        // many that come later and are due before
        for number in 0..3 * AT_ONCE {
            ingress.publish(&draft(&format!("soon/{number}"), Some(5))).await.unwrap();
        }
        assert_eq!(pass(3000).await, 3 * AT_ONCE + 2);
        assert_eq!(pass(1010).await, 2);
        assert_eq!(pass(94_000).await, 2);
        assert_eq!(pass(1000).await, 1);
        // the machine sleeps: the boot clock goes on, timers do not
        ingress.publish(&draft("asleep", Some(3600))).await.unwrap();
        assert_eq!(pass(10).await, 2);
        clock.advance(3_600_000);
        tokio::time::sleep(LONGEST).await;
        assert_eq!(ingress.retained_size().0, 1);
        cancel.cancel();
        running.await.unwrap();
    }
}

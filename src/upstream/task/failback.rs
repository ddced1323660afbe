//! Returns to the first address: while another one is in use, the first is checked after the configured time, and used if it
//! answers to MQTT. Until it has, the connection in use is left alone.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use crate::upstream::client::answers;
use crate::upstream::settings::UpstreamSettings;

/// The part by which waits are lengthened at random, so that many gateways do not come back at once.
const JITTER: f64 = 0.25;

/// The wait is not doubled more often than this.
const MOST_DOUBLINGS: u32 = 6;
/// A look that was not answered has cost nobody a connection, so waits are not doubled as often for that.
const MOST_LOOK_DOUBLINGS: u32 = 3;

/// Whether changes to the first address have been in vain. An address may be reachable and refuse connections; then each
/// change costs a connection that works, so the wait for the next one doubles.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct FailbackTries {
    is_trying: bool,
    in_vain: u32,
    /// The number of looks in a row that were not answered.
    unanswered: u32,
}

impl FailbackTries {
    /// Records that the connection was ended for the first address.
    pub(crate) fn begin(&mut self) {
        self.is_trying = true;
    }

    /// Records that this address has accepted a connection.
    pub(crate) fn connected(&mut self, address: usize) {
        if address > 0 {
            let was_in_vain = std::mem::take(&mut self.is_trying);
            self.in_vain = (self.in_vain + u32::from(was_in_vain)).min(MOST_DOUBLINGS);
        }
    }

    /// Records that a connection to this address was good, and has not only been accepted.
    pub(crate) fn was_good(&mut self, address: usize) {
        if address == 0 {
            *self = FailbackTries::default();
        }
    }

    fn lengthened(self, wait: Duration) -> Duration {
        wait.saturating_mul(1 << self.in_vain.max(self.unanswered))
    }

    /// Records how a look at the first address ended.
    fn looked(&mut self, is_answered: bool) {
        self.unanswered = if is_answered { 0 } else { (self.unanswered + 1).min(MOST_LOOK_DOUBLINGS) };
    }
}

/// A check of the first address, now or later.
#[derive(Debug)]
pub(super) enum Failback {
    At(Instant),
    Looking(JoinHandle<bool>),
}

impl Failback {
    /// The check during a connection to this address.
    pub(crate) fn after(settings: &UpstreamSettings, address: usize, tries: FailbackTries) -> Option<Failback> {
        let wait = settings.failback.filter(|_| address > 0)?;
        Some(Failback::At(Instant::now() + jittered(tries.lengthened(wait))))
    }

    /// Waits until the first address answers. Safe to cancel.
    pub(crate) async fn is_due(
        this: &mut Option<Failback>,
        settings: &Arc<UpstreamSettings>,
        tries: &mut FailbackTries,
    ) -> bool {
        let Some(failback) = this else { return pending().await };
        loop {
            match failback {
                Failback::At(at) => {
                    sleep_until(*at).await;
                    let settings = settings.clone();
                    let look = async move {
                        match settings.addresses.first() {
                            Some(address) => answers(&settings, address).await,
                            None => false,
                        }
                    };
                    *failback = Failback::Looking(tokio::spawn(look));
                }
                Failback::Looking(look) => {
                    let is_answered = matches!(look.await, Ok(true));
                    tries.looked(is_answered);
                    if is_answered {
                        return true;
                    }
                    let wait = settings.failback.unwrap_or(Duration::from_secs(3600));
                    // a first address that refuses and is down in between costs no less
                    *failback = Failback::At(Instant::now() + jittered(tries.lengthened(wait)));
                }
            }
        }
    }
}

impl Drop for Failback {
    fn drop(&mut self) {
        if let Failback::Looking(look) = self {
            look.abort();
        }
    }
}

fn jittered(wait: Duration) -> Duration {
    let random = getrandom::u64().unwrap_or(0) as f64 / u64::MAX as f64;
    wait + wait.mul_f64(JITTER * random)
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout_at;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_look_at_an_address_that_is_down_does_not_shorten_the_wait() {
        let (mut tries, minute) = (FailbackTries::default(), Duration::from_secs(60));
        for _ in 0..2 {
            tries.begin();
            tries.connected(1);
        }
        // it has no address, so each look is in vain
        let mut settings = UpstreamSettings::new("u", Vec::new(), "c");
        settings.failback = Some(minute);
        let settings = Arc::new(settings);
        let mut failback = Failback::after(&settings, 1, tries);
        for doublings in [2, 2, 3] {
            let Some(Failback::At(at)) = failback else { panic!("{failback:?}") };
            let looked = timeout_at(at + minute, Failback::is_due(&mut failback, &settings, &mut tries)).await;
            assert!(looked.is_err(), "it does not answer");
            let Some(Failback::At(next)) = failback else { panic!("{failback:?}") };
            assert!(next - at >= (1 << doublings) * minute, "{:?}", next - at);
        }
        tries.looked(true);
        assert_eq!(tries.lengthened(minute), 4 * minute, "what it has cost is not forgotten");
    }

    #[test]
    fn a_first_address_that_refuses_is_tried_ever_more_seldom() {
        let (mut tries, minute) = (FailbackTries::default(), Duration::from_secs(60));
        let mut waits = Vec::new();
        for _ in 0..9 {
            tries.connected(1);
            waits.push(tries.lengthened(minute).as_secs() / 60);
            tries.begin();
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 64, 64, 64]);
        // a connection that ends by itself is no try
        tries.connected(1);
        tries.connected(2);
        assert_eq!(tries.lengthened(minute), 64 * minute);
        // the first one accepts the connection and then ends it
        tries.begin();
        tries.connected(0);
        tries.connected(1);
        assert_eq!(tries.lengthened(minute), 64 * minute);
        tries.connected(0);
        tries.was_good(0);
        assert_eq!(tries.lengthened(minute), minute);
    }
}

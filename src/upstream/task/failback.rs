//! Returns to the first address: while another one is in use, the first is checked after the configured time, and used if it
//! answers.

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

use crate::upstream::client::is_reachable;
use crate::upstream::settings::UpstreamSettings;

/// The part by which waits are lengthened at random, so that many gateways do not come back at once.
const JITTER: f64 = 0.25;

/// A check of the first address, now or later.
#[derive(Debug)]
pub(super) enum Failback {
    At(Instant),
    Looking(JoinHandle<bool>),
}

impl Failback {
    /// The check during a connection to this address.
    pub(crate) fn after(settings: &UpstreamSettings, address: usize) -> Option<Failback> {
        let wait = settings.failback.filter(|_| address > 0)?;
        Some(Failback::At(Instant::now() + jittered(wait)))
    }

    /// Waits until the first address answers. Safe to cancel.
    pub(crate) async fn is_due(this: &mut Option<Failback>, settings: &Arc<UpstreamSettings>) -> bool {
        let Some(failback) = this else { return pending().await };
        loop {
            match failback {
                Failback::At(at) => {
                    sleep_until(*at).await;
                    let settings = settings.clone();
                    let look = async move {
                        match settings.addresses.first() {
                            Some(address) => is_reachable(&settings, address).await,
                            None => false,
                        }
                    };
                    *failback = Failback::Looking(tokio::spawn(look));
                }
                Failback::Looking(look) => {
                    if matches!(look.await, Ok(true)) {
                        return true;
                    }
                    let wait = settings.failback.unwrap_or(Duration::from_secs(3600));
                    *failback = Failback::At(Instant::now() + jittered(wait));
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

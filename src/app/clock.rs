//! Watches whether the system's clock has been set.

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::health::{Fault, Health};
use crate::journal::Journal;
use crate::journal::boots::NOTE_MS;
use crate::time::{SharedClock, beat};

/// The least interval at which a clock that is not set is checked.
const LOOK: Duration = Duration::from_secs(1);
/// The interval at which the journal records the time if nothing else is written.
const NOTE: Duration = Duration::from_millis(NOTE_MS);

/// Reports a problem until a time source has set the clock, and lets the journal record the time even if nothing else
/// happens.
pub(crate) async fn watch(clock: SharedClock, journal: Journal, health: Health, cancel: CancellationToken) {
    let fault = Fault::new(
        "no source of time has set the clock since boot: messages carry no time of day",
        "a network with a time server (systemd-timesyncd or chrony) sets it; it is seen within seconds",
    );
    let (mut noted, mut is_noted) = (Instant::now(), true);
    loop {
        let is_set = clock.is_synchronised();
        if health.set("clock", (!is_set).then_some(&fault)) {
            // within a minute after boot an unset clock is normal, so nobody is warned
            match is_set {
                true => info!("clock: it is set"),
                false => info!("clock: {fault}"),
            }
            is_noted = false;
        }
        if !is_noted || noted.elapsed() >= NOTE {
            journal.observe_clock();
            (noted, is_noted) = (Instant::now(), true);
        }
        let pause = if is_set { NOTE } else { LOOK };
        tokio::select! {
            () = cancel.cancelled() => return,
            () = beat::sleep_at_least(pause) => {}
        }
    }
}

//! Publishes the state of an upstream on retained local topics, so that Node-RED or Home Assistant can show it. `state` is 1
//! or 0 as with mosquitto's `notifications_local_only`, and `status` has details as JSON.

use std::time::Duration;

use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::exchange::ingress::Ingress;
use crate::message::Draft;
use crate::status::{UpstreamShown, UpstreamSnapshot, UpstreamState};
use crate::time::{SharedClock, beat};

/// The interval between updates of the counters, as for `$SYS`. A change of the state is published at once.
const EVERY: Duration = Duration::from_secs(10);

/// Publishes the state until `cancel`.
pub(crate) async fn announce(
    mut shown: UpstreamShown,
    ingress: Ingress,
    clock: SharedClock,
    cancel: CancellationToken,
) {
    let mut said = (String::new(), String::new());
    loop {
        let snapshot = shown.now();
        let key = (snapshot.state, snapshot.last_error.clone());
        let state = if snapshot.state == UpstreamState::Connected { "1" } else { "0" };
        let status = status(&snapshot, clock.boot_ms());
        for (what, text, last) in [("state", state, &mut said.0), ("status", &status, &mut said.1)] {
            if text != last {
                let topic = format!("$SYS/broker/connection/{}/{what}", snapshot.name);
                if publish(&ingress, &clock, &topic, text).await.is_err() {
                    return; // the router reports the reason
                }
                text.clone_into(last);
            }
        }
        let news = async {
            loop {
                shown.changed().await;
                let now = shown.now();
                if (now.state, now.last_error) != key {
                    return;
                }
            }
        };
        // without a connection messages may begin to wait at any moment, and nothing says so
        let is_quiet = snapshot.ledger.pending == 0 && snapshot.state == UpstreamState::Connected;
        tokio::select! {
            () = cancel.cancelled() => {
                let topic = format!("$SYS/broker/connection/{}/state", snapshot.name);
                let _ = publish(&ingress, &clock, &topic, "0").await;
                return;
            }
            () = news => {}
            // ages and rates change while messages wait
            () = beat::sleep_at_most(EVERY), if !is_quiet => {}
            () = beat::sleep_at_most(EVERY * 6), if is_quiet => {}
        }
    }
}

async fn publish(
    ingress: &Ingress,
    clock: &SharedClock,
    topic: &str,
    text: &str,
) -> Result<(), crate::exchange::ingress::IngressError> {
    let draft = Draft { retain: true, boot_ms: clock.boot_ms(), ..Draft::new(topic, text.as_bytes()) };
    ingress.publish(&draft).await.map(drop)
}

fn status(snapshot: &UpstreamSnapshot, now: u64) -> String {
    let oldest = snapshot.oldest_boot_ms.map(|oldest| (now as i64).saturating_sub(oldest as i64).max(0) / 1000);
    json!({
        "state": snapshot.state,
        "address": snapshot.address,
        "version": snapshot.version,
        "waiting": snapshot.ledger.pending,
        "waiting_bytes": snapshot.backlog_bytes,
        "oldest_age_seconds": oldest,
        "seconds_left": snapshot.seconds_left,
        "acked": snapshot.ledger.acked,
        "dropped": snapshot.ledger.dropped.total(),
        "expired": snapshot.ledger.expired,
        "last_error": snapshot.last_error,
    })
    .to_string()
}

//! How an upstream is, as retained local topics, so that Node-RED or Home Assistant can show it: `state` is 1 or 0 as in
//! mosquitto with `notifications_local_only`, and `status` says more, as JSON.

use std::time::Duration;

use serde_json::json;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::exchange::ingress::Ingress;
use crate::message::{Draft, Origin, Qos};
use crate::status::{UpstreamShown, UpstreamSnapshot, UpstreamState};
use crate::time::SharedClock;

/// Figures are brought up to date this often, as those of `$SYS` are; a change of the state is said at once.
const EVERY: Duration = Duration::from_secs(10);

/// Publishes it until `cancel`.
pub async fn announce(mut shown: UpstreamShown, ingress: Ingress, clock: SharedClock, cancel: CancellationToken) {
    let mut said = (String::new(), String::new());
    let mut rate = Drain::default();
    loop {
        let snapshot = shown.now();
        let key = (snapshot.state, snapshot.last_error.clone());
        let state = if snapshot.state == UpstreamState::Connected { "1" } else { "0" };
        let seconds_left = rate.seconds_left(&snapshot, clock.boot_ms());
        let status = status(&snapshot, seconds_left, clock.boot_ms());
        for (what, text, last) in [("state", state, &mut said.0), ("status", &status, &mut said.1)] {
            if text != last {
                let topic = format!("$SYS/broker/connection/{}/{what}", snapshot.name);
                if publish(&ingress, &clock, &topic, text).await.is_err() {
                    return; // the router reports why
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
        let is_quiet = snapshot.ledger.pending == 0;
        tokio::select! {
            () = cancel.cancelled() => {
                let topic = format!("$SYS/broker/connection/{}/state", snapshot.name);
                let _ = publish(&ingress, &clock, &topic, "0").await;
                return;
            }
            () = news => {}
            // ages and rates move while something waits
            () = sleep(EVERY), if !is_quiet => {}
            () = sleep(EVERY * 6), if is_quiet => {}
        }
    }
}

async fn publish(
    ingress: &Ingress,
    clock: &SharedClock,
    topic: &str,
    text: &str,
) -> Result<(), crate::exchange::ingress::IngressError> {
    let draft = Draft {
        topic,
        payload: text.as_bytes(),
        qos: Qos::AtMostOnce,
        retain: true,
        properties: &[],
        expiry: None,
        boot_ms: clock.boot_ms(),
        origin: Origin::gateway(),
    };
    ingress.publish(&draft).await.map(drop)
}

fn status(snapshot: &UpstreamSnapshot, seconds_left: Option<u64>, now: u64) -> String {
    let oldest = snapshot.oldest_boot_ms.map(|oldest| (now as i64).saturating_sub(oldest as i64).max(0) / 1000);
    json!({
        "state": snapshot.state,
        "address": snapshot.address,
        "version": snapshot.version,
        "waiting": snapshot.ledger.pending,
        "waiting_bytes": snapshot.backlog_bytes,
        "oldest_age_seconds": oldest,
        "seconds_left": seconds_left,
        "acked": snapshot.ledger.acked,
        "dropped": snapshot.ledger.dropped.total(),
        "expired": snapshot.ledger.expired,
        "last_error": snapshot.last_error,
    })
    .to_string()
}

/// How fast what waits becomes less.
#[derive(Clone, Copy, Debug, Default)]
struct Drain {
    /// Time and messages that waited when it was looked at last.
    last: Option<(u64, u64)>,
    /// Messages a second by which the backlog has become smaller, smoothed.
    rate: f64,
}

impl Drain {
    /// When nothing will wait any more, if it goes on like this.
    fn seconds_left(&mut self, snapshot: &UpstreamSnapshot, now: u64) -> Option<u64> {
        if snapshot.state != UpstreamState::Connected {
            *self = Drain::default();
            return None;
        }
        let pending = snapshot.ledger.pending;
        let (then, before) = *self.last.get_or_insert((now, pending));
        if now.saturating_sub(then) >= 1_000 {
            let rate = (before as f64 - pending as f64) * 1000.0 / (now - then) as f64;
            self.rate = if self.rate == 0.0 { rate } else { 0.7 * self.rate + 0.3 * rate };
            self.last = Some((now, pending));
        }
        (pending > 0 && self.rate > 0.0).then(|| (pending as f64 / self.rate).ceil() as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_left_follows_the_rate() {
        let mut drain = Drain::default();
        let mut look = |seconds: u64, pending: u64, state| {
            let mut snapshot = UpstreamSnapshot { state, ..UpstreamSnapshot::default() };
            snapshot.ledger.pending = pending;
            drain.seconds_left(&snapshot, seconds * 1000)
        };
        assert_eq!(look(0, 10_000, UpstreamState::Connected), None);
        assert_eq!(look(10, 9_000, UpstreamState::Connected), Some(90));
        assert_eq!(look(20, 8_000, UpstreamState::Connected), Some(80));
        assert_eq!(look(30, 8_000, UpstreamState::Waiting), None);
        assert_eq!(look(40, 8_000, UpstreamState::Connected), None);
        assert_eq!(look(50, 0, UpstreamState::Connected), None);
    }
}

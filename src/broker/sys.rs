//! `$SYS/broker/...`: statistics under the names that mosquitto uses [mosquitto(8)].

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::core::Core;
use crate::access::owner::ConsumerOwner;
use crate::exchange::ingress::IngressError;
use crate::exchange::live::STRAIGHT;
use crate::exchange::stats::Stats;
use crate::journal::{Backlog, ConsumerId};
use crate::message::{BatchBuilder, Draft};
use crate::time::beat;

/// The longest interval between updates, like mosquitto's `sys_interval`.
const INTERVAL: Duration = Duration::from_secs(10);

/// The moving average of the `load` topics: an exponentially damped rate for each minute.
#[derive(Clone, Copy, Debug, Default)]
struct Load {
    averages: [f64; 3],
    last: u64,
}

const SPANS: [(&str, f64); 3] = [("1min", 1.0), ("5min", 5.0), ("15min", 15.0)];

impl Load {
    fn update(&mut self, total: u64, elapsed: Duration) {
        let minutes = elapsed.as_secs_f64() / 60.0;
        if minutes <= 0.0 {
            return;
        }
        let rate = total.saturating_sub(self.last) as f64 / minutes;
        self.last = total;
        for (average, (_, span)) in self.averages.iter_mut().zip(SPANS) {
            let weight = (-minutes / span).exp();
            *average = rate + weight * (*average - rate);
        }
    }
}

type SysReading = fn(&Stats) -> u64;

const LOADS: [(&str, SysReading); 7] = [
    ("messages/received", |stats| stats.packets_received.get()),
    ("messages/sent", |stats| stats.packets_sent.get()),
    ("bytes/received", |stats| stats.bytes_received.get()),
    ("bytes/sent", |stats| stats.bytes_sent.get()),
    ("publish/received", |stats| stats.publish_received.get()),
    ("publish/sent", |stats| stats.publish_sent.get()),
    ("publish/dropped", |stats| stats.publish_dropped.get()),
];

const TOTALS: [(&str, SysReading); 9] = [
    ("messages/received", |stats| stats.packets_received.get()),
    ("messages/sent", |stats| stats.packets_sent.get()),
    ("bytes/received", |stats| stats.bytes_received.get()),
    ("bytes/sent", |stats| stats.bytes_sent.get()),
    ("publish/messages/received", |stats| stats.publish_received.get()),
    ("publish/messages/sent", |stats| stats.publish_sent.get()),
    ("publish/bytes/received", |stats| stats.publish_bytes_received.get()),
    ("publish/bytes/sent", |stats| stats.publish_bytes_sent.get()),
    ("clients/maximum", |stats| stats.connected_maximum.get()),
];

/// The values as they were last published.
pub(crate) struct Figures {
    core: Arc<Core>,
    started: Instant,
    last: Instant,
    loads: [Load; LOADS.len()],
    published: HashMap<String, String>,
}

impl Figures {
    /// Publishes all values for the first time, so that clients that connect later find them.
    pub(crate) async fn start(core: Arc<Core>) -> Figures {
        let now = Instant::now();
        let loads = [Load::default(); LOADS.len()];
        let mut figures = Figures { core, started: now, last: now, loads, published: HashMap::new() };
        // if the router fails, the task that feeds it reports that
        let _ = figures.publish().await;
        figures
    }

    /// Publishes changed values at the interval until the gateway shuts down.
    pub(crate) async fn run(mut self) {
        loop {
            tokio::select! {
                () = self.core.cancel.cancelled() => return,
                () = beat::sleep_at_most(INTERVAL) => {}
            }
            self.core.access.sum_up();
            if self.publish().await.is_err() {
                return; // the dispatcher reports the reason
            }
        }
    }

    async fn publish(&mut self) -> Result<(), IngressError> {
        let now = Instant::now();
        for (load, (_, reading)) in self.loads.iter_mut().zip(LOADS) {
            load.update(reading(&self.core.stats), now - self.last);
        }
        self.last = now;
        let mut batch = BatchBuilder::default();
        for (name, value) in figures(&self.core, now - self.started, &self.loads) {
            if self.published.get(&name) != Some(&value) {
                push(&mut batch, &self.core, &name, &value);
                self.published.insert(name, value);
                // published in pieces that wake no other thread if nothing else waits
                if batch.len() == STRAIGHT {
                    self.core.ingress.publish_batch(&mut batch).await?;
                }
            }
        }
        if !batch.is_empty() {
            self.core.ingress.publish_batch(&mut batch).await?;
        }
        Ok(())
    }
}

fn push(batch: &mut BatchBuilder, core: &Core, name: &str, value: &str) {
    batch.push(&Draft {
        retain: true,
        boot_ms: core.ingress.clock().boot_ms(),
        ..Draft::new(&format!("$SYS/broker/{name}"), value.as_bytes())
    });
}

fn figures(core: &Core, uptime: Duration, loads: &[Load]) -> Vec<(String, String)> {
    let (connected, away) = core.registry.counts();
    let (retained, retained_bytes) = core.ingress.retained_size();
    let mut figures: Vec<(String, String)> = [
        ("version", concat!("pigateway version ", env!("CARGO_PKG_VERSION")).to_owned()),
        ("uptime", format!("{} seconds", uptime.as_secs())),
        ("clients/total", (connected + away).to_string()),
        ("clients/connected", connected.to_string()),
        ("clients/active", connected.to_string()),
        ("clients/disconnected", away.to_string()),
        ("clients/inactive", away.to_string()),
        ("clients/expired", core.stats.sessions_expired.get().to_string()),
        ("retained messages/count", retained.to_string()),
        ("messages/stored", retained.to_string()),
        ("store/messages/count", retained.to_string()),
        ("store/messages/bytes", retained_bytes.to_string()),
        ("subscriptions/count", core.ingress.subscribers().len().to_string()),
        ("shared_subscriptions/count", core.group_count().to_string()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .into();
    let journal = core.ingress.journal();
    let dropped = core.stats.publish_dropped.get() + journal.status().dropped;
    figures.push(("publish/messages/dropped".into(), dropped.to_string()));
    figures.extend(upstreams(&journal.consumers()));
    figures.extend(TOTALS.map(|(name, reading)| (name.to_owned(), reading(&core.stats).to_string())));
    for (load, (name, _)) in loads.iter().zip(LOADS) {
        for (average, (span, _)) in load.averages.iter().zip(SPANS) {
            figures.push((format!("load/{name}/{span}"), format!("{average:.2}")));
        }
    }
    figures
}

/// For each upstream, the waiting messages and those dropped by limits, in addition to mosquitto's `connection/NAME/state`.
fn upstreams(consumers: &[(Box<str>, ConsumerId, Backlog)]) -> Vec<(String, String)> {
    let mut sums: BTreeMap<&str, (usize, u64)> = BTreeMap::new();
    for (name, _, backlog) in consumers {
        if let ConsumerOwner::Upstream(name) = ConsumerOwner::of(name) {
            let sum = sums.entry(name).or_default();
            *sum = (sum.0 + backlog.messages, sum.1 + backlog.dropped);
        }
    }
    let figures = sums.into_iter().flat_map(|(name, (waiting, dropped))| {
        let topic = |what: &str| format!("connection/{name}/messages/{what}");
        [(topic("waiting"), waiting.to_string()), (topic("dropped"), dropped.to_string())]
    });
    figures.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn load_approaches_the_rate_per_minute() {
        let mut load = Load::default();
        for step in 1..=60 {
            load.update(step * 100, Duration::from_secs(10));
        }
        assert!((load.averages[0] - 600.0).abs() < 1.0, "{load:?}");
        assert!(load.averages[2] > 250.0 && load.averages[2] < 600.0, "{load:?}");
    }
}

//! Connecting: addresses and versions in turn, and what is said about it.

use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info};

use super::Upstream;
use crate::health::Pulse;
use crate::upstream::settings::{Protocol, UpstreamSettings};
use crate::upstream::tls;
use crate::upstream::wire::{Broken, Link, UpstreamClient, Version};

/// After 3.1.1 was the answer, version 5 is not tried again for this long.
const V4_REMEMBERED: Duration = Duration::from_secs(3600);
/// Different reasons for failing to connect that are logged.
const REASONS: usize = 8;

impl<C: UpstreamClient> Upstream<C> {
    /// Tries the addresses in turn until one accepts; `None`: cancelled.
    pub(super) async fn connect(&mut self, pulse: &mut Pulse, cancel: &CancellationToken) -> Option<Link> {
        let mut failed_in_turn = 0;
        loop {
            let settings = self.current.clone();
            self.session.set_settings(&settings);
            self.address %= settings.addresses.len().max(1);
            let address = settings.addresses.get(self.address)?;
            self.shown.address = address.to_string();
            self.show();
            let remembered = self.v4_until.is_some_and(|(at, until)| at == self.address && Instant::now() < until);
            let versions: &[Version] = match settings.protocol {
                Protocol::V4 => &[Version::V311],
                Protocol::V5 => &[Version::V5],
                Protocol::Auto if settings.v5_only => &[Version::V5],
                Protocol::Auto if remembered => &[Version::V311],
                Protocol::Auto => &[Version::V5, Version::V311],
            };
            let attempt = try_versions(&mut self.client, &settings, self.address, versions);
            let result = tokio::select! {
                () = cancel.cancelled() => return None,
                result = pulse.during(attempt) => result,
            };
            match result {
                Ok(link) => {
                    if versions.len() > 1 && link.version == Version::V311 {
                        self.v4_until = Some((self.address, Instant::now() + V4_REMEMBERED));
                    }
                    return Some(link);
                }
                Err(why) => {
                    let hint = tls::hint(address.scheme, &why);
                    let why = hint.map_or(why.clone(), |hint| Broken::Failed(format!("{why}; {hint}")));
                    self.address += 1;
                    failed_in_turn += 1;
                    let is_last = failed_in_turn >= settings.addresses.len();
                    let pause = is_last.then(|| self.backoff.next(getrandom::u64().unwrap_or(0)));
                    self.failed(&why, pause.unwrap_or_default());
                    if let Some(pause) = pause {
                        failed_in_turn = 0;
                        if pulse.during(self.pause(pause, cancel)).await {
                            return None;
                        }
                    }
                }
            }
        }
    }

    /// An attempt to connect failed: a new reason is logged, then every doubling of the count.
    fn failed(&mut self, why: &Broken, pause: Duration) {
        self.shown.failed_attempts += 1;
        let attempts = self.shown.failed_attempts;
        let text = format!("{}: {why}", self.shown.address);
        let is_new = !self.reasons.contains(&text);
        if is_new && self.reasons.len() < REASONS {
            self.reasons.push(text);
        }
        let (upstream, address) = (&self.name, &self.shown.address);
        let waiting = self.consumers.backlog().messages;
        let next_attempt = format!("in {:.1} s", pause.as_secs_f32());
        match why {
            // nothing but a person mends that
            Broken::Refused(_) if is_new && self.reasons.len() < REASONS => {
                error!(upstream, address, waiting, next_attempt, "waiting for upstream: {why}")
            }
            _ if (is_new && self.reasons.len() < REASONS) || attempts.is_power_of_two() => {
                info!(upstream, address, attempts, waiting, next_attempt, "waiting for upstream: {why}");
            }
            _ => debug!(upstream, address, attempts, next_attempt, "still waiting for upstream: {why}"),
        }
        self.shown.last_error = Some(why.to_string());
        self.show();
    }
}

/// Tries one version after the other where the first seems not to be understood.
async fn try_versions<C: UpstreamClient>(
    client: &mut C,
    settings: &UpstreamSettings,
    address: usize,
    versions: &[Version],
) -> Result<Link, Broken> {
    let mut result = Err(Broken::Version);
    for version in versions {
        result = client.connect(settings, &settings.addresses[address], *version).await;
        // a broker that does not know version 5 says so in the words of 3.1.1, or just closes
        if !matches!(result, Err(Broken::Version | Broken::Closed)) {
            break;
        }
    }
    result
}

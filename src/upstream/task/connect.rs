//! Connects: tries addresses and versions in turn, and logs the results.

use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use super::Upstream;
use crate::health::Pulse;
use crate::upstream::approach::NextAttempt;
use crate::upstream::tls;
use crate::upstream::wire::{Broken, Link, StatusWill, UpstreamClient};

/// The number of different failures to connect that are logged.
const REASONS: usize = 8;

impl<C: UpstreamClient> Upstream<C> {
    /// Tries the addresses in turn until one accepts; `None` if cancelled.
    pub(super) async fn connect(&mut self, pulse: &mut Pulse, cancel: &CancellationToken) -> Option<Link> {
        let (mut failed_in_turn, mut sent_away) = (0, 0);
        loop {
            let settings = self.current.clone();
            self.session.set_settings(&settings);
            self.backoff.set_retry(settings.retry);
            self.address %= settings.addresses.len().max(1);
            let address = settings.addresses.get(self.address)?;
            self.shown.address = address.to_string();
            self.show();
            let no_retain = self.session.is_retain_refused();
            let mut offer = self.approach.offer(&settings, self.address, no_retain, self.clock.boot_ms());
            offer.has_small_segments = self.session.has_small_segments(self.clock.boot_ms());
            let has_steps = self.has_steps();
            self.mark.wants(&settings, address, has_steps);
            let attempt = self.client.connect(&settings, address, offer, &mut self.mark);
            let result = tokio::select! {
                () = cancel.cancelled() => return None,
                result = pulse.during(attempt) => result,
            };
            // an upstream that refuses has not made a session
            self.mark.asked(!matches!(result, Err(Broken::Silent)));
            let why = match result {
                Ok(link) => {
                    let now = self.clock.boot_ms();
                    if self.approach.accepted(&settings, self.address, offer, now) {
                        self.will_refused(offer.will);
                    }
                    return Some(link);
                }
                Err(why) => why,
            };
            let hint = tls::hint(address.scheme, &why, self.approach.worked(self.address));
            let next = self.approach.failed(&settings, self.address, offer, &why);
            let shown = match hint {
                Some(hint) => format!("{why}; {hint}"),
                None => why.to_string(),
            };
            if next == NextAttempt::AnotherWay {
                debug!(upstream = self.name, ?offer, "tried another way: {shown}");
                continue;
            }
            self.address += 1;
            failed_in_turn += 1;
            sent_away += usize::from(matches!(why, Broken::SentAway(_)));
            let random = getrandom::u64().unwrap_or(0);
            let pause = match settings.addresses.len() {
                all if failed_in_turn < all => None,
                all if sent_away >= all => Some(self.backoff.next_long(random)),
                _ => Some(self.backoff.next(random)),
            };
            self.failed(&why, &shown, pause.unwrap_or_default());
            if let Some(pause) = pause {
                (failed_in_turn, sent_away) = (0, 0);
                if pulse.during(self.pause(pause, cancel)).await {
                    return None;
                }
            }
        }
    }

    fn will_refused(&self, will: StatusWill) {
        let (upstream, topic) = (&self.name, self.current.status_topic.as_ref().map(|topic| topic.as_str()));
        let how = match will {
            StatusWill::WithoutRetain => "with the retain flag: it goes without",
            StatusWill::AtMostOnce => "at QoS 1: it goes at QoS 0",
            StatusWill::Whole | StatusWill::None => {
                "at all: there is none, and status_topic may stay \"online\" when the gateway is cut off"
            }
        };
        warn!(upstream, topic, "the upstream does not take the will {how}");
    }

    /// Logs a failed attempt: a new reason at once, and a known one whenever the count has doubled.
    fn failed(&mut self, why: &Broken, shown: &str, pause: Duration) {
        self.shown.failed_attempts += 1;
        let attempts = self.shown.failed_attempts;
        let text = format!("{}: {shown}", self.shown.address);
        let is_new = !self.reasons.contains(&text);
        if is_new && self.reasons.len() < REASONS {
            self.reasons.push(text);
        }
        let (upstream, address) = (&self.name, &self.shown.address);
        let waiting = self.consumers.backlog().messages;
        let next_attempt = format!("in {:.1} s", pause.as_secs_f32());
        match why {
            // only a person can repair this
            Broken::Unprepared(_) | Broken::Refused(..) | Broken::SentAway(_)
                if is_new && self.reasons.len() < REASONS =>
            {
                error!(upstream, address, waiting, next_attempt, "waiting for upstream: {shown}")
            }
            _ if (is_new && self.reasons.len() < REASONS) || attempts.is_power_of_two() => {
                info!(upstream, address, attempts, waiting, next_attempt, "waiting for upstream: {shown}");
            }
            _ => debug!(upstream, address, attempts, next_attempt, "still waiting for upstream: {shown}"),
        }
        self.is_down(why, shown);
        self.shown.last_error = Some(shown.to_owned());
        self.show();
    }
}

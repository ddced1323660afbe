//! Connects: tries addresses and versions in turn, and logs the results.

use std::pin::pin;
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tracing::{debug, error, info, warn};

use super::Upstream;
use super::failback::Failback;
use super::settle::{direct, without_rules};
use super::troubles::{FailedAttempt, Loudness};
use crate::health::Pulse;
use crate::status::UpstreamState;
use crate::upstream::approach::NextAttempt;
use crate::upstream::retained::losses;
use crate::upstream::session::{FILTERS, SessionAction};
use crate::upstream::settings::{UpstreamAddress, UpstreamSettings};
use crate::upstream::tls;
use crate::upstream::wire::{Broken, ConnectOffer, Link, StatusWill, UpstreamClient};

/// An address whose connection lasted for this long was not the reason for its end.
const GOOD: Duration = Duration::from_secs(30);

/// The number of connections in a row that an address may accept and soon end before the next one is tried.
const SOON_ENDED: u32 = 3;

/// How an attempt ended.
enum AttemptEnd {
    Done(Result<Link, Broken>),
    /// The settings with which it was made have changed.
    Outdated,
    Cancelled,
}

impl<C: UpstreamClient> Upstream<C> {
    /// Begins a new connection, and returns whether it stays open.
    pub(super) fn begin(&mut self, link: Link) -> bool {
        let link = self.session.taken(link);
        let (upstream, address, version) = (&self.name, &self.shown.address, link.version);
        let (resumed, waiting) = (link.session_present, self.consumers.backlog().messages);
        let is_news = self.backoff.is_news();
        if is_news {
            info!(upstream, address, ?version, resumed, waiting, "connected");
        }
        self.session.set_quiet(!is_news);
        self.set_carried(link.gateway);
        let now = self.clock.boot_ms();
        self.passes.connected(self.address, link.session_present, losses(&self.consumers.backlog()), now);
        self.mirror.connected(link.session_present, self.passes.is_due(), now);
        self.lanes.connected(self.consumers.waiting());
        self.set_filters();
        self.shown.failed_attempts = 0;
        self.troubles.connected();
        self.is_well();
        self.failback_tries.connected(self.address);
        self.failback = Failback::after(&self.current, self.address, self.failback_tries);
        self.set_state(UpstreamState::Connected, Some(link.version));
        self.inbox.connected(self.current.clean_session, now);
        self.begin_exact(&link);
        self.look_at_shelf();
        if self.wants_denied {
            self.look_at_denied();
        }
        if let Some(address) = self.current.addresses.get(self.address) {
            self.asked.connected(&self.current, address, link.session_present);
        }
        let actions = self.session.connected(link, now);
        self.look_at_large();
        if self.session.reads_mirrored() && self.session.misses_mirrored() {
            self.passes.demand();
        }
        let excess = self.asked.in_excess(&self.session.subscriptions());
        let excess = excess.chunks(FILTERS).map(|part| SessionAction::Unsubscribe(part.to_vec()));
        let alive = self.perform(actions);
        self.perform(excess.collect()) && alive
    }

    /// Tries the addresses in turn until one accepts; `None` if cancelled.
    pub(super) async fn connect(&mut self, pulse: &mut Pulse, cancel: &CancellationToken) -> Option<Link> {
        // the addresses that have failed since the last pause
        let mut failed = Vec::new();
        loop {
            if self.settings.has_changed().unwrap_or(false) {
                self.apply_settings();
                failed.clear();
            }
            let settings = self.current.clone();
            self.session.set_settings(&settings);
            self.backoff.set_retry(settings.retry);
            if let Some(pause) = self.pause_of_all(&settings) {
                if pulse.during(self.pause(pause, cancel)).await {
                    return None;
                }
                continue;
            }
            let at = self.next_address(&settings, &failed)?;
            self.address = at;
            self.session.at_address(at);
            let address = settings.addresses.get(at)?;
            self.shown.address = address.to_string();
            self.show();
            let offer = self.next_offer(&settings, address);
            let end = self.attempt(&settings, address, offer, pulse, cancel).await;
            // an upstream that refuses has not made a session
            self.mark.asked(matches!(&end, AttemptEnd::Done(result) if *result != Err(Broken::Silent)));
            let result = match end {
                AttemptEnd::Cancelled => return None,
                AttemptEnd::Outdated => continue,
                AttemptEnd::Done(result) => result,
            };
            let why = match result {
                Ok(link) => {
                    if self.approach.accepted(&settings, at, offer, self.clock.boot_ms()) {
                        self.will_refused(offer.will);
                        self.backoff.made_progress();
                    }
                    return Some(link);
                }
                Err(why) => why,
            };
            let hint = tls::hint(address.scheme, &why, self.approach.past(self.address));
            let next = self.approach.failed(&settings, self.address, offer, &why, self.clock.boot_ms());
            let shown = match hint {
                Some(hint) => format!("{why}; {hint}"),
                None => why.to_string(),
            };
            if next == NextAttempt::AnotherWay {
                debug!(upstream = self.name, ?offer, "tried another way: {shown}");
                continue;
            }
            failed.push(at);
            if let Some(pause) = self.after_failure(&settings, &failed, &why, &shown) {
                failed.clear();
                if pulse.during(self.pause(pause, cancel)).await {
                    return None;
                }
            }
        }
    }

    /// Handles a failed attempt at the present address. Returns the pause before the next one, or `None` if another
    /// address is tried at once.
    fn after_failure(
        &mut self,
        settings: &UpstreamSettings,
        failed: &[usize],
        why: &Broken,
        shown: &str,
    ) -> Option<Duration> {
        let (at, random) = (self.address, getrandom::u64().unwrap_or(0));
        if matches!(why, Broken::SentAway(_)) {
            let pause = self.backoff.long(self.approach.sent_away(at), random);
            self.approach.leave_alone(at, self.clock.boot_ms() + pause.as_millis() as u64);
        }
        let next = self.next_address(settings, failed);
        let pause = match next {
            Some(_) => None,
            None => Some(self.pause_of_all(settings).unwrap_or_else(|| self.backoff.next(random))),
        };
        self.failed(why, shown, pause.unwrap_or_default());
        self.address = next.unwrap_or(at + 1);
        pause
    }

    /// Goes on to the next address if the present one has accepted several connections in a row and soon ended them without
    /// having taken anything, or says that it is not the right one. The next time, its name leads to another peer. Returns whether
    /// there is an address, or a peer, that has not done so since the last connection that was good.
    pub(super) fn pass_on(&mut self, why: &Broken, lasted: Duration) -> bool {
        let was_good = self.session.has_received() || lasted >= GOOD;
        if !why.is_elsewhere() && was_good {
            (self.passed_on, self.soon_ended) = (0, 0);
            self.failback_tries.was_good(self.address);
            self.client.peer_was_good();
            return false;
        }
        if why.is_limit() && self.session.is_cause_clear(self.clock.boot_ms()) {
            // the next connection is sent less
            return false;
        }
        self.soon_ended += 1;
        // it may keep a session, and be starting
        if !why.is_elsewhere() && self.soon_ended < SOON_ENDED {
            return false;
        }
        self.soon_ended = 0;
        let has_peers = self.client.leave_peer();
        let all = self.current.addresses.len();
        self.address = (self.address + 1) % all.max(1);
        self.passed_on += 1;
        let has_others = has_peers || self.passed_on < all;
        if !has_others {
            self.passed_on = 0;
        }
        has_others
    }

    /// The form of the next CONNECT to the present address.
    fn next_offer(&mut self, settings: &UpstreamSettings, address: &UpstreamAddress) -> ConnectOffer {
        let now = self.clock.boot_ms();
        self.session.end_refusals(now);
        let no_retain = self.session.is_retain_refused();
        let mut offer = self.approach.offer(settings, self.address, no_retain, now);
        offer.has_small_segments = self.session.has_small_segments(now);
        let has_steps = self.has_steps();
        self.mark.wants(settings, address, has_steps);
        offer
    }

    /// Makes one attempt. New rules are in force for new messages at once, however long it takes; other new settings end it.
    async fn attempt(
        &mut self,
        settings: &UpstreamSettings,
        address: &UpstreamAddress,
        offer: ConnectOffer,
        pulse: &mut Pulse,
        cancel: &CancellationToken,
    ) -> AttemptEnd {
        let mut attempt = pin!(self.client.connect(settings, address, offer, &mut self.mark));
        let (mut may_change, mut has_changed) = (true, false);
        let end = loop {
            tokio::select! {
                () = cancel.cancelled() => break AttemptEnd::Cancelled,
                result = pulse.during(&mut attempt) => break AttemptEnd::Done(result),
                changed = self.settings.changed(), if may_change => {
                    (may_change, has_changed) = (changed.is_ok(), has_changed || changed.is_ok());
                    if without_rules(&self.settings.borrow()) != without_rules(settings) {
                        break AttemptEnd::Outdated;
                    }
                    direct(&self.door, &self.consumers, self.lanes.append(), &self.settings.borrow());
                }
            }
        };
        if has_changed {
            // all the rest follows when the attempt has ended
            self.settings.mark_changed();
        }
        end
    }

    /// The next address that has not failed since the last pause and is not left alone.
    fn next_address(&self, settings: &UpstreamSettings, failed: &[usize]) -> Option<usize> {
        let (all, now) = (settings.addresses.len(), self.clock.boot_ms());
        let mut addresses = (0..all).map(|step| (self.address + step) % all);
        addresses.find(|at| !failed.contains(at) && self.approach.left_alone_until(*at) <= now)
    }

    /// The pause until an address may be tried, if all of them have asked to be left alone.
    fn pause_of_all(&self, settings: &UpstreamSettings) -> Option<Duration> {
        let now = self.clock.boot_ms();
        let waits = (0..settings.addresses.len()).map(|at| self.approach.left_alone_until(at).saturating_sub(now));
        waits.min().filter(|wait| *wait > 0).map(Duration::from_millis)
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
        let again = match self.approach.asks_again_at(self.address) {
            Some(_) => "; as it has not said so, it is asked again after a minute, and then ever more rarely",
            None => "",
        };
        warn!(upstream, topic, "the upstream does not take the will {how}{again}");
    }

    /// Logs a failed attempt, as [`super::troubles`] decides.
    fn failed(&mut self, why: &Broken, shown: &str, pause: Duration) {
        self.shown.failed_attempts += 1;
        let attempts = self.shown.failed_attempts;
        let (upstream, address) = (&self.name, &self.shown.address);
        let loudness = self.troubles.failed(FailedAttempt {
            address,
            why,
            past: self.approach.past(self.address),
            is_clock_set: self.clock.is_synchronised(),
            attempts,
            now: self.clock.boot_ms(),
        });
        let waiting = self.consumers.backlog().messages;
        let next_attempt = format!("in {:.1} s", pause.as_secs_f32());
        match loudness {
            Loudness::Error => {
                error!(upstream, address, attempts, waiting, next_attempt, "waiting for upstream: {shown}")
            }
            Loudness::Warning => {
                warn!(upstream, address, attempts, waiting, next_attempt, "waiting for upstream: {shown}")
            }
            Loudness::Info => {
                info!(upstream, address, attempts, waiting, next_attempt, "waiting for upstream: {shown}")
            }
            Loudness::Debug => {
                debug!(upstream, address, attempts, next_attempt, "still waiting for upstream: {shown}")
            }
        }
        self.is_down(why, shown);
        self.shown.last_error = Some(shown.to_owned());
        self.show();
    }
}

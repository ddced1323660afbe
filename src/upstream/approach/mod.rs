//! Chooses for each address of an upstream the MQTT version and the will to connect with. A pure state machine.
//!
//! **Version.** Version 5 is tried first. The next attempt uses 3.1.1 if the upstream answers that it does not know version
//! 5, if it does not answer, if its answer is not MQTT 5, or if it closes the connection twice in a row before it has
//! answered. If 3.1.1 works, version 5 is not tried again for an hour, or for a minute if the upstream
//! may only have been starting. If version 5 has worked before, one such connection
//! proves nothing: then it takes [`ODD_ENDS`] in a row, because another server may have come to that address.
//!
//! **Will.** An upstream may refuse or close the connection because of the will, or never answer: its retain flag, its QoS
//! or its topic. If that may be the reason, the next attempt leaves out the flag, and then the whole will. What works
//! is kept for an hour if the answer was clear, and otherwise for a minute, because the upstream may have been starting. If the
//! will has worked before at this address, an end without a clear answer counts only after [`PROVEN_MS`] of such ends: a
//! balancer before an upstream that is down accepts connections and closes them, and that says nothing about the will.
//!
//! **Asking again.** What was given up without a clear answer is asked for again when its time is over, by a new connection if
//! the present one lasts, because connections last for months. If that is in vain, what had worked is used at once, and the
//! pauses grow up to [`LONGEST_ASK_MS`]. Of versions that holds only if version 5 has worked before.
//!
//! **Pause.** An address that asks to be left alone is not tried for a minute at least, also if another one is.

use crate::mqtt::Version;

use super::settings::{Protocol, UpstreamSettings};
use super::wire::{Broken, ConnectOffer, StatusWill};

/// How long the results of attempts are kept, in milliseconds.
const REMEMBERED_MS: u64 = 3_600_000;
/// The same if the reason may have been that the upstream was starting or ending.
const DOUBTFUL_MS: u64 = 60_000;
/// For how long connections must end without a clear answer before a will that has worked before is left out, in milliseconds.
const PROVEN_MS: u64 = 300_000;
/// The factor by which the pause grows when something was asked for again in vain, and the longest pause, in milliseconds.
const ASK_FACTOR: u64 = 8;
const LONGEST_ASK_MS: u64 = 86_400_000;
/// The number of connections in a row without an answer of version 5 before an upstream for which it has worked is tried
/// with 3.1.1.
pub(crate) const ODD_ENDS: u32 = 5;
/// The same number for an upstream for which no version has worked yet.
const ENDS: u32 = 2;
/// One in this many attempts leaves out the will if it may be the reason.
const WILL_EVERY: u32 = 3;

/// CONNACK reason codes: retain not supported, QoS not supported, topic name invalid, not authorized.
const RETAIN_NOT_SUPPORTED: u8 = 0x9a;
const QOS_NOT_SUPPORTED: u8 = 0x9b;
const TOPIC_NAME_INVALID: u8 = 0x90;
const NOT_AUTHORIZED: u8 = 0x87;

/// What is known about one address.
#[derive(Clone, Copy, Debug, Default)]
struct KnownAddress {
    spoke_v5: bool,
    /// Version 3.1.1 is used until this time, in milliseconds of the boot clock.
    v311_until: Option<u64>,
    /// The number of connections with version 5 in a row that got no answer of that version.
    ends: u32,
    /// Whether the next attempt, and only that one, uses 3.1.1.
    try_v311: bool,
    past: Past,
    will: StatusWill,
    will_until: u64,
    /// The number of refusals in a row for which the will may be the reason.
    doubts: u32,
    /// A will for one attempt.
    trial: Option<StatusWill>,
    /// Whether the last such doubt came from an answer that an upstream may also give while it is starting.
    is_doubtful: bool,
    /// The same for the version.
    is_version_doubtful: bool,
    /// The will with which it has accepted a connection, unless it was refused since.
    proven: Option<StatusWill>,
    /// When the first of `doubts` was, in milliseconds of the boot clock.
    doubts_since: u64,
    /// Whether version 5 has ever worked.
    has_spoken_v5: bool,
    will_again: AskAgain,
    /// What has worked instead of the will that is asked for again.
    lesser_will: StatusWill,
    version_again: AskAgain,
    /// The number of times in a row that the address asked to be left alone, and the time until which it is, in milliseconds
    /// of the boot clock.
    sent_away: u32,
    away_until: u64,
}

/// Something that was given up without a clear answer and is asked for again.
#[derive(Clone, Copy, Debug, Default)]
struct AskAgain {
    /// When, in milliseconds of the boot clock; `None` if nothing is given up so.
    at: Option<u64>,
    /// The last pause.
    pause: u64,
    /// Whether it was asked for again in vain, and what had worked is tried.
    is_vain: bool,
}

impl AskAgain {
    /// Records that a connection was made without it. Returns until when it is left out.
    fn given_up(&mut self, now: u64) -> u64 {
        if self.pause == 0 {
            self.pause = DOUBTFUL_MS;
        } else if std::mem::take(&mut self.is_vain) {
            self.pause = (self.pause * ASK_FACTOR).min(LONGEST_ASK_MS);
        }
        let at = now + self.pause;
        self.at = Some(at);
        at
    }
}

/// What has worked at an address before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Past {
    /// It has answered to MQTT, so that all steps before it work: the proxy, TLS and WebSocket.
    pub(crate) has_begun: bool,
    /// It has accepted a connection.
    pub(crate) has_worked: bool,
}

/// What is known about all addresses.
#[derive(Clone, Debug, Default)]
pub(crate) struct Approach {
    known: Vec<KnownAddress>,
}

/// The consequence of a failed attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NextAttempt {
    /// Try the same address again at once with other parameters.
    AnotherWay,
    /// Try the next address.
    NextAddress,
}

impl Approach {
    fn at(&mut self, address: usize) -> &mut KnownAddress {
        if self.known.len() <= address {
            self.known.resize(address + 1, KnownAddress::default());
        }
        &mut self.known[address]
    }

    /// Forgets everything, because the settings have changed.
    pub(crate) fn forget(&mut self) {
        self.known.clear();
    }

    /// Offers the whole will again, because of a reload.
    pub(crate) fn forgive_wills(&mut self) {
        self.known.iter_mut().for_each(|known| (known.will_until, known.trial) = (0, None));
    }

    /// Records that this address asks to be left alone, and returns how many times in a row it has.
    pub(crate) fn sent_away(&mut self, address: usize) -> u32 {
        let known = self.at(address);
        known.sent_away += 1;
        known.sent_away
    }

    /// Leaves an address alone until this time.
    pub(crate) fn leave_alone(&mut self, address: usize, until: u64) {
        self.at(address).away_until = until;
    }

    /// The time until which an address is left alone; the others are tried meanwhile.
    pub(crate) fn left_alone_until(&self, address: usize) -> u64 {
        self.known.get(address).map_or(0, |known| known.away_until)
    }

    /// What has worked at this address before.
    pub(crate) fn past(&self, address: usize) -> Past {
        self.known.get(address).map(|known| known.past).unwrap_or_default()
    }

    /// When something that this address may take after all is to be asked for again, by a new connection.
    pub(crate) fn asks_again_at(&self, address: usize) -> Option<u64> {
        let known = self.known.get(address)?;
        // not before the next attempt would be another one
        let will = known.will_again.at.map(|at| at.max(known.will_until));
        let version = known.version_again.at.map(|at| at.max(known.v311_until.unwrap_or_default()));
        will.into_iter().chain(version).min()
    }

    /// The parameters for the next attempt at this address.
    pub(crate) fn offer(
        &mut self,
        settings: &UpstreamSettings,
        address: usize,
        retain_refused: bool,
        now: u64,
    ) -> ConnectOffer {
        let known = self.at(address);
        let may_fall_back = settings.protocol == Protocol::Auto && !settings.v5_only;
        let is_old = known.try_v311 || known.v311_until.is_some_and(|until| now < until);
        let version = match settings.protocol {
            Protocol::V4 => Version::V311,
            Protocol::Auto if may_fall_back && is_old => Version::V311,
            Protocol::V5 | Protocol::Auto => Version::V5,
        };
        if now >= known.will_until {
            known.will = StatusWill::Whole;
        }
        let will = match known.trial.unwrap_or(known.will) {
            _ if settings.status_topic.is_none() => StatusWill::None,
            StatusWill::Whole if retain_refused => StatusWill::WithoutRetain,
            will => will,
        };
        let is_trial = may_fall_back && version == Version::V5 && !known.spoke_v5;
        ConnectOffer { version, will, is_trial, has_small_segments: false }
    }

    /// Records that an attempt was accepted, and returns whether the will was the reason for earlier refusals.
    pub(crate) fn accepted(
        &mut self,
        settings: &UpstreamSettings,
        address: usize,
        offer: ConnectOffer,
        now: u64,
    ) -> bool {
        let known = self.at(address);
        known.past = Past { has_begun: true, has_worked: true };
        (known.sent_away, known.away_until) = (0, 0);
        (known.ends, known.try_v311, known.doubts) = (0, false, 0);
        match offer.version {
            Version::V5 => {
                (known.spoke_v5, known.has_spoken_v5) = (true, true);
                known.version_again = AskAgain::default();
            }
            _ if settings.protocol == Protocol::Auto => {
                // another server may have come to this address
                known.spoke_v5 = false;
                known.v311_until = Some(if known.is_version_doubtful && known.has_spoken_v5 {
                    known.version_again.given_up(now)
                } else {
                    known.version_again = AskAgain::default();
                    now + if known.is_version_doubtful { DOUBTFUL_MS } else { REMEMBERED_MS }
                });
            }
            _ => known.version_again = AskAgain::default(),
        }
        let Some(will) = known.trial.take() else {
            if known.will == StatusWill::Whole {
                (known.proven, known.will_again) = (Some(offer.will), AskAgain::default());
            }
            return false;
        };
        let is_news = !known.will_again.is_vain;
        if !known.is_doubtful {
            (known.proven, known.will_again) = (None, AskAgain::default());
        } else if known.will_again.is_vain {
            known.proven = None;
        }
        let until = if known.is_doubtful { known.will_again.given_up(now) } else { now + REMEMBERED_MS };
        (known.will, known.lesser_will, known.will_until) = (will, will, until);
        is_news
    }

    /// Records that an attempt failed.
    pub(crate) fn failed(
        &mut self,
        settings: &UpstreamSettings,
        address: usize,
        offer: ConnectOffer,
        why: &Broken,
        now: u64,
    ) -> NextAttempt {
        let known = self.at(address);
        known.past.has_begun |=
            matches!(why, Broken::Version | Broken::Refused(..) | Broken::SentAway(_) | Broken::Garbled);
        let was_fallback = std::mem::take(&mut known.try_v311);
        let trial = known.trial.take();
        let may_fall_back = settings.protocol == Protocol::Auto && !settings.v5_only;
        if may_fall_back && offer.version == Version::V5 {
            let has_no_answer = matches!(why, Broken::Closed | Broken::Silent | Broken::Garbled);
            known.version_again.is_vain |= has_no_answer && known.version_again.at.is_some();
            known.ends = if has_no_answer { known.ends.saturating_add(1) } else { 0 };
            let patience = if known.spoke_v5 { ODD_ENDS } else { ENDS };
            match why {
                Broken::Version => known.try_v311 = true,
                // an old broker may answer in the form of 3.1.1, or with anything else that is not version 5
                Broken::Silent | Broken::Garbled if !known.spoke_v5 => known.try_v311 = true,
                _ if has_no_answer && known.ends >= patience => known.try_v311 = true,
                _ => {}
            }
            if known.try_v311 {
                known.is_version_doubtful = matches!(why, Broken::Closed | Broken::Silent);
            }
            if known.try_v311 || (*why == Broken::Closed && !known.spoke_v5) {
                // the will is not the reason for this failure
                known.trial = trial;
                return NextAttempt::AnotherWay;
            }
        }
        if matches!(why, Broken::Version) && offer.version == Version::V311 && !was_fallback {
            known.v311_until = None;
        }
        known.doubts_will(trial, offer.will, why, now)
    }
}

impl KnownAddress {
    /// Decides whether the will may be the reason for a failed attempt with this will, and what follows. `trial` is the will that
    /// was tried instead of the usual one.
    fn doubts_will(&mut self, trial: Option<StatusWill>, offered: StatusWill, why: &Broken, now: u64) -> NextAttempt {
        let doubt = match (why, offered) {
            (_, StatusWill::None) => None,
            _ if trial.is_some() => None,
            (Broken::Refused(RETAIN_NOT_SUPPORTED, _), StatusWill::Whole) => Some((StatusWill::WithoutRetain, true)),
            (Broken::Refused(QOS_NOT_SUPPORTED, _), StatusWill::Whole | StatusWill::WithoutRetain) => {
                Some((StatusWill::AtMostOnce, true))
            }
            (Broken::Refused(TOPIC_NAME_INVALID, _), _) => Some((StatusWill::None, true)),
            (Broken::Refused(NOT_AUTHORIZED, _) | Broken::Closed | Broken::Silent, _) => {
                Some((StatusWill::None, false))
            }
            _ => None,
        };
        let Some((will, is_clear)) = doubt else {
            if self.proven.is_some() && trial.is_none() {
                self.doubts = 0;
            }
            return NextAttempt::NextAddress;
        };
        self.doubts += 1;
        if self.doubts == 1 {
            self.doubts_since = now;
        }
        let was_given_up = self.will == StatusWill::Whole && self.will_again.at.is_some();
        if !is_clear && was_given_up && !std::mem::replace(&mut self.will_again.is_vain, true) {
            (self.trial, self.is_doubtful) = (Some(self.lesser_will), true);
            return NextAttempt::AnotherWay;
        }
        if !is_clear && self.proven == Some(offered) && now < self.doubts_since + PROVEN_MS {
            return NextAttempt::NextAddress;
        }
        self.is_doubtful = !is_clear;
        if is_clear || self.doubts % WILL_EVERY == 2 {
            self.trial = Some(will);
        } else if matches!(why, Broken::Closed | Broken::Silent) && self.doubts % WILL_EVERY == 1 && self.doubts > 1 {
            self.trial = Some(StatusWill::WithoutRetain);
        }
        if is_clear { NextAttempt::AnotherWay } else { NextAttempt::NextAddress }
    }
}

#[cfg(test)]
mod tests;

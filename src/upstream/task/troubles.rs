//! Decides how a failed attempt to connect is logged, so that `journalctl -p warning` shows what a person has to change, and
//! shows it once.
//!
//! - What cannot go away by itself, such as a certificate that is not trusted, is an error at its first occurrence.
//! - What may go away or not, such as a port that closes every connection, is a warning when it has happened several times
//!   in a row; so is an answer that is not what the address has spoken before.
//! - What is only a trouble of the line, such as a refused connection or a timeout, is never more than information.
//!
//! Each cause is told once until a connection was accepted. If another one was told in between, it is told again, but not
//! within an hour, because a name may have several servers with different faults.

use std::time::Duration;

use crate::upstream::approach::Past;
use crate::upstream::wire::Broken;

/// The number of times in a row after which a doubtful trouble is told.
const TIMES: u32 = 5;
/// The same for what some minutes may change. With the usual pauses these are a few minutes, in which a network comes up, a
/// clock is set, or the servers behind a balancer are started again.
const TIMES_SLOW: u32 = 10;
/// A cause that alternates with others is not told again within this time, in milliseconds.
const AGAIN_MS: u64 = 3_600_000;
/// The most causes that are told for one address until a connection was accepted, and the most reasons that are logged as
/// new ones.
const MOST: usize = 8;
/// A connection that was accepted and ended within this time counts as one that ended at once.
const SOON: Duration = Duration::from_secs(60);

/// What is known about a trouble from its kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Nature {
    /// Only a person can change it.
    Lasting,
    /// It is told after this number of times in a row.
    Doubtful(u32),
    Passing,
}

/// How a trouble is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Loudness {
    Error,
    Warning,
    Info,
    Debug,
}

/// A cause that was told as an error or a warning.
#[derive(Debug)]
struct ToldTrouble {
    address: String,
    cause: String,
    at: u64,
}

/// The last trouble in a row.
#[derive(Debug, Default)]
struct TroubleRow {
    address: String,
    cause: String,
    times: u32,
}

impl TroubleRow {
    /// Counts a trouble, and returns how many times in a row it has happened.
    fn count(&mut self, address: &str, cause: &str) -> u32 {
        if (self.address.as_str(), self.cause.as_str()) != (address, cause) {
            *self = TroubleRow { address: address.into(), cause: cause.into(), times: 0 };
        }
        self.times = self.times.saturating_add(1);
        self.times
    }
}

/// What is known about an attempt that failed.
#[derive(Clone, Copy, Debug)]
pub(super) struct FailedAttempt<'a> {
    pub(super) address: &'a str,
    pub(super) why: &'a Broken,
    pub(super) past: Past,
    pub(super) is_clock_set: bool,
    /// The number of failed attempts since the last connection.
    pub(super) attempts: u64,
    /// In milliseconds of the boot clock.
    pub(super) now: u64,
}

impl FailedAttempt<'_> {
    fn nature(&self) -> Nature {
        match self.why {
            Broken::Unprepared(_)
            | Broken::Version
            | Broken::Refused(..)
            | Broken::SentAway(_)
            | Broken::Lasting(_) => Nature::Lasting,
            // what has worked before is probably behind a balancer without a server
            Broken::OtherThan(..) if self.past.has_begun => Nature::Doubtful(TIMES_SLOW),
            Broken::Garbled if self.past.has_worked => Nature::Doubtful(TIMES_SLOW),
            Broken::OtherThan(..) | Broken::Garbled => Nature::Lasting,
            Broken::NotYetValid(_) if self.is_clock_set => Nature::Lasting,
            Broken::NotYetValid(_) => Nature::Doubtful(TIMES_SLOW),
            // while the machine starts, or its network changes, there is no name server for some minutes
            Broken::Unresolved(_) => Nature::Doubtful(TIMES_SLOW),
            // an upstream that has worked is probably being restarted
            Broken::Closed if !self.past.has_worked => Nature::Doubtful(TIMES),
            Broken::NotBegun(..) if !self.past.has_begun => Nature::Doubtful(TIMES),
            _ => Nature::Passing,
        }
    }
}

/// The cause without details in parentheses, which may differ each time.
fn cause(why: &str) -> &str {
    why.split(" (").next().unwrap_or(why)
}

/// The troubles since the last connection.
#[derive(Debug, Default)]
pub(super) struct Troubles {
    /// In the order in which they were told.
    told: Vec<ToldTrouble>,
    /// One for each address with a trouble.
    rows: Vec<TroubleRow>,
    /// The reasons that were logged at all.
    known: Vec<String>,
    /// Connections in a row that were accepted and soon ended for the same reason.
    ends: TroubleRow,
}

impl Troubles {
    /// Records that a connection was accepted.
    pub(super) fn connected(&mut self) {
        self.told.clear();
        self.rows.clear();
        self.known.clear();
    }

    /// Records a failed attempt.
    pub(super) fn failed(&mut self, failure: FailedAttempt<'_>) -> Loudness {
        let FailedAttempt { address, attempts, now, .. } = failure;
        let why = failure.why.to_string();
        let cause = cause(&why);
        let at = self.rows.iter().position(|row| row.address == address).unwrap_or_else(|| {
            self.rows.push(TroubleRow::default());
            self.rows.len() - 1
        });
        let times = self.rows[at].count(address, cause);
        let is_known = self.is_known(address, cause);
        match failure.nature() {
            Nature::Lasting if self.is_to_tell(address, cause, now) => Loudness::Error,
            Nature::Doubtful(least) if times >= least && self.is_to_tell(address, cause, now) => Loudness::Warning,
            _ if !is_known || attempts.is_power_of_two() => Loudness::Info,
            _ => Loudness::Debug,
        }
    }

    /// Records the end of a connection that the upstream had accepted. Returns whether that is to be told as a warning.
    pub(super) fn ended(&mut self, address: &str, why: &Broken, lasted: Duration) -> bool {
        // the other reasons are judged by what was sent and by who else connects
        use Broken::{Failed, Garbled, Lasting, OtherThan};
        let is_judged = matches!(why, Failed(_) | Lasting(_) | OtherThan(..) | Garbled);
        if !is_judged || lasted >= SOON {
            self.ends = TroubleRow::default();
            return false;
        }
        self.ends.count(address, cause(&why.to_string())) == if matches!(why, Broken::Lasting(_)) { 1 } else { TIMES }
    }

    /// Whether a reason need not be logged again as a new one, because it was or because there are too many.
    fn is_known(&mut self, address: &str, cause: &str) -> bool {
        let reason = format!("{address}: {cause}");
        if self.known.contains(&reason) || self.known.len() >= MOST {
            return true;
        }
        self.known.push(reason);
        false
    }

    /// Whether a cause is to be told now; if so, it counts as told.
    fn is_to_tell(&mut self, address: &str, cause: &str, now: u64) -> bool {
        let mut of_address = self.told.iter().enumerate().filter(|(_, told)| told.address == address);
        let (count, last) = (of_address.clone().count(), of_address.clone().next_back());
        if last.is_some_and(|(_, told)| told.cause == cause) {
            return false;
        }
        let before = of_address.clone().find(|(_, told)| told.cause == cause);
        let replaced = before.or_else(|| of_address.next().filter(|_| count >= MOST));
        if let Some((at, told)) = replaced {
            if now.saturating_sub(told.at) < AGAIN_MS {
                return false;
            }
            self.told.remove(at);
        }
        self.told.push(ToldTrouble { address: address.into(), cause: cause.into(), at: now });
        true
    }
}

#[cfg(test)]
mod tests {
    use super::Loudness::{Debug, Error, Info, Warning};
    use super::*;
    use crate::upstream::wire::BeginStep;

    /// What is logged of these attempts at one address, a second apart.
    fn logged(troubles: &mut Troubles, worked: bool, is_clock_set: bool, attempts: &[Broken]) -> Vec<Loudness> {
        let failed = |(number, why): (usize, &Broken)| {
            let attempts = number as u64 + 1;
            let now = attempts * 1000;
            let past = Past { has_begun: worked, has_worked: worked };
            troubles.failed(FailedAttempt { address: "mqtts://h", why, past, is_clock_set, attempts, now })
        };
        attempts.iter().enumerate().map(failed).collect()
    }

    fn lasting(why: &str) -> Broken {
        Broken::Lasting(why.into())
    }

    #[test]
    fn what_only_a_person_can_change_is_an_error_once() {
        for why in [
            lasting("its certificate is for another host name"),
            Broken::Unprepared("no such file".into()),
            Broken::Refused(0x86, "bad user name or password".into()),
            Broken::SentAway("banned".into()),
            Broken::Version,
            Broken::Garbled,
            Broken::NotYetValid("not valid yet".into()),
        ] {
            let levels = logged(&mut Troubles::default(), false, true, &vec![why.clone(); 8]);
            assert_eq!(levels, [Error, Info, Debug, Info, Debug, Debug, Debug, Info], "{why:?}");
        }
    }

    #[test]
    fn another_cause_is_told_and_a_trouble_of_the_line_in_between_is_no_news() {
        let (a, b, line) = (|| lasting("a"), || lasting("b"), || Broken::Silent);
        let mut troubles = Troubles::default();
        let levels = logged(&mut troubles, false, true, &[a(), line(), a(), b(), b(), a(), b()]);
        assert_eq!(levels, [Error, Info, Debug, Error, Debug, Debug, Debug], "they alternate");
        let why = lasting("a");
        let past = Past { has_begun: true, has_worked: true };
        let failure = |address, now| FailedAttempt { address, why: &why, past, is_clock_set: true, attempts: 9, now };
        assert_eq!(troubles.failed(failure("mqtts://h", AGAIN_MS)), Debug);
        assert_eq!(troubles.failed(failure("mqtts://h", AGAIN_MS + 1000)), Error, "after an hour");
        assert_eq!(troubles.failed(failure("mqtts://i", 9)), Error, "another address");
        troubles.connected();
        assert_eq!(troubles.failed(failure("mqtts://h", AGAIN_MS + 2000)), Error, "it worked in between");
        // details may differ each time, and causes too
        let details: Vec<Broken> = (0..20).map(|n| lasting(&format!("not authorized (request {n})"))).collect();
        let errors = |levels: Vec<Loudness>| levels.iter().filter(|level| **level == Error).count();
        assert_eq!(errors(logged(&mut Troubles::default(), false, true, &details)), 1);
        let causes: Vec<Broken> = (0..20).map(|n| lasting(&format!("request {n}"))).collect();
        assert_eq!(errors(logged(&mut Troubles::default(), false, true, &causes)), MOST);
    }

    #[test]
    fn what_has_been_different_before_is_no_error_and_a_warning_only_after_minutes() {
        let other = |step| Broken::OtherThan(step, "something else".into());
        for why in [other(BeginStep::Tls), other(BeginStep::WebSocket), Broken::Garbled] {
            let levels = logged(&mut Troubles::default(), true, true, &vec![why.clone(); 20]);
            assert_eq!(levels.iter().position(|level| *level == Warning), Some(9), "{why:?}");
            assert!(!levels.contains(&Error), "{why:?}");
            let levels = logged(&mut Troubles::default(), false, true, &vec![why; 2]);
            assert_eq!(levels[0], Error, "it has never worked");
        }
    }

    #[test]
    fn what_may_go_away_is_a_warning_when_it_does_not() {
        let abrupt = Broken::NotBegun(BeginStep::Tls, "it closed the connection before TLS was agreed on".into());
        for why in [Broken::Closed, abrupt] {
            let mut troubles = Troubles::default();
            let levels = logged(&mut troubles, false, true, &vec![why.clone(); 8]);
            assert_eq!(levels, [Info, Info, Debug, Info, Warning, Debug, Debug, Info], "{why:?}");
            let levels = logged(&mut Troubles::default(), true, true, &vec![why; 8]);
            assert!(!levels.contains(&Warning), "it has worked");
        }
        let unset = vec![Broken::NotYetValid("not valid yet".into()); 12];
        let levels = logged(&mut Troubles::default(), false, false, &unset);
        assert_eq!(levels.iter().position(|level| *level == Warning), Some(9));
        assert!(!levels[10..].contains(&Warning) && !levels.contains(&Error));
        let unresolved = vec![Broken::Unresolved("the name h cannot be resolved: no name server answers".into()); 12];
        for worked in [false, true] {
            let levels = logged(&mut Troubles::default(), worked, true, &unresolved);
            assert_eq!(levels.iter().position(|level| *level == Warning), Some(9));
            assert!(!levels.contains(&Error));
        }
        // when the clock is set and it is still not valid, a person is needed
        let levels = logged(&mut Troubles::default(), false, true, &unset);
        assert_eq!(levels[0], Error);
        for why in [Broken::Silent, Broken::Failed("Connection refused".into())] {
            let levels = logged(&mut Troubles::default(), false, true, &vec![why; 40]);
            assert!(levels.iter().all(|level| [Info, Debug].contains(level)), "{levels:?}");
        }
    }

    #[test]
    fn connections_that_end_at_once_in_the_same_way_are_told_once() {
        let told = |why: Broken, lasted: u64| {
            let mut troubles = Troubles::default();
            let ends = (1..=20).filter(|_| {
                troubles.connected();
                troubles.ended("mqtt://h", &why, Duration::from_secs(lasted))
            });
            ends.collect::<Vec<u32>>()
        };
        assert_eq!(told(Broken::Failed("it sent CONNECT, which only clients send".into()), 1), [5]);
        assert_eq!(told(Broken::Garbled, 1), [5]);
        assert_eq!(told(lasting("server moved"), 1), [1]);
        for why in [Broken::Closed, Broken::Silent, Broken::TakenOver, Broken::Dismissed(0x80, "x".into())] {
            assert!(told(why, 1).is_empty());
        }
        assert!(told(Broken::Garbled, 60).is_empty());
    }
}

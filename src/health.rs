//! Whether the gateway is well: the pulse of its tasks, and the problems that a person should hear of.
//!
//! Two things are told apart. [`LoggedProblems`] are what was logged: they have happened. A [`Fault`] is what is wrong now: a part
//! that cannot work has one in [`Health`], with its name, since when, and what to do, until it works again. Such a part is
//! tried again and never takes the others with it.
//!
//! Every room may write here, and those who show it read: what stands here is bounded and grows with neither time nor
//! traffic.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use schemars::JsonSchema;
use serde::Serialize;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{error, info};

use crate::time::{Clock, SystemClock};

/// Problems remembered.
pub(crate) const MAX_PROBLEMS: usize = 50;
/// How the names of clients begin among all faulty parts.
pub(crate) const CLIENT_PART: &str = "client ";
/// Faults that pass by themselves, remembered at the same time.
pub(crate) const MAX_PASSING: usize = 16;
/// Of these, so many are security events where there are as many, and all others something else.
pub(crate) const MAX_SECURITY: usize = 15;
/// Where the log's lines about parts that do not work come from.
pub(crate) const TARGET: &str = module_path!();
/// Where its lines about security events come from: see [`crate::access::security`].
pub(crate) const SECURITY: &str = "pigateway::security";
/// Longest text of a problem, in bytes.
pub(crate) const MAX_PROBLEM: usize = 1000;

/// A warning or an error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct LoggedProblem {
    /// Number, from 1 on.
    pub(crate) number: u64,
    /// Milliseconds since the Unix epoch, as the system believed.
    pub(crate) unix_ms: i64,
    /// `"warn"`: recovered and nothing lost; `"error"`: data lost, or a person is needed.
    pub(crate) level: &'static str,
    /// Where it comes from.
    pub(crate) target: String,
    /// What happened.
    pub(crate) text: String,
}

/// The last problems: at most [`MAX_PROBLEMS`]. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct LoggedProblems {
    inner: Arc<ProblemsInner>,
}

#[derive(Debug, Default)]
struct ProblemsInner {
    last: Mutex<VecDeque<LoggedProblem>>,
    count: watch::Sender<u64>,
}

/// As much of a text, which may come from anybody, as so many bytes hold.
pub(crate) fn beginning(text: &str, most: usize) -> &str {
    let end = (0..=most.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or(0)]
}

fn shorten(text: String) -> String {
    if text.len() > MAX_PROBLEM { format!("{}…", beginning(&text, MAX_PROBLEM)) } else { text }
}

impl LoggedProblems {
    /// Remembers one.
    pub(crate) fn push(&self, unix_ms: i64, level: &'static str, target: &str, text: String) {
        let text = shorten(text);
        let mut last = self.inner.last.lock();
        let number = last.back().map_or(1, |problem| problem.number + 1);
        if last.len() >= MAX_PROBLEMS {
            // a flood of one kind leaves a part of the places to the other
            let is_security = |target: &str| target == SECURITY;
            let of_security = last.iter().filter(|problem| is_security(&problem.target)).count();
            let goes = match of_security.cmp(&MAX_SECURITY) {
                std::cmp::Ordering::Less => false,
                std::cmp::Ordering::Equal => is_security(target),
                std::cmp::Ordering::Greater => true,
            };
            let at = last.iter().position(|problem| is_security(&problem.target) == goes).unwrap_or(0);
            last.remove(at);
        }
        last.push_back(LoggedProblem { number, unix_ms, level, target: target.into(), text });
        drop(last);
        self.inner.count.send_replace(number);
    }

    /// Those remembered, oldest first.
    pub(crate) fn last(&self) -> Vec<LoggedProblem> {
        self.inner.last.lock().iter().cloned().collect()
    }

    /// Changes with every problem: their number so far.
    pub(crate) fn count(&self) -> watch::Receiver<u64> {
        self.inner.count.subscribe()
    }
}

/// Why a part cannot work, in words for the person who has to mend it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub(crate) struct Fault {
    /// What is wrong.
    pub(crate) problem: String,
    /// What to do about it.
    pub(crate) remedy: String,
}

impl Fault {
    /// Of these words.
    pub(crate) fn new(problem: impl Into<String>, remedy: impl Into<String>) -> Fault {
        Fault { problem: problem.into(), remedy: remedy.into() }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.problem, self.remedy)
    }
}

/// A part that does not work now.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub(crate) struct FaultyPart {
    /// Its name: what it is and which, such as `listener 192.0.2.7:1883`.
    pub(crate) part: String,
    /// Boot clock, in milliseconds, since when.
    pub(crate) since_boot_ms: u64,
    /// Why, and what to do.
    #[serde(flatten)]
    pub(crate) fault: Fault,
}

/// What is wrong now: at most one fault per part, and there are as many parts as the configuration names. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Health {
    inner: Arc<HealthInner>,
}

#[derive(Debug, Default)]
struct HealthInner {
    faulty: Mutex<BTreeMap<String, FaultyPart>>,
    /// With the time when they are over.
    passing: Mutex<BTreeMap<String, (FaultyPart, Instant)>>,
    changes: watch::Sender<u64>,
}

impl Health {
    /// Says how a part is; whether that is news. For parts that log it themselves.
    pub(crate) fn set(&self, part: &str, fault: Option<&Fault>) -> bool {
        let mut faulty = self.inner.faulty.lock();
        let is_news = match (faulty.get_mut(part), fault) {
            (Some(known), Some(fault)) if known.fault == *fault => false,
            // the same part with another reason: it has not worked in between
            (Some(known), Some(fault)) => {
                known.fault = fault.clone();
                true
            }
            (None, Some(fault)) => {
                let since_boot_ms = SystemClock.boot_ms();
                faulty.insert(part.into(), FaultyPart { part: part.into(), since_boot_ms, fault: fault.clone() });
                true
            }
            (Some(_), None) => faulty.remove(part).is_some(),
            (None, None) => false,
        };
        drop(faulty);
        if is_news {
            self.inner.changes.send_modify(|changes| *changes += 1);
        }
        is_news
    }

    /// A part cannot work. The log says so once for each reason.
    pub(crate) fn raise(&self, part: &str, fault: &Fault) {
        if self.set(part, Some(fault)) {
            error!(part, "{part}: {fault}");
        }
    }

    /// A part works. The log says so if it did not before.
    pub(crate) fn clear(&self, part: &str) {
        if self.set(part, None) {
            info!(part, "{part}: works again");
        }
    }

    /// Something happens to somebody who is no part of the gateway, such as a client, and nobody will say that it is over: it is
    /// where it has not happened again for this time. At most [`MAX_PASSING`]; the one that is over first gives way.
    pub(crate) fn note(&self, part: &str, fault: &Fault, lasts: Duration) {
        let now = Instant::now();
        let fault = Fault::new(shorten(fault.problem.clone()), shorten(fault.remedy.clone()));
        let mut passing = self.inner.passing.lock();
        passing.retain(|_, (_, over)| *over > now);
        let since_boot_ms = passing.get(part).map_or_else(|| SystemClock.boot_ms(), |(known, _)| known.since_boot_ms);
        if passing.len() >= MAX_PASSING && !passing.contains_key(part) {
            let first = passing.iter().min_by_key(|(_, (_, over))| *over).map(|(name, _)| name.clone());
            first.and_then(|name| passing.remove(&name));
        }
        let faulty = FaultyPart { part: part.into(), since_boot_ms, fault };
        let known = passing.insert(part.into(), (faulty.clone(), now + lasts));
        drop(passing);
        if known.is_none_or(|(known, _)| known != faulty) {
            self.inner.changes.send_modify(|changes| *changes += 1);
        }
    }

    /// What made such things happen has changed: those whose names begin like this are over.
    pub(crate) fn forget(&self, prefix: &str) {
        self.inner.passing.lock().retain(|name, _| !name.starts_with(prefix));
        self.inner.changes.send_modify(|changes| *changes += 1);
    }

    /// What is wrong now, by the names of the parts.
    pub(crate) fn faulty(&self) -> Vec<FaultyPart> {
        let now = Instant::now();
        let mut all: Vec<_> = self.inner.faulty.lock().values().cloned().collect();
        let passing = self.inner.passing.lock();
        all.extend(passing.values().filter(|(_, over)| *over > now).map(|(faulty, _)| faulty.clone()));
        all.sort_by(|a, b| a.part.cmp(&b.part));
        all
    }

    /// Whether this part is faulty.
    pub(crate) fn is_faulty(&self, part: &str) -> bool {
        self.inner.faulty.lock().contains_key(part)
    }

    /// Changes whenever something begins to be wrong, or ceases to be.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.inner.changes.subscribe()
    }
}

/// Steps in which the time of something that is due is counted.
pub(crate) const STEP: Duration = Duration::from_secs(1);

/// For how long something that is due has not been done although this process ran.
///
/// A process may be stopped, starved of processor time or memory, or asleep with its machine: what it does not get done
/// meanwhile says nothing about its parts. So only the time between two looks counts that were no further apart than
/// [`STEP`] and a half: whoever looked in time could as well have done what is due.
#[derive(Debug, Default)]
pub(crate) struct Overdue {
    looked: Option<Instant>,
    attended: Duration,
}

impl Overdue {
    /// Something is due from now on.
    pub(crate) fn from(now: Instant) -> Overdue {
        Overdue { looked: Some(now), attended: Duration::ZERO }
    }

    /// It is still not done. Says for how long this process could have done it.
    pub(crate) fn look(&mut self, now: Instant) -> Duration {
        let gap = self.looked.map_or(Duration::ZERO, |looked| now.saturating_duration_since(looked));
        self.looked = Some(now);
        if gap <= STEP * 3 / 2 {
            self.attended += gap;
        }
        self.attended
    }

    /// Whether something is due.
    pub(crate) fn is_running(&self) -> bool {
        self.looked.is_some()
    }

    /// It is done, or others have been waited for: time counts anew.
    pub(crate) fn reset(&mut self) {
        *self = Overdue::default();
    }
}

/// Shows that a task is at work: it answers when it gets around to being asked.
#[derive(Debug)]
pub struct Pulse {
    asked: watch::Receiver<u64>,
    answered: watch::Sender<u64>,
}

impl Pulse {
    /// Waits for a question. Safe to cancel.
    pub(crate) async fn asked(&mut self) {
        let answered = *self.answered.borrow();
        if self.asked.wait_for(|asked| *asked > answered).await.is_err() {
            // nobody asks any more
            std::future::pending().await
        }
    }

    /// Answers it.
    pub(crate) fn answer(&self) {
        self.answered.send_replace(*self.asked.borrow());
    }

    /// Whether there is a question without an answer.
    pub(crate) fn is_asked(&self) -> bool {
        *self.asked.borrow() > *self.answered.borrow()
    }

    /// Answers for as long as `wait` takes: for what may take long without anything being wrong.
    pub(crate) async fn during<T>(&mut self, wait: impl Future<Output = T>) -> T {
        let mut wait = std::pin::pin!(wait);
        loop {
            tokio::select! {
                done = &mut wait => return done,
                () = self.asked() => self.answer(),
            }
        }
    }
}

/// The other side of a [`Pulse`].
#[derive(Debug)]
pub struct PulseTaker {
    ask: watch::Sender<u64>,
    answered: watch::Receiver<u64>,
    overdue: Overdue,
}

impl PulseTaker {
    /// Asks for the first time.
    pub fn new() -> (PulseTaker, Pulse) {
        let (ask, asked) = watch::channel(1);
        let (answer, answered) = watch::channel(0);
        (PulseTaker { ask, answered, overdue: Overdue::from(Instant::now()) }, Pulse { asked, answered: answer })
    }

    /// Waits for the answer to the last question. Safe to cancel.
    pub(crate) async fn answered(&mut self) {
        let asked = *self.ask.borrow();
        if self.answered.wait_for(|answered| *answered == asked).await.is_err() {
            // whoever would answer has gone
            std::future::pending().await
        }
    }

    /// How long the last question has been without an answer although this process ran ([`Overdue`]). Asks again where it
    /// has one.
    pub(crate) fn silence(&mut self, now: Instant) -> Duration {
        if self.is_waited_for() {
            return self.overdue.look(now);
        }
        self.overdue = Overdue::from(now);
        self.ask.send_modify(|asked| *asked += 1);
        Duration::ZERO
    }

    /// Whether the last question is without an answer.
    pub(crate) fn is_waited_for(&self) -> bool {
        *self.answered.borrow() != *self.ask.borrow()
    }

    /// The task waits for others, who are watched themselves: that is not its own silence.
    pub(crate) fn excuse(&mut self) {
        self.overdue.reset();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_stands_until_the_part_works_again() {
        let health = Health::default();
        let changes = health.changes();
        let (taken, gone) = (Fault::new("taken", "wait"), Fault::new("gone", "find it"));
        assert!(health.set("listener 1", Some(&taken)) && !health.set("listener 1", Some(&taken)));
        let since = health.faulty()[0].since_boot_ms;
        assert!(health.set("listener 1", Some(&gone)), "another reason is news");
        assert!(health.set("HTTP", Some(&taken)));
        let shown: Vec<_> = health.faulty().into_iter().map(|faulty| (faulty.part, faulty.fault)).collect();
        assert_eq!(shown, [("HTTP".into(), taken), ("listener 1".into(), gone)]);
        assert_eq!(health.faulty()[1].since_boot_ms, since);
        assert!(health.set("listener 1", None) && !health.set("listener 1", None));
        assert!(!health.is_faulty("listener 1") && health.is_faulty("HTTP"));
        assert_eq!(*changes.borrow(), 4);
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_ends_is_over_when_it_does_not_happen_again() {
        let (health, minute) = (Health::default(), Duration::from_secs(60));
        let names = |health: &Health| health.faulty().into_iter().map(|faulty| faulty.part).collect::<Vec<_>>();
        let fault = Fault::new("cut off", "send less");
        health.raise("listener 1", &fault);
        health.note("client a", &fault, minute);
        tokio::time::advance(minute / 2).await;
        let since = health.faulty()[0].since_boot_ms;
        health.note("client a", &fault, minute);
        tokio::time::advance(minute / 2).await;
        assert_eq!(
            (names(&health), health.faulty()[0].since_boot_ms),
            (vec!["client a".into(), "listener 1".into()], since)
        );
        tokio::time::advance(minute / 2).await;
        assert_eq!(names(&health), ["listener 1"]);
        for client in 0..100 {
            health.note(&format!("client {client:03}"), &fault, minute);
            tokio::time::advance(Duration::from_millis(1)).await;
        }
        assert_eq!(names(&health).len(), MAX_PASSING + 1);
        assert_eq!(names(&health)[0], "client 084", "those that are over first have given way");
        health.forget("client ");
        assert_eq!(names(&health), ["listener 1"]);
    }

    #[test]
    fn old_problems_give_way_and_long_ones_are_cut() {
        let problems = LoggedProblems::default();
        for number in 0..MAX_PROBLEMS + 5 {
            problems.push(0, "warn", "t", format!("{number}{}", "ü".repeat(MAX_PROBLEM)));
        }
        let last = problems.last();
        assert_eq!((last.len(), last[0].number, *problems.count().borrow()), (MAX_PROBLEMS, 6, 55));
        assert!(last.iter().all(|problem| problem.text.len() <= MAX_PROBLEM + 3));
    }

    #[test]
    fn time_in_which_the_process_stood_still_does_not_count() {
        let begin = Instant::now();
        let at = |seconds: f64| begin + Duration::from_secs_f64(seconds);
        let mut overdue = Overdue::from(begin);
        assert_eq!(overdue.look(at(1.0)), Duration::from_secs(1));
        // stopped for twelve seconds, and again
        assert_eq!(overdue.look(at(13.0)), Duration::from_secs(1));
        assert_eq!(overdue.look(at(14.0)), Duration::from_secs(2));
        assert_eq!(overdue.look(at(26.5)), Duration::from_secs(2));
        // starved: every look comes late
        for late in 1..100 {
            assert_eq!(overdue.look(at(26.5 + 2.0 * f64::from(late))), Duration::from_secs(2));
        }
        overdue.reset();
        assert_eq!(overdue.look(at(300.0)), Duration::ZERO);
        assert_eq!(overdue.look(at(301.4)), Duration::from_secs_f64(1.4));
    }

    #[test]
    fn a_task_is_silent_only_while_the_process_runs() {
        let (mut taker, pulse) = PulseTaker::new();
        let begin = Instant::now();
        assert_eq!(taker.silence(begin + Duration::from_secs(60)), Duration::ZERO, "nobody looked for a minute");
        assert_eq!(taker.silence(begin + Duration::from_secs(61)), STEP);
        assert!(pulse.is_asked() && taker.is_waited_for());
        pulse.answer();
        assert_eq!(taker.silence(begin + Duration::from_secs(62)), Duration::ZERO);
        assert!(pulse.is_asked(), "it is asked again");
        for second in 63..70 {
            taker.silence(begin + Duration::from_secs(second));
        }
        taker.excuse();
        assert_eq!(taker.silence(begin + Duration::from_secs(70)), Duration::ZERO);
    }
}

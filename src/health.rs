//! The health of the gateway: whether its tasks respond, and the problems that a person should know of.
//!
//! Two things are kept apart. [`LoggedProblems`] are warnings and errors that were logged, so they are in the past. A
//! [`Fault`] is wrong at present: a part that cannot work has one in [`Health`], with its name, since when, and what to do,
//! until it works again. Such a part keeps trying and never stops the others.
//!
//! Every room may write here, and the doors that show the state read it. The size is bounded and grows with neither time nor
//! traffic.

use std::borrow::Cow;
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

/// Most logged problems that are kept.
pub(crate) const MAX_PROBLEMS: usize = 50;
/// Prefix of the names of clients among the faulty parts.
pub(crate) const CLIENT_PART: &str = "client ";
/// Most faults that end by themselves and are kept at the same time.
pub(crate) const MAX_PASSING: usize = 16;
/// Of the logged problems, the places that security events can have. The others are for everything else.
pub(crate) const MAX_SECURITY: usize = 15;
/// The log target of lines about faulty parts.
pub(crate) const TARGET: &str = module_path!();
/// The log target of security events: see [`crate::access::security`].
pub(crate) const SECURITY: &str = "pigateway::security";
pub(crate) const MAX_PROBLEM: usize = 1000;

/// A logged warning or error.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct LoggedProblem {
    /// Consecutive number, from 1 on.
    pub(crate) number: u64,
    /// Milliseconds since the Unix epoch, by the system's clock at that time.
    pub(crate) unix_ms: i64,
    /// `"warn"` if the gateway recovered and nothing was lost; `"error"` if data was lost or a person is needed.
    pub(crate) level: &'static str,
    pub(crate) target: String,
    pub(crate) text: String,
}

/// The most recent problems, at most [`MAX_PROBLEMS`]. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct LoggedProblems {
    inner: Arc<ProblemsInner>,
}

#[derive(Debug, Default)]
struct ProblemsInner {
    last: Mutex<VecDeque<LoggedProblem>>,
    count: watch::Sender<u64>,
}

/// The longest beginning of a text with at most `most` bytes. The text may come from anybody.
pub(crate) fn beginning(text: &str, most: usize) -> &str {
    let end = (0..=most.min(text.len())).rev().find(|end| text.is_char_boundary(*end));
    &text[..end.unwrap_or(0)]
}

/// A text with at most `most` bytes, and an ellipsis if that is only its beginning.
pub(crate) fn shortened(text: &str, most: usize) -> Cow<'_, str> {
    if text.len() > most { Cow::Owned(format!("{}…", beginning(text, most))) } else { Cow::Borrowed(text) }
}

fn shorten(text: String) -> String {
    if text.len() > MAX_PROBLEM { shortened(&text, MAX_PROBLEM).into_owned() } else { text }
}

impl LoggedProblems {
    /// Adds a problem, if necessary in place of the oldest one.
    pub(crate) fn push(&self, unix_ms: i64, level: &'static str, target: &str, text: String) {
        let text = shorten(text);
        let mut last = self.inner.last.lock();
        let number = last.back().map_or(1, |problem| problem.number + 1);
        if last.len() >= MAX_PROBLEMS {
            // a flood of security events leaves places for other problems, and the other way round
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

    /// The problems that are kept, oldest first.
    pub(crate) fn last(&self) -> Vec<LoggedProblem> {
        self.inner.last.lock().iter().cloned().collect()
    }

    /// The number of problems so far; it changes with every one.
    pub(crate) fn count(&self) -> watch::Receiver<u64> {
        self.inner.count.subscribe()
    }
}

/// Why a part cannot work, in words for the person who has to repair it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub(crate) struct Fault {
    /// What does not work, and the reason.
    pub(crate) problem: String,
    /// What the person should do.
    pub(crate) remedy: String,
}

impl Fault {
    pub(crate) fn new(problem: impl Into<String>, remedy: impl Into<String>) -> Fault {
        Fault { problem: problem.into(), remedy: remedy.into() }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.problem, self.remedy)
    }
}

/// A part that does not work at present.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub(crate) struct FaultyPart {
    /// Kind and name of the part, such as `listener 192.0.2.7:1883`.
    pub(crate) part: String,
    /// When the fault began, in milliseconds of the boot clock.
    pub(crate) since_boot_ms: u64,
    /// The problem and its remedy.
    #[serde(flatten)]
    pub(crate) fault: Fault,
}

/// The present faults: at most one for each part, and the configuration determines the number of parts. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Health {
    inner: Arc<HealthInner>,
}

#[derive(Debug, Default)]
struct HealthInner {
    faulty: Mutex<BTreeMap<String, FaultyPart>>,
    /// Faults that end by themselves, each with the time of its end.
    passing: Mutex<BTreeMap<String, (FaultyPart, Instant)>>,
    changes: watch::Sender<u64>,
}

impl Health {
    /// Sets or clears the fault of a part, and returns whether that is a change. For parts that log it themselves.
    pub(crate) fn set(&self, part: &str, fault: Option<&Fault>) -> bool {
        let mut faulty = self.inner.faulty.lock();
        let is_news = match (faulty.get_mut(part), fault) {
            (Some(known), Some(fault)) if known.fault == *fault => false,
            // the same part with another reason has not worked in between, so it keeps the time of its first fault
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

    /// Sets the fault of a part and logs it once for each reason.
    pub(crate) fn raise(&self, part: &str, fault: &Fault) {
        if self.set(part, Some(fault)) {
            error!(part, "{part}: {fault}");
        }
    }

    /// Clears the fault of a part, and logs that it works if it did not before.
    pub(crate) fn clear(&self, part: &str) {
        if self.set(part, None) {
            info!(part, "{part}: works again");
        }
    }

    /// Records a fault of somebody who is not part of the gateway, such as a client. Nobody reports its end, so it ends if
    /// it does not occur again within `lasts`. At most [`MAX_PASSING`] are kept; the one that would end first makes room.
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

    /// Ends the passing faults whose names have this prefix, because their cause has changed.
    pub(crate) fn forget(&self, prefix: &str) {
        self.inner.passing.lock().retain(|name, _| !name.starts_with(prefix));
        self.inner.changes.send_modify(|changes| *changes += 1);
    }

    /// The present faults, sorted by the names of the parts.
    pub(crate) fn faulty(&self) -> Vec<FaultyPart> {
        let now = Instant::now();
        let mut all: Vec<_> = self.inner.faulty.lock().values().cloned().collect();
        let passing = self.inner.passing.lock();
        all.extend(passing.values().filter(|(_, over)| *over > now).map(|(faulty, _)| faulty.clone()));
        all.sort_by(|a, b| a.part.cmp(&b.part));
        all
    }

    pub(crate) fn is_faulty(&self, part: &str) -> bool {
        self.inner.faulty.lock().contains_key(part)
    }

    /// A counter that changes whenever a fault begins or ends.
    pub(crate) fn changes(&self) -> watch::Receiver<u64> {
        self.inner.changes.subscribe()
    }
}

/// The interval at which [`Overdue`] should be looked at.
pub(crate) const STEP: Duration = Duration::from_secs(1);

/// Measures for how long something that is due has not been done although this process was running.
///
/// A process may be stopped, starved of processor time or memory, or suspended with its machine. Work left undone in that
/// time says nothing about its parts. So the time between two looks counts only if they are at most one and a half [`STEP`]s
/// apart: a process that could look in time could also have done what was due.
#[derive(Debug, Default)]
pub(crate) struct Overdue {
    looked: Option<Instant>,
    attended: Duration,
}

impl Overdue {
    /// Starts to measure.
    pub(crate) fn from(now: Instant) -> Overdue {
        Overdue { looked: Some(now), attended: Duration::ZERO }
    }

    /// Records that the work is still not done. Returns for how long this process could have done it.
    pub(crate) fn look(&mut self, now: Instant) -> Duration {
        let gap = self.looked.map_or(Duration::ZERO, |looked| now.saturating_duration_since(looked));
        self.looked = Some(now);
        if gap <= STEP * 3 / 2 {
            self.attended += gap;
        }
        self.attended
    }

    pub(crate) fn is_running(&self) -> bool {
        self.looked.is_some()
    }

    /// Starts the measurement again, because the work is done or the part waits for others.
    pub(crate) fn reset(&mut self) {
        *self = Overdue::default();
    }
}

/// The responding side of a watched task: the task shows that it is at work by answering questions.
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
            // the watching side is gone
            std::future::pending().await
        }
    }

    pub(crate) fn answer(&self) {
        self.answered.send_replace(*self.asked.borrow());
    }

    /// Whether a question waits for an answer.
    pub(crate) fn is_asked(&self) -> bool {
        *self.asked.borrow() > *self.answered.borrow()
    }

    /// Answers questions while `wait` runs, for work that may take long without being stuck.
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

/// The watching side of a [`Pulse`].
#[derive(Debug)]
pub struct PulseTaker {
    ask: watch::Sender<u64>,
    answered: watch::Receiver<u64>,
    overdue: Overdue,
}

impl PulseTaker {
    /// Creates both sides, with a first question asked.
    pub fn new() -> (PulseTaker, Pulse) {
        let (ask, asked) = watch::channel(1);
        let (answer, answered) = watch::channel(0);
        (PulseTaker { ask, answered, overdue: Overdue::from(Instant::now()) }, Pulse { asked, answered: answer })
    }

    /// Waits for the answer to the last question. Safe to cancel.
    pub(crate) async fn answered(&mut self) {
        let asked = *self.ask.borrow();
        if self.answered.wait_for(|answered| *answered == asked).await.is_err() {
            // the watched side is gone
            std::future::pending().await
        }
    }

    /// For how long the last question has had no answer although this process was running ([`Overdue`]). If it has an
    /// answer, the next question is asked.
    pub(crate) fn silence(&mut self, now: Instant) -> Duration {
        if self.is_waited_for() {
            return self.overdue.look(now);
        }
        self.overdue = Overdue::from(now);
        self.ask.send_modify(|asked| *asked += 1);
        Duration::ZERO
    }

    /// Whether the last question has no answer yet.
    pub(crate) fn is_waited_for(&self) -> bool {
        *self.answered.borrow() != *self.ask.borrow()
    }

    /// Starts the measurement again, because the task waits for others that are watched themselves.
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
        // the process is stopped for twelve seconds, twice
        assert_eq!(overdue.look(at(13.0)), Duration::from_secs(1));
        assert_eq!(overdue.look(at(14.0)), Duration::from_secs(2));
        assert_eq!(overdue.look(at(26.5)), Duration::from_secs(2));
        // the process is starved of processor time, so every look comes late
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

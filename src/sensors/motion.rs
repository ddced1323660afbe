//! Derives motion from the level of a pin. A pure state machine: it takes levels and the time, and returns what to publish.
//!
//! A PIR's output says "something warm moves" and nothing more. Five times determine the messages that follow from it:
//!
//! ```text
//!  level      ▁▁▁▁█▁█▁▁▁▁▁▁▁▁▁▁▁██████▁▁▁▁▁▁███▁▁▁▁▁▁▁▁▁▁▁▁▁█▁▁▁▁▁▁▁▁████████████████████████▁▁▁▁▁▁▁▁▁▁▁
//!             │  warm_up     │  │     │◄hold│  │◄──hold──►│   │         │◄──stuck_after──►│     │◄──hold──►│
//!  published  │              off on   no off:  │          off  nothing:  on                stuck not        off
//!             │              │  │     triggered again          shorter   │                 │     stuck      │
//!             start          │  since: first edge             than debounce               (stays on)
//! ```
//!
//! - **warm-up**: after power-up a PIR reports motion that is not there. An HC-SR501 needs 30 to 60 s and fires one to three
//!   times meanwhile; an AM312 needs 10 to 20 s. Nothing is published until the end of this time; the level at its end is
//!   the first state.
//! - **debounce**: a change that does not last this long is not an edge. If a line settles after a few bounces, the edge has
//!   the time of the first of them: debouncing delays the message, but not the time in it.
//! - **hold**: motion ends this long after the last active level did. An HC-SR501 itself keeps its output active for 3 to
//!   300 s (left potentiometer) and is then blind for about 2.5 s; an AM312 keeps it active for about 2 s and is blind for
//!   as long. A hold longer than the blind time makes one motion of a person who keeps moving.
//! - **retrigger**: an active level during the hold extends the motion; there is no "off" in between. (The jumper of an
//!   HC-SR501 does the same within the sensor: H repeats, L does not.)
//! - **stuck**: an output that stays active this long is likely a broken sensor or a loose wire. This is reported once, and
//!   again when the level is inactive; motion stays on, because that is what the pin says.
//!
//! The output of both sensors is 3.3 V, push-pull and active high, so they need no bias.
//!
//! All times are milliseconds of the boot clock.

/// The times of a sensor, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Timing {
    /// The time after the start in which nothing is published.
    pub(crate) warm_up: u64,
    /// Changes shorter than this are not edges.
    pub(crate) debounce: u64,
    /// The time from the end of the last active level to "off".
    pub(crate) hold: u64,
    /// A level that is active for this long counts as stuck.
    pub(crate) stuck_after: u64,
}

/// What the sensor must do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MotionAction {
    /// Warm-up is over; the state follows.
    WarmUpOver,
    /// Publish this state.
    Publish {
        /// Whether there is motion.
        on: bool,
        /// When the state began.
        since: u64,
    },
    /// The level has been active for too long.
    Stuck {
        /// When the level became active.
        since: u64,
    },
    /// The level is inactive again.
    NotStuck,
}

/// Changes that have not lasted long enough yet.
#[derive(Clone, Copy, Debug)]
struct Bounces {
    first: u64,
    last: u64,
}

/// Timers of the state machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    // the order for timers that are due at the same time: the level first, then what follows from it
    Settle,
    WarmUp,
    Off,
    Stuck,
}

/// The motion of one sensor.
#[derive(Clone, Debug)]
pub(crate) struct Motion {
    timing: Timing,
    warm_up_end: u64,
    warm: bool,
    /// The latest time of which the state machine was told.
    now: u64,
    /// The level of the pin, before debouncing.
    raw: bool,
    /// The level after debouncing.
    active: bool,
    active_changed: u64,
    bounces: Option<Bounces>,
    on: bool,
    since: u64,
    stuck: bool,
}

impl Motion {
    /// A sensor that started at `started` and has this level now.
    pub(crate) fn new(timing: Timing, started: u64, now: u64, active: bool) -> Motion {
        Motion {
            timing,
            warm_up_end: started.saturating_add(timing.warm_up),
            warm: false,
            now,
            raw: active,
            active,
            active_changed: now,
            bounces: None,
            on: false,
            since: now,
            stuck: false,
        }
    }

    /// Goes on with other times. The next call of `time` reports what follows from them.
    pub(crate) fn change(&mut self, timing: Timing, started: u64) {
        self.timing = timing;
        self.warm_up_end = started.saturating_add(timing.warm_up);
        self.stuck &= self.active_changed.saturating_add(timing.stuck_after) <= self.now;
    }

    pub(crate) fn is_warm(&self) -> bool {
        self.warm
    }

    pub(crate) fn is_stuck(&self) -> bool {
        self.stuck
    }

    /// When [`Motion::time`] must be called at the latest, if nothing else happens.
    pub(crate) fn deadline(&self) -> Option<u64> {
        self.next_due().map(|(at, _)| at)
    }

    /// Reports that the pin has this level since `at`.
    pub(crate) fn level(&mut self, active: bool, at: u64) -> Vec<MotionAction> {
        let mut actions = self.time(at);
        if active == self.raw {
            return actions; // the edges in between were lost
        }
        self.raw = active;
        let bounces = self.bounces.get_or_insert(Bounces { first: at, last: at });
        bounces.last = at.max(bounces.last);
        if self.timing.debounce == 0 {
            self.settle(&mut actions);
        }
        actions
    }

    /// Reports that the time is `now`.
    pub(crate) fn time(&mut self, now: u64) -> Vec<MotionAction> {
        let mut actions = Vec::new();
        self.now = self.now.max(now);
        while let Some((at, due)) = self.next_due().filter(|(at, _)| *at <= self.now) {
            match due {
                Due::Settle => self.settle(&mut actions),
                Due::WarmUp => self.finish_warm_up(&mut actions),
                Due::Off => self.finish_hold(&mut actions),
                Due::Stuck => {
                    self.stuck = true;
                    actions.push(MotionAction::Stuck { since: self.active_changed });
                }
            }
            debug_assert!(self.next_due() != Some((at, due)), "{due:?} is done once");
        }
        actions
    }

    fn next_due(&self) -> Option<(u64, Due)> {
        let settle = self.bounces.map(|bounces| (bounces.last + self.timing.debounce, Due::Settle));
        let warm_up = (!self.warm).then_some((self.warm_up_end, Due::WarmUp));
        let off = self.off_at().map(|at| match self.bounces {
            // an active level may have begun in time to extend the motion, so wait until that is known, but not for ever
            Some(bounces) if bounces.first < at => (at + self.timing.debounce, Due::Off),
            _ => (at, Due::Off),
        });
        let stuck_at = self.active_changed.saturating_add(self.timing.stuck_after);
        let stuck = (self.warm && self.active && !self.stuck).then_some((stuck_at, Due::Stuck));
        [settle, warm_up, off, stuck].into_iter().flatten().min()
    }

    /// When motion ends, unless it is triggered again.
    fn off_at(&self) -> Option<u64> {
        (self.on && !self.active).then(|| self.active_changed.saturating_add(self.timing.hold).max(self.since))
    }

    /// Accepts a level, because the line has been quiet for long enough.
    fn settle(&mut self, actions: &mut Vec<MotionAction>) {
        let Some(bounces) = self.bounces.take() else { return };
        if self.raw == self.active {
            return;
        }
        self.active = self.raw;
        self.active_changed = bounces.first;
        if self.active {
            if self.warm && !self.on {
                self.publish(true, bounces.first, actions);
            }
        } else if self.stuck {
            self.stuck = false;
            actions.push(MotionAction::NotStuck);
        }
    }

    fn finish_warm_up(&mut self, actions: &mut Vec<MotionAction>) {
        self.warm = true;
        self.since = self.warm_up_end.max(self.since);
        actions.push(MotionAction::WarmUpOver);
        self.publish(self.active, self.since, actions);
    }

    fn finish_hold(&mut self, actions: &mut Vec<MotionAction>) {
        let Some(at) = self.off_at() else { return };
        if let Some(bounces) = &mut self.bounces {
            bounces.first = bounces.first.max(at);
        }
        self.publish(false, at, actions);
    }

    fn publish(&mut self, on: bool, since: u64, actions: &mut Vec<MotionAction>) {
        self.on = on;
        self.since = since.max(self.since);
        actions.push(MotionAction::Publish { on, since: self.since });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::MotionAction::*;
    use super::*;

    const TIMING: Timing = Timing { warm_up: 1_000, debounce: 50, hold: 500, stuck_after: 10_000 };

    const fn on(since: u64) -> MotionAction {
        Publish { on: true, since }
    }

    const fn off(since: u64) -> MotionAction {
        Publish { on: false, since }
    }

    /// Runs a whole sequence, with every deadline met to the millisecond, and returns the actions with their times.
    fn story(timing: Timing, start: bool, levels: &[(u64, bool)], until: u64) -> Vec<(u64, MotionAction)> {
        let mut motion = Motion::new(timing, 0, 0, start);
        let mut done = Vec::new();
        for &(at, level) in levels.iter().chain(&[(until, false)]) {
            while let Some(due) = motion.deadline().filter(|due| *due < at) {
                done.extend(motion.time(due).into_iter().map(|action| (due, action)));
            }
            let actions = if at == until { motion.time(at) } else { motion.level(level, at) };
            done.extend(actions.into_iter().map(|action| (at, action)));
        }
        done
    }

    #[test]
    fn stories() {
        const WARM: [(u64, MotionAction); 2] = [(1_000, WarmUpOver), (1_000, off(1_000))];
        type Story<'a> = (&'a str, bool, &'a [(u64, bool)], &'a [(u64, MotionAction)]);
        let table: &[Story<'_>] = &[
            ("nothing moves", false, &[], &[]),
            ("ghosts during warm-up are not published", false, &[(200, true), (600, false)], &[]),
            ("one motion", false, &[(2_000, true), (3_000, false)], &[(2_050, on(2_000)), (3_500, off(3_500))]),
            ("a spike is not an edge", false, &[(2_000, true), (2_049, false)], &[]),
            (
                "a gap is not an edge",
                false,
                &[(2_000, true), (3_000, false), (3_049, true), (4_000, false)],
                &[(2_050, on(2_000)), (4_500, off(4_500))],
            ),
            (
                "bounces: the time of the first edge",
                false,
                &[(2_000, true), (2_010, false), (2_020, true), (3_000, false), (3_005, true), (3_007, false)],
                &[(2_070, on(2_000)), (3_500, off(3_500))],
            ),
            (
                "triggered again during hold",
                false,
                &[(2_000, true), (3_000, false), (3_300, true), (4_000, false)],
                &[(2_050, on(2_000)), (4_500, off(4_500))],
            ),
            (
                "triggered again in the last moment of hold",
                false,
                &[(2_000, true), (3_000, false), (3_499, true), (4_000, false)],
                &[(2_050, on(2_000)), (4_500, off(4_500))],
            ),
            (
                "triggered again just after hold",
                false,
                &[(2_000, true), (3_000, false), (3_500, true), (4_000, false)],
                &[(2_050, on(2_000)), (3_500, off(3_500)), (3_550, on(3_500)), (4_500, off(4_500))],
            ),
            (
                "a spike at the end of hold does not extend it",
                false,
                &[(2_000, true), (3_000, false), (3_490, true), (3_495, false)],
                &[(2_050, on(2_000)), (3_545, off(3_500))],
            ),
            (
                "stuck is reported once and cleared",
                false,
                &[(2_000, true), (13_000, false)],
                &[(2_050, on(2_000)), (12_000, Stuck { since: 2_000 }), (13_050, NotStuck), (13_500, off(13_500))],
            ),
        ];
        for (name, start, levels, expected) in table {
            let expected: Vec<_> = WARM.iter().chain(*expected).copied().collect();
            assert_eq!(story(TIMING, *start, levels, 20_000), expected, "{name}");
        }
    }

    #[test]
    fn the_level_at_the_end_of_warm_up_decides() {
        let during = story(TIMING, false, &[(400, true), (2_000, false)], 5_000);
        assert_eq!(during, [(1_000, WarmUpOver), (1_000, on(1_000)), (2_500, off(2_500))]);
        let from_the_start = story(TIMING, true, &[(600, false)], 5_000);
        assert_eq!(from_the_start, [(1_000, WarmUpOver), (1_000, off(1_000))]);
        let across = story(TIMING, false, &[(980, true), (2_000, false)], 5_000);
        assert_eq!(across, [(1_000, WarmUpOver), (1_000, off(1_000)), (1_030, on(1_000)), (2_500, off(2_500))]);
    }

    #[test]
    fn without_warm_up_and_debounce_everything_is_at_once() {
        let timing = Timing { warm_up: 0, debounce: 0, hold: 0, stuck_after: 1_000_000 };
        let done = story(timing, true, &[(5, false), (6, true), (7, false)], 100);
        assert_eq!(done, [(0, WarmUpOver), (0, on(0)), (5, off(5)), (6, on(6)), (7, off(7))]);
    }

    #[test]
    fn noise_that_never_ends_does_not_keep_motion_on() {
        let levels: Vec<_> =
            [(2_000, true)].into_iter().chain((0..200).map(|i| (3_000 + i * 20, i % 2 == 1))).collect();
        let done = story(TIMING, false, &levels, 20_000);
        assert_eq!(done[2], (2_050, on(2_000)));
        assert!(done.len() == 4 || done.len() == 6, "{done:?}");
    }

    #[derive(Clone, Debug)]
    struct Random {
        timing: Timing,
        start: bool,
        levels: Vec<(u64, bool)>,
    }

    fn random() -> impl Strategy<Value = Random> {
        let timing = (0..3_000u64, 0..100u64, 0..1_000u64, 100..20_000u64)
            .prop_map(|(warm_up, debounce, hold, stuck_after)| Timing { warm_up, debounce, hold, stuck_after });
        let gaps = prop::collection::vec(prop_oneof![1..30u64, 30..150u64, 150..3_000u64], 0..40);
        (timing, any::<bool>(), gaps).prop_map(|(timing, start, gaps)| {
            let mut at = 0;
            let mut level = start;
            let levels = gaps.into_iter().map(|gap| {
                at += gap;
                level = !level;
                (at, level)
            });
            Random { timing, start, levels: levels.collect() }
        })
    }

    /// The debounced level as a list of changes, computed in a simple way: a change counts when the line has been quiet for
    /// `debounce` after it, and has the time of the first change since the last one that counted.
    fn debounced(random: &Random) -> Vec<(u64, bool)> {
        let mut believed = vec![(0, random.start)];
        let mut first = None;
        for (i, &(at, level)) in random.levels.iter().enumerate() {
            let first_at = *first.get_or_insert(at);
            let quiet = random.levels.get(i + 1).is_none_or(|next| next.0 >= at + random.timing.debounce);
            if quiet {
                first = None;
                if level != believed[believed.len() - 1].1 {
                    believed.push((first_at, level));
                }
            }
        }
        believed
    }

    fn published(done: &[(u64, MotionAction)]) -> Vec<(u64, bool, u64)> {
        let state = |&(at, action): &(u64, MotionAction)| match action {
            Publish { on, since } => Some((at, on, since)),
            _ => None,
        };
        done.iter().filter_map(state).collect()
    }

    proptest! {
        #[test]
        fn states_alternate_and_times_go_forward(random in random()) {
            let states = published(&story(random.timing, random.start, &random.levels, 200_000));
            for pair in states.windows(2) {
                prop_assert_ne!(pair[0].1, pair[1].1);
                prop_assert!(pair[0].2 <= pair[1].2 && pair[0].0 <= pair[1].0);
            }
            prop_assert!(states.iter().all(|(at, _, since)| since <= at && *at >= random.timing.warm_up));
        }

        #[test]
        fn never_on_without_an_active_level(random in random()) {
            let believed = debounced(&random);
            for (_, on, since) in published(&story(random.timing, random.start, &random.levels, 200_000)) {
                // a level that began within the last hold may count only after the "off"
                let active = |&(at, level): &(u64, bool)| level && at <= since;
                prop_assert!(!on || believed.iter().any(active), "{believed:?} {since}");
            }
        }

        #[test]
        fn off_comes_hold_after_the_last_active_level(random in random()) {
            let believed = debounced(&random);
            let states = published(&story(random.timing, random.start, &random.levels, 200_000));
            for (_, _, since) in states.iter().skip(1).filter(|state| !state.1) {
                let ended = believed.iter().rev().find(|(at, level)| !level && *at + random.timing.hold <= *since);
                let exact = ended.is_some_and(|(at, _)| at + random.timing.hold == *since);
                // a hold that would end before the warm-up, or before the previous state, ends together with it
                let clamped = *since == random.timing.warm_up || states.iter().any(|(_, on, at)| *on && at == since);
                prop_assert!(exact || clamped, "{believed:?} {states:?}");
            }
        }

        #[test]
        fn after_quiet_the_state_is_the_level(random in random()) {
            let last = random.levels.last().map_or(random.start, |last| last.1);
            let done = story(random.timing, random.start, &random.levels, 200_000);
            prop_assert_eq!(published(&done).last().map(|state| state.1), Some(last));
            let stuck = done.iter().rev().find(|(_, action)| matches!(action, Stuck { .. } | NotStuck));
            prop_assert_eq!(stuck.is_some_and(|(_, action)| *action != NotStuck), last);
        }

        #[test]
        fn at_most_one_transition_per_change_of_level(random in random()) {
            let changes = debounced(&random).iter().filter(|(at, _)| *at + random.timing.debounce > random.timing.warm_up).count();
            let states = published(&story(random.timing, random.start, &random.levels, 200_000));
            prop_assert!(states.len() <= changes + 2, "{states:?}");
        }

        #[test]
        fn late_calls_change_nothing_but_the_delay(random in random(), late in 0..40u64) {
            let punctual = published(&story(random.timing, random.start, &random.levels, 200_000));
            // the time is reported only with the next level, or once a second
            let mut motion = Motion::new(random.timing, 0, 0, random.start);
            let mut actions = Vec::new();
            for &(at, level) in &random.levels {
                actions.extend(motion.level(level, at));
            }
            actions.extend(motion.time(200_000 + late));
            let done: Vec<_> = actions.into_iter().map(|action| (0, action)).collect();
            let states: Vec<_> = published(&done).into_iter().map(|(_, on, since)| (on, since)).collect();
            prop_assert_eq!(states, punctual.into_iter().map(|(_, on, since)| (on, since)).collect::<Vec<_>>());
        }
    }
}

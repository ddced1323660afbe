//! Elapsed time over boots, so that messages and sessions expire by time that has passed, whatever was done to the clock.
//!
//! Within a boot the boot clock says how much time has passed. Between two boots only the wall clock could, and a Pi has none of
//! its own. It is believed where both boots had it set by a source of time. Otherwise only what is known to have
//! passed counts: the time that boots in between were seen to run. So nothing expires early, and late by at most what
//! the gateway was off, or ran unnoted ([`NOTE_MS`]), without a clock that was set.

use std::collections::BTreeMap;

use bytes::BytesMut;

use super::format::{u32_at, u64_at};
use crate::message::Message;
use crate::message::fnv::hash;
use crate::time::{Clock, kernel_boot};

/// Boots that are remembered; a message of an older one counts as come in when the oldest of these began.
const MOST: usize = 64;
/// A wall clock that has been moved by less than this is not noted anew.
const TOLERANCE_MS: i64 = 1000;
/// While the clock is not set, it is noted this often how long a boot has run.
pub(crate) const NOTE_MS: u64 = 10 * 60 * 1000;
/// Bits of a stamp that hold the boot clock: enough for a century.
const STAMP_BITS: u32 = 42;

/// A boot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Boot {
    /// Hash of the kernel's boot id.
    pub(crate) id: u64,
    /// Unix time minus boot clock, in milliseconds, by the latest knowledge.
    pub(crate) offset_ms: i64,
    /// Whether that was known from a source of time.
    pub(crate) is_synchronised: bool,
    /// Boot clock, in milliseconds, when it was noted last: it has run for at least so long.
    pub(crate) seen_ms: u64,
}

impl Boot {
    /// What the clock says of the boot we are in. Once it was set, only a source of time changes what is known.
    fn now(&self, clock: &dyn Clock) -> Boot {
        let boot_ms = clock.boot_ms();
        let seen_ms = boot_ms.max(self.seen_ms);
        let is_synchronised = clock.is_kept_right();
        if self.is_synchronised && !is_synchronised {
            return Boot { seen_ms, ..*self };
        }
        Boot { id: self.id, offset_ms: clock.unix_ms() - boot_ms as i64, is_synchronised, seen_ms }
    }
}

/// No clock is that far from right, and nobody boots that often.
const LONGEST_MS: u64 = 1 << 52;
const MOST_BOOTS: u32 = 1 << 31;

/// Length of a boot in a table; its `seen_ms` stands behind everything else there, since it came later.
pub(crate) const BOOT_LEN: usize = 32;

/// Appends a boot as records hold it.
pub(crate) fn encode_boot(number: u32, boot: &Boot, out: &mut Vec<u8>) {
    for value in [u64::from(number), boot.id, boot.offset_ms as u64, u64::from(boot.is_synchronised), boot.seen_ms] {
        out.extend_from_slice(&value.to_le_bytes());
    }
}

/// Reads what [`encode_boot`] has written.
pub(crate) fn decode_boot(bytes: &[u8]) -> Option<(u32, Boot)> {
    let boot = Boot {
        id: u64_at(bytes, 8),
        offset_ms: (u64_at(bytes, 16) as i64).clamp(-(LONGEST_MS as i64), LONGEST_MS as i64),
        is_synchronised: u64_at(bytes, 24) == 1,
        // 0 beyond the end: earlier versions did not note it
        seen_ms: u64_at(bytes, 32).min(LONGEST_MS),
    };
    let number = u32_at(bytes, 0);
    (bytes.len() >= BOOT_LEN && number <= MOST_BOOTS).then_some((number, boot))
}

/// All boots that records in the log may come from.
#[derive(Clone, Debug, Default)]
pub(crate) struct Boots {
    /// By number.
    known: BTreeMap<u32, Boot>,
    /// The one we are in.
    current: u32,
    /// The record that says so is written.
    is_noted: bool,
}

impl Boots {
    /// Those that a snapshot knows.
    pub(crate) fn of(known: BTreeMap<u32, Boot>) -> Boots {
        Boots { known, ..Boots::default() }
    }

    /// The log knows more of a boot.
    pub(crate) fn learn(&mut self, number: u32, boot: Boot) {
        self.known.insert(number, boot);
    }

    /// All of them, by number.
    pub(crate) fn known(&self) -> &BTreeMap<u32, Boot> {
        &self.known
    }

    /// Number of the one we are in.
    pub(crate) fn number(&self) -> u32 {
        self.current
    }

    /// We are in the boot with this id.
    pub(crate) fn enter(&mut self, id: u64) {
        let same = self.known.iter().find(|(_, boot)| boot.id == id).map(|(number, _)| *number);
        self.current = same.unwrap_or_else(|| self.known.keys().next_back().map_or(1, |last| last + 1));
        self.known.entry(self.current).or_default().id = id;
        while self.known.len() > MOST {
            self.known.pop_first();
        }
        self.is_noted = false;
    }

    fn current(&self) -> Boot {
        self.known.get(&self.current).copied().unwrap_or_default()
    }

    /// Whether the clock is known to have been set in this boot.
    pub(crate) fn is_set(&self) -> bool {
        self.current().is_synchronised
    }

    /// Whether what the clock says is what was noted, apart from how long the boot has run.
    fn is_same(&self, clock: &dyn Clock) -> bool {
        let (was, is) = (self.current(), self.current().now(clock));
        self.is_noted
            && was.is_synchronised == is.is_synchronised
            && (was.offset_ms - is.offset_ms).abs() < TOLERANCE_MS
    }

    /// Whether it was noted lately how long the boot has run.
    fn is_fresh(&self, clock: &dyn Clock) -> bool {
        clock.boot_ms() < self.current().seen_ms + NOTE_MS
    }

    /// Whether there is nothing that is worth a write of its own. While the clock is set, how long a boot has run is not.
    pub(crate) fn is_known(&self, clock: &dyn Clock) -> bool {
        self.is_same(clock) && (self.current().is_synchronised || self.is_fresh(clock))
    }

    /// Looks at the clock, since something is written anyway; says whether what is known of this boot should be.
    pub(crate) fn observe(&mut self, clock: &dyn Clock) -> Option<Boot> {
        if self.is_same(clock) && self.is_fresh(clock) {
            return None;
        }
        let boot = self.current().now(clock);
        self.known.insert(self.current, boot);
        self.is_noted = true;
        Some(boot)
    }

    /// Milliseconds from the beginning of a boot to that of the current one, at least.
    fn since_begin_of(&self, number: u32, clock: &dyn Clock) -> u64 {
        let current = self.current().now(clock);
        // from each boot on, newest first; and of those with a set clock, when they began by it
        let mut least = 0;
        let mut set: Vec<(i64, u64)> = Vec::new();
        if current.is_synchronised {
            set.push((current.offset_ms, 0));
        }
        for (at, boot) in self.known.range(..self.current).rev() {
            least += boot.seen_ms;
            if boot.is_synchronised {
                let by_clock = set.iter().map(|(began, rest)| (began - boot.offset_ms).max(0) as u64 + rest);
                least = least.max(by_clock.max().unwrap_or(0));
                set.push((boot.offset_ms, least));
            }
            if *at <= number {
                break;
            }
        }
        least
    }

    /// When something happened in a boot, on the boot clock of the current one: before 0 if that was before it began. Never
    /// earlier than it may have been.
    fn moment(&self, number: u32, boot_ms: u64, clock: &dyn Clock) -> i64 {
        if number == self.current {
            return boot_ms as i64;
        }
        // of a boot that nobody remembers, not even the length is known
        let boot_ms = if self.known.contains_key(&number) { boot_ms as i64 } else { 0 };
        // whatever the clocks say, it was before this boot
        boot_ms.saturating_sub(self.since_begin_of(number, clock) as i64).min(0)
    }

    /// This moment, as a number below 0 that can be kept.
    pub(crate) fn stamp(&self, clock: &dyn Clock) -> i64 {
        let boot_ms = clock.boot_ms().min((1 << STAMP_BITS) - 1);
        -((i64::from(self.current) << STAMP_BITS) | boot_ms as i64)
    }

    /// Milliseconds that have passed since a stamp, at least.
    pub(crate) fn elapsed_since(&self, stamp: i64, clock: &dyn Clock) -> u64 {
        let Some(stamp) = stamp.checked_neg().filter(|stamp| *stamp > 0) else { return 0 };
        let (number, boot_ms) = ((stamp >> STAMP_BITS) as u32, stamp as u64 & ((1 << STAMP_BITS) - 1));
        u64::try_from(clock.boot_ms() as i64 - self.moment(number, boot_ms, clock)).unwrap_or(0)
    }

    /// A message of the boot with this number, its time moved to the clock of this boot. That may be before this boot
    /// began: then it is less than 0, as a 64-bit number that wraps.
    pub(crate) fn translate(&self, bytes: &[u8], boot: u32, clock: &dyn Clock) -> Option<Message> {
        const TIME: std::ops::Range<usize> = 16..24;
        let message = Message::read(bytes)?;
        if boot == self.current {
            return Some(message);
        }
        // a message may itself be older than its boot, if a snapshot has moved it there: that is known and stays
        let kept = message.view().boot_ms() as i64;
        let then = if kept < 0 {
            kept.saturating_sub(self.since_begin_of(boot, clock) as i64)
        } else {
            self.moment(boot, kept as u64, clock)
        };
        let mut moved = BytesMut::from(message.view().as_bytes());
        moved[TIME].copy_from_slice(&(then as u64).to_le_bytes());
        Message::read(&moved)
    }
}

/// The kernel's name for this boot, as a number; where there is none, every start of the process counts as a boot.
pub(crate) fn kernel_boot_id() -> u64 {
    match kernel_boot() {
        Some(id) => hash(id.as_bytes()),
        None => {
            let mut random = [0; 8];
            // without randomness too, one boot for all is what is left
            let _ = getrandom::fill(&mut random);
            u64::from_le_bytes(random)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::time::TestClock;

    const HOUR: u64 = 3_600_000;

    /// What can happen to a machine.
    #[derive(Clone, Debug)]
    enum Event {
        /// Time passes, and the gateway writes something or not.
        Runs { ms: u64, writes: bool },
        /// A source of time sets the clock.
        Synchronised,
        /// Somebody moves it.
        Stepped { ms: i64 },
        /// The power is cut; the machine is off, and its clock begins anywhere.
        Cut { off_ms: u64, clock: i64 },
        /// Something is kept.
        Kept,
    }

    fn event() -> impl Strategy<Value = Event> {
        let month = 30 * 24 * HOUR as i64;
        prop_oneof![
            (0..48 * HOUR, any::<bool>()).prop_map(|(ms, writes)| Event::Runs { ms, writes }),
            Just(Event::Synchronised),
            (-month..month).prop_map(|ms| Event::Stepped { ms }),
            (0..200 * HOUR, -month..month).prop_map(|(off_ms, clock)| Event::Cut { off_ms, clock }),
            Just(Event::Kept),
        ]
    }

    /// A machine, and what really happened.
    struct Machine {
        clock: Arc<TestClock>,
        truth: u64,
        boots: Boots,
        /// What a power cut leaves.
        on_disk: BTreeMap<u32, Boot>,
        next_id: u64,
        /// Time until now that nothing could know of, growing: off without a clock, or on without a note.
        unknown: u64,
        since_note: u64,
    }

    impl Machine {
        fn new() -> Machine {
            let mut boots = Boots::default();
            boots.enter(1);
            let clock = TestClock::new(0, 0);
            Machine {
                clock,
                truth: 1_700_000_000_000,
                boots,
                on_disk: BTreeMap::new(),
                next_id: 2,
                unknown: 0,
                since_note: 0,
            }
        }

        /// Whoever writes, writes what the clock says first.
        fn write(&mut self) {
            if self.boots.observe(&*self.clock).is_some() {
                self.on_disk = self.boots.known.clone();
                self.since_note = 0;
            }
        }

        fn happens(&mut self, event: &Event) {
            match event {
                Event::Runs { ms, writes } => {
                    // the gateway looks at the clock all the while
                    for _ in 0..*ms / NOTE_MS {
                        self.pass(NOTE_MS);
                        if !self.boots.is_known(&*self.clock) {
                            self.write();
                        }
                    }
                    self.pass(ms % NOTE_MS);
                    if *writes {
                        self.write();
                    }
                }
                Event::Synchronised => {
                    self.clock.synchronise(self.truth as i64);
                    self.write();
                }
                Event::Stepped { ms } => self.clock.step(*ms),
                Event::Cut { off_ms, clock } => {
                    self.unknown += off_ms + self.since_note;
                    (self.truth, self.since_note) = (self.truth + off_ms, 0);
                    self.clock = TestClock::new(0, self.truth as i64 + clock);
                    self.boots = Boots { known: self.on_disk.clone(), ..Boots::default() };
                    self.boots.enter(self.next_id);
                    self.next_id += 1;
                }
                Event::Kept => self.write(),
            }
        }

        fn pass(&mut self, ms: u64) {
            self.truth += ms;
            self.since_note += ms;
            self.clock.advance(ms);
        }
    }

    proptest! {
        #[test]
        fn nothing_expires_early_and_nothing_later_than_nobody_can_know(events in prop::collection::vec(event(), 1..30)) {
            let mut machine = Machine::new();
            let mut kept: Vec<(i64, u64, u64)> = Vec::new();
            for event in &events {
                machine.happens(event);
                if let Event::Kept = event {
                    kept.push((machine.boots.stamp(&*machine.clock), machine.truth, machine.unknown));
                }
                for (stamp, truth, unknown) in &kept {
                    let (elapsed, passed) = (machine.boots.elapsed_since(*stamp, &*machine.clock), machine.truth - truth);
                    prop_assert!(elapsed <= passed + TOLERANCE_MS as u64, "early: {elapsed} of {passed}, {events:?}");
                    let unknown = machine.unknown - unknown;
                    prop_assert!(elapsed + unknown + NOTE_MS >= passed, "late: {elapsed} + {unknown} of {passed}");
                }
            }
        }
    }

    #[test]
    fn boots_with_a_set_clock_are_compared_by_it() {
        let mut machine = Machine::new();
        let hours = |hours: u64| Event::Runs { ms: hours * HOUR, writes: true };
        // the clock is three weeks behind at boot; a client leaves; then the network sets it
        machine.happens(&Event::Stepped { ms: -21 * 24 * HOUR as i64 });
        machine.happens(&Event::Kept);
        let stamp = machine.boots.stamp(&*machine.clock);
        for event in [hours(1), Event::Synchronised, hours(1)] {
            machine.happens(&event);
        }
        let elapsed = |machine: &Machine| machine.boots.elapsed_since(stamp, &*machine.clock) / HOUR;
        assert_eq!(elapsed(&machine), 2, "a step is no time that passed");
        machine.happens(&Event::Cut { off_ms: 10 * HOUR, clock: -500 * HOUR as i64 });
        machine.happens(&hours(1));
        assert_eq!(elapsed(&machine), 3, "nobody knows how long it was off");
        machine.happens(&Event::Synchronised);
        assert_eq!(elapsed(&machine), 13, "until the clock is set");
        machine.happens(&Event::Stepped { ms: 900 * HOUR as i64 });
        machine.happens(&hours(1));
        assert_eq!(elapsed(&machine), 14);
    }

    #[test]
    fn what_earlier_versions_wrote_has_an_unknown_age() {
        let machine = Machine::new();
        assert_eq!(machine.boots.elapsed_since(1_700_000_000_000, &*machine.clock), 0);
        assert_eq!(machine.boots.elapsed_since(i64::MIN, &*machine.clock), 0);
    }
}

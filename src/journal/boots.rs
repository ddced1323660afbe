//! Measures elapsed time over boots, so that messages and sessions expire by time that has passed, whatever was done to the
//! clock.
//!
//! Within a boot the boot clock measures time. Between two boots only the wall clock could, and a Pi has no battery-backed
//! one. It is believed if a time source had set it in both boots. Otherwise only time that is known to have passed counts:
//! the time for which boots in between were seen to run. So nothing expires early. It expires late by at most the time for
//! which the gateway was off, or ran without a record ([`NOTE_MS`]), without a clock that was set.

use std::collections::BTreeMap;

use bytes::BytesMut;

use super::format::{u32_at, u64_at};
use crate::message::Message;
use crate::message::fnv::hash;
use crate::time::{Clock, kernel_boot};

/// The number of boots that are remembered. A message of an older boot counts as if it had arrived when the oldest of these
/// began.
const MOST: usize = 64;
/// A wall clock that was moved by less than this is not recorded again.
const TOLERANCE_MS: i64 = 1000;
/// The interval at which the length of a boot is recorded while the clock is not set.
pub(crate) const NOTE_MS: u64 = 10 * 60 * 1000;
/// The bits of a stamp for the boot clock, which are enough for a century.
const STAMP_BITS: u32 = 42;

/// What is known about one boot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Boot {
    /// A hash of the kernel's boot id.
    pub(crate) id: u64,
    /// Unix time minus boot clock in milliseconds, by the latest knowledge.
    pub(crate) offset_ms: i64,
    /// Whether a time source had set the clock.
    pub(crate) is_synchronised: bool,
    /// The boot clock in milliseconds when the boot was last recorded. The boot has lasted at least as long.
    pub(crate) seen_ms: u64,
}

impl Boot {
    /// What the clock says about the present boot. Once it was set, only a time source changes that.
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

/// The limit of credible clocks: no clock is that wrong.
const LONGEST_MS: u64 = 1 << 52;
/// The highest number of a boot. It is the highest that fits into a stamp, and no gateway starts that often.
const MOST_BOOTS: u32 = (1 << (63 - STAMP_BITS)) - 1;

/// The length of a boot in a table. Its `seen_ms` comes after everything else, because it was added later.
pub(crate) const BOOT_LEN: usize = 32;

/// Appends a boot in the format of records.
pub(crate) fn encode_boot(number: u32, boot: &Boot, out: &mut Vec<u8>) {
    for value in [u64::from(number), boot.id, boot.offset_ms as u64, u64::from(boot.is_synchronised), boot.seen_ms] {
        out.extend_from_slice(&value.to_le_bytes());
    }
}

/// Decodes a boot from [`encode_boot`].
pub(crate) fn decode_boot(bytes: &[u8]) -> Option<(u32, Boot)> {
    let boot = Boot {
        id: u64_at(bytes, 8),
        offset_ms: (u64_at(bytes, 16) as i64).clamp(-(LONGEST_MS as i64), LONGEST_MS as i64),
        is_synchronised: u64_at(bytes, 24) == 1,
        // 0 after the end, because earlier versions did not record it
        seen_ms: u64_at(bytes, 32).min(LONGEST_MS),
    };
    let number = u32_at(bytes, 0);
    (bytes.len() >= BOOT_LEN && number <= MOST_BOOTS).then_some((number, boot))
}

/// All boots from which records in the log may come.
#[derive(Clone, Debug, Default)]
pub(crate) struct Boots {
    /// The boots by number.
    known: BTreeMap<u32, Boot>,
    /// The number of the present boot.
    current: u32,
    /// Whether the record about the present boot is written.
    is_noted: bool,
}

impl Boots {
    /// The boots of a snapshot.
    pub(crate) fn of(known: BTreeMap<u32, Boot>) -> Boots {
        Boots { known, ..Boots::default() }
    }

    /// Adds what the log knows of a boot.
    pub(crate) fn learn(&mut self, number: u32, boot: Boot) {
        self.known.insert(number, boot);
    }

    pub(crate) fn known(&self) -> &BTreeMap<u32, Boot> {
        &self.known
    }

    /// The number of the present boot.
    pub(crate) fn number(&self) -> u32 {
        self.current
    }

    /// Starts the boot with this id, unless it is the present one.
    pub(crate) fn enter(&mut self, id: u64) {
        // nobody but a stranger has written the highest number, and there must be one for this boot
        self.known.remove(&MOST_BOOTS);
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

    /// Whether the clock was set in this boot.
    pub(crate) fn is_set(&self) -> bool {
        self.current().is_synchronised
    }

    /// Whether the clock agrees with what was recorded, apart from the length of the boot.
    fn is_same(&self, clock: &dyn Clock) -> bool {
        let (was, is) = (self.current(), self.current().now(clock));
        self.is_noted
            && was.is_synchronised == is.is_synchronised
            && (was.offset_ms - is.offset_ms).abs() < TOLERANCE_MS
    }

    /// Whether the length of the boot was recorded recently.
    fn is_fresh(&self, clock: &dyn Clock) -> bool {
        clock.boot_ms() < self.current().seen_ms + NOTE_MS
    }

    /// Whether nothing is worth a write of its own. While the clock is set, the length of the boot is not.
    pub(crate) fn is_known(&self, clock: &dyn Clock) -> bool {
        self.is_same(clock) && (self.current().is_synchronised || self.is_fresh(clock))
    }

    /// Reads the clock, because something is written anyway. Returns the boot if it should be recorded.
    pub(crate) fn observe(&mut self, clock: &dyn Clock) -> Option<Boot> {
        if self.is_same(clock) && self.is_fresh(clock) {
            return None;
        }
        let boot = self.current().now(clock);
        self.known.insert(self.current, boot);
        self.is_noted = true;
        Some(boot)
    }

    /// The least number of milliseconds from the beginning of a boot to that of the present one.
    fn since_begin_of(&self, number: u32, clock: &dyn Clock) -> u64 {
        let current = self.current().now(clock);
        // for each boot, newest first, the recorded lengths and, with set clocks, the difference of their beginnings
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

    /// The time of an event in a boot, on the boot clock of the present boot; negative if that was before it began. It is
    /// never earlier than the real time may have been.
    fn moment(&self, number: u32, boot_ms: u64, clock: &dyn Clock) -> i64 {
        if number == self.current {
            return boot_ms as i64;
        }
        // of a forgotten boot not even the length is known
        let boot_ms = if self.known.contains_key(&number) { boot_ms as i64 } else { 0 };
        // whatever the clocks say, it was before this boot
        boot_ms.saturating_sub(self.since_begin_of(number, clock) as i64).min(0)
    }

    /// The present moment as a negative number that can be stored.
    pub(crate) fn stamp(&self, clock: &dyn Clock) -> i64 {
        let boot_ms = clock.boot_ms().min((1 << STAMP_BITS) - 1);
        -((i64::from(self.current) << STAMP_BITS) | boot_ms as i64)
    }

    /// The least number of milliseconds since a stamp.
    pub(crate) fn elapsed_since(&self, stamp: i64, clock: &dyn Clock) -> u64 {
        let Some(stamp) = stamp.checked_neg().filter(|stamp| *stamp > 0) else { return 0 };
        let (number, boot_ms) = ((stamp >> STAMP_BITS) as u32, stamp as u64 & ((1 << STAMP_BITS) - 1));
        u64::try_from(clock.boot_ms() as i64 - self.moment(number, boot_ms, clock)).unwrap_or(0)
    }

    /// A message of the boot with this number, with its time converted to the clock of this boot. A time before this boot is
    /// negative, as a 64-bit number that wraps around.
    pub(crate) fn translate(&self, bytes: &[u8], boot: u32, clock: &dyn Clock) -> Option<Message> {
        const TIME: std::ops::Range<usize> = 16..24;
        let message = Message::read(bytes)?;
        if boot == self.current {
            return Some(message);
        }
        // a message may be older than its boot if a snapshot has converted it; that is known and stays
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

/// A number for the kernel's boot id. Without one, every start of the process counts as a boot.
pub(crate) fn kernel_boot_id() -> u64 {
    match kernel_boot() {
        Some(id) => hash(id.as_bytes()),
        None => {
            let mut random = [0; 8];
            // without randomness too, all starts count as one boot
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

    #[test]
    fn a_number_of_a_stranger_does_not_make_what_is_written_unreadable() {
        for number in [MOST_BOOTS - 1, MOST_BOOTS] {
            let mut boots = Boots::default();
            boots.learn(3, Boot { id: 30, ..Boot::default() });
            boots.learn(number, Boot { id: 40, ..Boot::default() });
            for id in 50..53 {
                boots.enter(id);
                assert_eq!(boots.known()[&boots.number()].id, id);
                for (number, boot) in boots.known() {
                    let mut record = Vec::new();
                    encode_boot(*number, boot, &mut record);
                    assert_eq!(decode_boot(&record), Some((*number, *boot)));
                }
                let stamp = boots.stamp(&*TestClock::new(0, 5000));
                assert!(stamp < 0 && (-stamp >> STAMP_BITS) as u32 == boots.number());
            }
        }
    }

    /// The events of a simulated machine.
    #[derive(Clone, Debug)]
    enum Event {
        /// Time passes, and the gateway may write something.
        Runs { ms: u64, writes: bool },
        /// A time source sets the clock.
        Synchronised,
        /// A person moves the clock.
        Stepped { ms: i64 },
        /// The power is cut; the machine is off for a while, and its clock then starts anywhere.
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

    /// A simulated machine, with what really happened.
    struct Machine {
        clock: Arc<TestClock>,
        truth: u64,
        boots: Boots,
        /// What remains after a power cut.
        on_disk: BTreeMap<u32, Boot>,
        next_id: u64,
        /// The growing time that nothing could know of: off without a clock, or on without a record.
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

        /// Every write also writes what the clock says, and first.
        fn write(&mut self) {
            if self.boots.observe(&*self.clock).is_some() {
                self.on_disk = self.boots.known.clone();
                self.since_note = 0;
            }
        }

        fn happens(&mut self, event: &Event) {
            match event {
                Event::Runs { ms, writes } => {
                    // the gateway reads the clock all the time
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
        // the clock is three weeks late at boot, a client leaves, and then the network sets the clock
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

//! What the boot clock meant in each boot, so that times of messages stay right when the machine has been restarted.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};

use crate::message::Message;
use crate::time::Clock;

/// Boots that are remembered; a message of an older one counts as come in when that boot began.
const MOST: usize = 64;
/// A wall clock that has been moved by less than this is not noted anew.
const TOLERANCE_MS: i64 = 1000;

/// A boot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Boot {
    /// Hash of the kernel's boot id.
    pub id: u64,
    /// Unix time minus boot clock, in milliseconds, by the latest knowledge.
    pub offset_ms: i64,
    /// Whether that was known from a source of time.
    pub is_synchronised: bool,
}

/// All boots that records in the log may come from.
#[derive(Clone, Debug, Default)]
pub struct Boots {
    /// By number.
    pub known: BTreeMap<u32, Boot>,
    /// The one we are in.
    pub current: u32,
    /// The record that says so is written.
    pub is_noted: bool,
}

impl Boots {
    /// We are in the boot with this id.
    pub fn enter(&mut self, id: u64) {
        let same = self.known.iter().find(|(_, boot)| boot.id == id).map(|(number, _)| *number);
        self.current = same.unwrap_or_else(|| self.known.keys().next_back().map_or(1, |last| last + 1));
        self.known.entry(self.current).or_default().id = id;
        while self.known.len() > MOST {
            self.known.pop_first();
        }
        self.is_noted = false;
    }

    /// Looks at the clock; says whether what is known of this boot should be written.
    pub fn observe(&mut self, clock: &dyn Clock) -> Option<Boot> {
        let offset_ms = clock.unix_ms() - clock.boot_ms() as i64;
        let is_synchronised = clock.is_synchronised();
        let boot = self.known.entry(self.current).or_default();
        let is_same = self.is_noted
            && (boot.offset_ms - offset_ms).abs() < TOLERANCE_MS
            && boot.is_synchronised == is_synchronised;
        if is_same {
            return None;
        }
        (boot.offset_ms, boot.is_synchronised) = (offset_ms, is_synchronised);
        self.is_noted = true;
        Some(*boot)
    }

    /// A message of the boot with this number, its time moved to the clock of this boot. That may be before this boot
    /// began: then it is less than 0, as a 64-bit number that wraps.
    pub fn translate(&self, bytes: &[u8], boot: u32, clock: &dyn Clock) -> Option<Message> {
        const TIME: std::ops::Range<usize> = 16..24;
        let message = Message::from_bytes(Bytes::copy_from_slice(bytes))?;
        if boot == self.current {
            return Some(message);
        }
        let now_offset = clock.unix_ms() - clock.boot_ms() as i64;
        let shift = self.known.get(&boot).map_or(0, |boot| boot.offset_ms - now_offset);
        // time does not run backwards: whatever the clocks say, it came in before now
        let then = (message.view().boot_ms() as i64).saturating_add(shift).min(clock.boot_ms() as i64);
        let mut moved = BytesMut::from(message.view().as_bytes());
        moved[TIME].copy_from_slice(&(then as u64).to_le_bytes());
        Message::from_bytes(moved.freeze())
    }
}

/// The kernel's name for this boot, as a number; where there is none, every start of the process counts as a boot.
pub fn kernel_boot_id() -> u64 {
    match std::fs::read("/proc/sys/kernel/random/boot_id") {
        Ok(id) => super::hash(&id),
        Err(_) => {
            let mut random = [0; 8];
            // without randomness too, one boot for all is what is left
            let _ = getrandom::fill(&mut random);
            u64::from_le_bytes(random)
        }
    }
}

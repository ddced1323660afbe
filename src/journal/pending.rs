//! Records that were appended and are not on disk yet.

use std::time::{Duration, Instant};

use super::format::RecordKind;
use super::record::{self, RecordDraft};
use super::{LAZY, PENDING_MAX, Position};
use crate::access::quota;
use crate::message::Owner;

/// A disk that has not responded for this long counts as failing.
const STANDS_STILL: Duration = Duration::from_secs(20);
/// The number of waiting bytes that are written at once, even if nobody waits for them.
const WORTH_A_WRITE: usize = 1 << 20;

/// What a waiting record is for. Each purpose has room of its own, so that no number of records for one of them keeps out
/// those for another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Messages at QoS 0, for which no publisher waits.
    Unasked,
    /// Messages at QoS 1 and 2.
    Asked,
    /// Sessions, other values, and consumers.
    Sessions,
    /// Steps of QoS 2 exchanges.
    Steps,
    /// What the journal writes of its own accord. It has bounds of its own.
    Own,
}

const PURPOSES: usize = Purpose::Own as usize + 1;
/// The purposes that are messages. They come first.
const OF_MESSAGES: usize = Purpose::Asked as usize + 1;

impl Purpose {
    /// The most waiting bytes.
    const fn most(self) -> usize {
        match self {
            Purpose::Unasked | Purpose::Sessions => PENDING_MAX / 2,
            Purpose::Asked => PENDING_MAX,
            Purpose::Steps => PENDING_MAX / 4,
            Purpose::Own => usize::MAX,
        }
    }
}

/// The records that wait to be written, and those that are being written.
#[derive(Debug, Default)]
pub(crate) struct Pending {
    /// The position of the newest record.
    newest: u64,
    /// The records, without their CRCs.
    bytes: Vec<u8>,
    /// The length of the records for each purpose.
    lengths: [usize; PURPOSES],
    /// The length of the messages of each owner; empty while there are none.
    of_owners: Vec<[usize; OF_MESSAGES]>,
    /// When they must be written; `None` if they can wait for a record that has a time.
    due: Option<Instant>,
    /// The bytes that are being written.
    writing: usize,
    /// When the writing thread last made progress, while it writes.
    writing_since: Option<Instant>,
}

impl Pending {
    /// Lets the next record have a higher position than this one.
    pub(crate) fn begin_after(&mut self, place: u64) {
        self.newest = place;
    }

    pub(crate) fn newest(&self) -> Position {
        Position(self.newest)
    }

    /// Whether there is room for `len` bytes more. One record has room however large it is.
    pub(crate) fn has_room(&self, purpose: Purpose, len: usize) -> bool {
        let waiting = self.lengths[purpose as usize];
        waiting == 0 || waiting + len <= purpose.most()
    }

    /// Whether there is room for a message of `len` bytes of this owner. Whoever has most is refused first. The gateway's own
    /// messages, such as those of sensors, have room whatever others have.
    pub(crate) fn has_room_for(&self, owner: Owner, purpose: Purpose, len: usize) -> bool {
        let (of_all, most) = (self.lengths[purpose as usize] + len, purpose.most());
        let of_owner = self.of_owners.get(owner.index()).map_or(0, |lengths| lengths[purpose as usize]);
        let fits = match owner {
            Owner::HOUSE => of_owner + len <= most,
            _ => quota::has_room(of_owner + len, of_all, most / 5 * 4),
        };
        fits || of_owner == 0 && of_all <= most || of_all == len
    }

    /// Adds a message of this owner, see [`Pending::push`].
    pub(crate) fn push_message(
        &mut self,
        (owner, purpose): (Owner, Purpose),
        (kind, flags, boot): (RecordKind, u8, u32),
        consumers: impl ExactSizeIterator<Item = (u64, u64)>,
        body: &[&[u8]],
    ) -> Position {
        let begin = self.bytes.len();
        let position = self.push(purpose, (kind, flags, boot), consumers, body);
        if self.of_owners.is_empty() {
            self.of_owners.resize(Owner::COUNT, [0; OF_MESSAGES]);
        }
        self.of_owners[owner.index()][purpose as usize] += self.bytes.len() - begin;
        position
    }

    /// Whether more than half of the room for this purpose is used.
    pub(crate) fn is_crowded(&self, purpose: Purpose) -> bool {
        self.lengths[purpose as usize] > purpose.most() / 2
    }

    /// Adds a record, and returns its position.
    pub(crate) fn push(
        &mut self,
        purpose: Purpose,
        (kind, flags, boot): (RecordKind, u8, u32),
        consumers: impl ExactSizeIterator<Item = (u64, u64)>,
        body: &[&[u8]],
    ) -> Position {
        self.newest += 1;
        let begin = self.bytes.len();
        record::encode(&mut self.bytes, self.newest, &RecordDraft { kind, flags, boot, body }, consumers);
        self.lengths[purpose as usize] += self.bytes.len() - begin;
        if self.bytes.len() >= WORTH_A_WRITE {
            self.due_now();
        }
        Position(self.newest)
    }

    /// The number of waiting bytes.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// The bytes that wait or are being written.
    pub(crate) fn unsafe_bytes(&self) -> usize {
        self.bytes.len() + self.writing
    }

    pub(crate) fn due_now(&mut self) {
        self.due = Some(Instant::now());
    }

    pub(crate) fn due_later(&mut self) {
        self.due.get_or_insert_with(|| Instant::now() + LAZY);
    }

    /// Records that there is nothing for which [`Pending::due_later`] was called any more.
    pub(crate) fn not_due_later(&mut self) {
        if self.bytes.is_empty() {
            self.due = self.due.filter(|due| *due <= Instant::now());
        }
    }

    /// When the waiting records must be written, if that is set.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Gives the waiting records to the writing thread.
    pub(crate) fn take(&mut self, bytes: &mut Vec<u8>, now: Instant) {
        std::mem::swap(&mut self.bytes, bytes);
        self.lengths = Default::default();
        self.of_owners.fill([0; OF_MESSAGES]);
        (self.writing, self.writing_since, self.due) = (bytes.len(), Some(now), None);
    }

    /// Records that the writing thread has made progress.
    pub(crate) fn progressed(&mut self) {
        self.writing_since = self.writing_since.map(|_| Instant::now());
    }

    /// Records that everything taken is written.
    pub(crate) fn written(&mut self) {
        (self.writing, self.writing_since) = (0, None);
    }

    /// Whether the present write, if there is one, has made progress within this time.
    pub(crate) fn is_quick(&self, within: Duration) -> bool {
        self.writing_since.is_none_or(|since| since.elapsed() < within)
    }

    /// A text about a write that makes no progress.
    pub(crate) fn standing_still(&self) -> Option<String> {
        let seconds = self.writing_since.map(|since| since.elapsed()).filter(|since| *since >= STANDS_STILL)?.as_secs();
        Some(format!("the disk has not taken a write for {seconds} s: see dmesg; the card may be worn out"))
    }

    #[cfg(test)]
    pub(crate) fn is_quiet(&self) -> bool {
        self.writing == 0
    }

    #[cfg(test)]
    pub(crate) fn set_writing_since(&mut self, since: Option<Instant>) {
        self.writing_since = since;
    }
}

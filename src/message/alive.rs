//! How much memory the messages take that are on their way.
//!
//! Messages are shared, so what somebody holds says little of what that costs. What is made for the live way, and what is read
//! from the journal, is counted when it is made and until the last who has it lets go of it.

use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;

/// Memory is of the whole process, and so is this.
static ALIVE: AtomicUsize = AtomicUsize::new(0);

/// Bytes of messages on their way that anybody has.
pub(crate) fn alive() -> usize {
    ALIVE.load(Ordering::Relaxed)
}

/// Memory that is counted until it is given back.
struct CountedMemory<T: AsRef<[u8]>>(T);

impl<T: AsRef<[u8]>> AsRef<[u8]> for CountedMemory<T> {
    fn as_ref(&self) -> &[u8] {
        self.0.as_ref()
    }
}

impl<T: AsRef<[u8]>> Drop for CountedMemory<T> {
    fn drop(&mut self) {
        ALIVE.fetch_sub(self.0.as_ref().len(), Ordering::Relaxed);
    }
}

/// What is smaller is not counted: the count itself would take memory of its own. Queues have bounds by number for it.
const SMALL: usize = 256;

/// The same bytes, counted unless they are few, and ready to be shared.
pub(super) fn counted(bytes: impl AsRef<[u8]> + Into<Bytes> + Send + 'static) -> Bytes {
    if bytes.as_ref().len() < SMALL {
        return bytes.into();
    }
    ALIVE.fetch_add(bytes.as_ref().len(), Ordering::Relaxed);
    Bytes::from_owner(CountedMemory(bytes))
}

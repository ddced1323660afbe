//! Measures how much memory the messages on their way through the gateway use.
//!
//! Messages are shared, so the number of messages that a queue holds says little about their memory. The memory of batches
//! for live delivery, and of messages read from the journal, is counted from its allocation until the last user drops it.

use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;

/// A static counter, because memory belongs to the whole process.
static ALIVE: AtomicUsize = AtomicUsize::new(0);

/// Bytes of counted messages that are still in use.
pub(crate) fn alive() -> usize {
    ALIVE.load(Ordering::Relaxed)
}

/// Memory that is counted until it is dropped.
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

/// Messages smaller than this are not counted, because counting itself needs memory. The queues limit them by number.
const SMALL: usize = 256;

/// The same bytes, ready to be shared, and counted unless they are few.
pub(super) fn counted(bytes: impl AsRef<[u8]> + Into<Bytes> + Send + 'static) -> Bytes {
    if bytes.as_ref().len() < SMALL {
        return bytes.into();
    }
    ALIVE.fetch_add(bytes.as_ref().len(), Ordering::Relaxed);
    Bytes::from_owner(CountedMemory(bytes))
}

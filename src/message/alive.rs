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

/// Counts bytes until it is dropped.
#[derive(Debug)]
pub(crate) struct AliveBytes(usize);

impl AliveBytes {
    /// Counts this many bytes, unless they are few.
    pub(crate) fn new(bytes: usize) -> AliveBytes {
        let bytes = if bytes < SMALL { 0 } else { bytes };
        ALIVE.fetch_add(bytes, Ordering::Relaxed);
        AliveBytes(bytes)
    }
}

impl Drop for AliveBytes {
    fn drop(&mut self) {
        ALIVE.fetch_sub(self.0, Ordering::Relaxed);
    }
}

/// Memory that is counted until it is dropped.
struct CountedMemory<T: AsRef<[u8]>> {
    bytes: T,
    _alive: AliveBytes,
}

impl<T: AsRef<[u8]>> AsRef<[u8]> for CountedMemory<T> {
    fn as_ref(&self) -> &[u8] {
        self.bytes.as_ref()
    }
}

/// Messages smaller than this are not counted, because counting itself needs memory. The queues limit them by number.
const SMALL: usize = 256;

/// The same bytes, ready to be shared, and counted unless they are few.
pub(super) fn counted(bytes: impl AsRef<[u8]> + Into<Bytes> + Send + 'static) -> Bytes {
    if bytes.as_ref().len() < SMALL {
        return bytes.into();
    }
    let _alive = AliveBytes::new(bytes.as_ref().len());
    Bytes::from_owner(CountedMemory { bytes, _alive })
}

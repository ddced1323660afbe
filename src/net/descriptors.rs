//! Divides the descriptors of files and sockets that the system allows.
//!
//! Clients must not take the last one, because the journal needs some for new files, upstreams for new connections, and a
//! reload for what it reads. So an eighth of them is not for accepted connections: [`Port`](super::port::Port) closes the ones
//! that get such a descriptor. The kernel gives the lowest free number to each new descriptor, so a high number means that
//! all lower ones are in use.
//!
//! Of the others, a quarter is for HTTP at most and three quarters for MQTT, so that neither keeps the other out.

use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::LazyLock;

use rustix::process::{Resource, getrlimit};

/// The least and the greatest number that is kept back, whatever the limit is.
const KEPT_BACK: (usize, usize) = (64, 1024);

/// The limit, when it was first asked for, which is after it was raised.
static LIMIT: LazyLock<usize> = LazyLock::new(|| {
    let limit = getrlimit(Resource::Nofile).current;
    limit.and_then(|most| usize::try_from(most).ok()).unwrap_or(usize::MAX)
});

/// The number of descriptors that the system allows.
pub(crate) fn limit() -> usize {
    *LIMIT
}

/// How many of `limit` descriptors accepted connections may have.
fn of_connections(limit: usize) -> usize {
    limit - (limit / 8).clamp(KEPT_BACK.0, KEPT_BACK.1).min(limit / 2)
}

/// Whether an accepted connection may keep its descriptor.
pub(crate) fn may_keep(connection: BorrowedFd<'_>) -> bool {
    usize::try_from(connection.as_raw_fd()).is_ok_and(|number| number < of_connections(limit()))
}

/// How many descriptors connections by HTTP may have.
pub(crate) fn of_http() -> usize {
    of_connections(limit()) / 4
}

/// How many descriptors connections of MQTT clients may have.
pub(crate) fn of_mqtt() -> usize {
    of_connections(limit()) - of_http()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_are_always_kept_back() {
        for (limit, most) in [(16_384, 15_360), (1024, 896), (256, 192), (100, 50), (usize::MAX, usize::MAX - 1024)] {
            assert_eq!(of_connections(limit), most);
        }
    }
}

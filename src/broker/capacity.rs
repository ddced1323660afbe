//! How many clients the system lets the broker have.

use tracing::warn;

use crate::access::queue;
use crate::access::waiting::MOST;
use crate::net::descriptors;

/// How many more sockets than places there may be, because some wait for their CONNECT or for a password check, and some are
/// being closed.
pub(super) const UNSEATED: usize = 4 * MOST;
const _: () = assert!(MOST + queue::MOST < UNSEATED, "those who wait leave sockets for newcomers");

/// The number of clients that may be connected, if this many are configured: each needs a descriptor, and so do sockets
/// without a place. Of few descriptors, half are for clients that have a place.
pub(super) fn places(configured: usize) -> usize {
    places_of(descriptors::of_mqtt(), configured)
}

fn places_of(descriptors: usize, configured: usize) -> usize {
    configured.min(descriptors.saturating_sub(UNSEATED).max(descriptors / 2)).max(1)
}

/// Reports it if fewer clients may be connected than are configured.
pub(super) fn report(configured: usize) {
    let (most, limit) = (places(configured), descriptors::limit());
    if most < configured {
        warn!(
            configured,
            most,
            "fewer clients may be connected than broker.max_connections says, because the system allows only {limit} \
             descriptors: a higher LimitNOFILE allows more"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_no_more_places_than_descriptors() {
        for (descriptors, configured, most) in
            [(11_520, 10_000, 10_000), (11_520, 20_000, 10_496), (672, 256, 256), (672, 1000, 336), (1, 256, 1)]
        {
            assert_eq!(places_of(descriptors, configured), most);
        }
    }
}

//! What may be under way without an answer.

use crate::upstream::wire::Role;

/// Bytes of a backlog that may be under way: half a second on a line of 1 Mbit/s.
pub const BACKLOG_BYTES: usize = 64 << 10;

/// Whether there is room. A window that has been full is refilled when a quarter of it is free: if every single answer let
/// one message go, both sides would be woken for each, and at full speed that is most of the work.
#[derive(Debug, Default)]
pub(super) struct Window {
    was_full: [bool; 2],
}

impl Window {
    /// With a window of `size` messages, of which so many are in flight, so many bytes of them of a backlog.
    pub(super) fn has_room(&mut self, role: Role, size: usize, in_flight: usize, backlog_bytes: usize) -> bool {
        let (messages, bytes) = match role {
            Role::Live => (size, usize::MAX),
            // a part stays free for those that are live
            Role::Backlog if size > 1 => (size - (size / 8).max(1), BACKLOG_BYTES),
            Role::Backlog => (size, BACKLOG_BYTES),
        };
        if role == Role::Live && backlog_bytes > 0 {
            return in_flight < size; // what is live passes a backlog at once
        }
        let was_full = &mut self.was_full[role as usize];
        if in_flight >= messages || backlog_bytes >= bytes {
            *was_full = true;
        } else if in_flight <= messages - messages / 4 && backlog_bytes <= bytes - bytes / 4 {
            *was_full = false;
        }
        !*was_full
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_window_is_refilled_when_a_quarter_of_it_is_free() {
        let mut window = Window::default();
        for in_flight in 0..100 {
            assert!(window.has_room(Role::Live, 100, in_flight, 0));
        }
        for in_flight in (76..=100).rev() {
            assert!(!window.has_room(Role::Live, 100, in_flight, 0), "{in_flight}");
        }
        for in_flight in 75..100 {
            assert!(window.has_room(Role::Live, 100, in_flight, 0), "{in_flight}");
        }
    }

    #[test]
    fn a_small_window_is_refilled_at_once() {
        for size in 1..4 {
            let mut window = Window::default();
            assert!(!window.has_room(Role::Live, size, size, 0));
            assert!(window.has_room(Role::Live, size, size - 1, 0));
        }
    }

    #[test]
    fn a_backlog_leaves_room_for_what_is_live_and_is_bounded_in_bytes() {
        let mut window = Window::default();
        assert!(window.has_room(Role::Backlog, 100, 87, 0));
        assert!(!window.has_room(Role::Backlog, 100, 88, 0));
        assert!(window.has_room(Role::Live, 100, 88, 1));
        assert!(!window.has_room(Role::Live, 100, 100, 1) && window.has_room(Role::Live, 100, 99, 1));
        assert!(!window.has_room(Role::Backlog, 100, 67, 0));
        assert!(window.has_room(Role::Backlog, 100, 66, 0));
        assert!(!window.has_room(Role::Backlog, 100, 1, BACKLOG_BYTES));
        assert!(!window.has_room(Role::Backlog, 100, 1, BACKLOG_BYTES - 1));
        assert!(window.has_room(Role::Backlog, 100, 1, BACKLOG_BYTES * 3 / 4));
        assert!(window.has_room(Role::Backlog, 1, 0, 0) && !window.has_room(Role::Backlog, 1, 1, 0));
    }
}

//! A last will in memory, with its share of the memory for wills.

use std::ops::Deref;
use std::sync::Arc;

use crate::access::places::PlaceHolder;
use crate::access::quota::{Holding, Quota};
use crate::mqtt::Will;

/// Most bytes of wills of one user, or of all clients without a user name, those of absent clients included.
pub(super) const MAX_WILLS: usize = 8 << 20;

/// The bytes that a will needs for itself if its session has ended: sessions are bounded by their number, but not these.
const WITHOUT_SESSION: usize = 512;

/// A will that waits for the end of its connection, or for its delay.
#[derive(Debug)]
pub(crate) struct WaitingWill {
    will: Will,
    /// Gives the share back when the will is published or cancelled.
    held: Holding,
    /// Whether it waits although its session has ended.
    is_late: bool,
}

impl WaitingWill {
    /// Takes memory for a will. `None` if the holder has its share; `old` is the will that this one replaces.
    pub(super) fn hold(
        quota: &Arc<Quota>,
        holder: &PlaceHolder,
        will: Will,
        old: Option<&WaitingWill>,
    ) -> Option<WaitingWill> {
        let mut held = Holding::default();
        held.belongs_to(quota, holder.clone());
        let more = size(&will).saturating_sub(old.map_or(0, |old| size(old)));
        held.has_room(more).then(|| WaitingWill::of(will, held))
    }

    /// The same for a will of an earlier run, which had its share then.
    pub(super) fn kept(quota: &Arc<Quota>, holder: PlaceHolder, will: Will) -> WaitingWill {
        let mut held = Holding::default();
        held.belongs_to(quota, holder);
        WaitingWill::of(will, held)
    }

    fn of(will: Will, mut held: Holding) -> WaitingWill {
        held.add(size(&will));
        WaitingWill { will, held, is_late: false }
    }

    /// Takes memory for waiting without a session. `false` if the holder has its share.
    pub(super) fn may_wait_longer(&mut self) -> bool {
        if !self.is_late && self.held.has_room(WITHOUT_SESSION) {
            self.held.add(WITHOUT_SESSION);
            self.is_late = true;
        }
        self.is_late
    }
}

impl Deref for WaitingWill {
    type Target = Will;

    fn deref(&self) -> &Will {
        &self.will
    }
}

fn size(will: &Will) -> usize {
    will.topic.len() + will.payload.len() + will.properties.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Qos;

    #[test]
    fn a_will_takes_its_share_until_it_is_gone() {
        let will = |size: usize| Will {
            topic: "will".into(),
            payload: vec![0; size].into(),
            qos: Qos::AtMostOnce,
            retain: false,
            delay: 0,
            expiry: None,
            properties: [].into(),
        };
        let quota = Arc::new(Quota::new(1000));
        let ada = PlaceHolder::User("ada".into());
        let hold = |size, old: Option<&WaitingWill>| WaitingWill::hold(&quota, &ada, will(size), old);
        let first = hold(900, None).unwrap();
        assert!(hold(200, None).is_none() && quota.total() == 904);
        let second = hold(950, Some(&first)).unwrap();
        drop(first);
        assert_eq!(quota.total(), 954);
        let kept = WaitingWill::kept(&quota, ada.clone(), will(500));
        assert_eq!(quota.total(), 1458);
        drop(kept);
        let (mut second, mut first) = (second, hold(1, None).unwrap());
        assert!(!second.may_wait_longer(), "there is no room for it");
        drop(second);
        assert!(first.may_wait_longer() && first.may_wait_longer() && quota.total() == 5 + WITHOUT_SESSION);
        drop(first);
        assert_eq!(quota.total(), 0);
    }
}

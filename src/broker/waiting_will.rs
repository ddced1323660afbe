//! A last will in memory, with its share of the memory for wills.

use std::ops::Deref;
use std::sync::Arc;

use crate::access::places::PlaceHolder;
use crate::access::quota::{Holding, Quota};
use crate::mqtt::Will;

/// Most bytes of wills of one user, or of all clients without a user name, those of absent clients included.
pub(super) const MAX_WILLS: usize = 8 << 20;

/// A will that waits for the end of its connection, or for its delay.
#[derive(Debug)]
pub(crate) struct WaitingWill {
    will: Will,
    /// Gives the share back when the will is published or cancelled.
    _held: Holding,
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
        WaitingWill { will, _held: held }
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
        drop((second, kept));
        assert_eq!(quota.total(), 0);
    }
}

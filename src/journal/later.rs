//! What nobody waits for: the retained messages and values whose present state is not in the log yet.
//!
//! Only their names are noted here. Records of their state are made when something else is written, or after
//! [`super::LAZY`]. So what changes often is written once, what comes and goes in between is not written at all, and
//! neither takes room from records for which somebody waits. There are never more names than retained messages and values
//! that exist or that the log still has.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Something whose state is kept.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum LateSubject {
    /// The retained message of this topic.
    Retained(Arc<str>),
    /// The value with this name.
    Value(Arc<str>),
}

#[derive(Clone, Copy, Debug)]
struct Noted {
    place: u64,
    /// Whether the log has an older state.
    is_in_log: bool,
}

/// What is outdated in the log, in the order in which it was noted.
#[derive(Debug, Default)]
pub(crate) struct Later {
    places: BTreeMap<u64, LateSubject>,
    noted: HashMap<LateSubject, Noted>,
    next: u64,
}

impl Later {
    pub(crate) fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Notes a change. `existed` tells whether there was a state before, and `exists` whether there is one now. Returns
    /// whether it was not noted before and has to be written.
    pub(crate) fn note(&mut self, subject: LateSubject, existed: bool, exists: bool) -> bool {
        match self.noted.get(&subject) {
            Some(noted) => {
                if !noted.is_in_log && !exists {
                    self.forget(&subject);
                }
                false
            }
            None if !existed && !exists => false,
            None => {
                self.noted.insert(subject.clone(), Noted { place: self.next, is_in_log: existed });
                self.places.insert(self.next, subject);
                self.next += 1;
                true
            }
        }
    }

    /// Records that a record of the present state was made.
    pub(crate) fn forget(&mut self, subject: &LateSubject) {
        if let Some(noted) = self.noted.remove(subject) {
            self.places.remove(&noted.place);
        }
    }

    /// What was noted first.
    pub(crate) fn first(&self) -> Option<LateSubject> {
        self.places.first_key_value().map(|(_, subject)| subject.clone())
    }

    pub(crate) fn has(&self, subject: &LateSubject) -> bool {
        self.noted.contains_key(subject)
    }

    /// Records that the present state of everything may be on disk, in a snapshot.
    pub(crate) fn are_in_log(&mut self) {
        self.noted.values_mut().for_each(|noted| noted.is_in_log = true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_log_may_have_is_deleted_from_it() {
        let subject = |name: &str| LateSubject::Value(name.into());
        let mut later = Later::default();
        assert!(later.note(subject("a"), false, true) && later.note(subject("b"), true, true));
        assert!(!later.note(subject("c"), false, false), "it never was there");
        assert!(!later.note(subject("a"), true, false) && !later.note(subject("b"), true, false));
        assert_eq!(later.first(), Some(subject("b")), "a has come and gone");
        later.note(subject("a"), false, true);
        // a snapshot has a now
        later.are_in_log();
        later.note(subject("a"), true, false);
        assert!(later.has(&subject("a")));
        later.forget(&subject("b"));
        later.forget(&subject("a"));
        assert!(later.is_empty());
    }
}

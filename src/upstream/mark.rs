//! Records to which session at an upstream the steps of QoS 2 exchanges belong.
//!
//! A packet id has a meaning only in the session in which it was used. A session at another broker, or under another client
//! id, may be present as well and know nothing of these exchanges. So the journal records the session. It also records that
//! a CONNECT is unanswered, because the upstream tells only once, in its answer, that the session is new. If a crash or a
//! silence prevents that answer, nobody knows, and it is better to send messages twice than to lose them.

use bytes::Bytes;

use super::asked::session_name;
use super::settings::{UpstreamAddress, UpstreamSettings};
use crate::journal::{Full, Journal};

/// The prefix of the names of these records in the journal.
pub(super) const PREFIX: &str = "\0upstream/";

const EXACT: u8 = 1;
const DOUBTFUL: u8 = 2;

#[derive(Clone, Debug, PartialEq, Eq)]
struct KeptMark {
    session: String,
    /// Whether messages at QoS 2 were sent in the session, and packet ids are in use there only by messages in flight.
    is_exact: bool,
    /// Whether the session may have been replaced by a new one since.
    is_doubtful: bool,
}

impl KeptMark {
    fn decode(bytes: &[u8]) -> Option<KeptMark> {
        let (flags, session) = bytes.split_first()?;
        let session = String::from_utf8(session.to_vec()).ok()?;
        Some(KeptMark { session, is_exact: flags & EXACT != 0, is_doubtful: flags & DOUBTFUL != 0 })
    }

    fn encode(&self) -> Vec<u8> {
        let exact = if self.is_exact { EXACT } else { 0 };
        let doubtful = if self.is_doubtful { DOUBTFUL } else { 0 };
        [&[exact | doubtful][..], self.session.as_bytes()].concat()
    }
}

/// The record of one upstream.
#[derive(Debug)]
pub struct SessionMark {
    journal: Journal,
    name: String,
    kept: Option<KeptMark>,
    /// The record as it is in the journal.
    written: Bytes,
    /// The session that the next CONNECT asks for.
    wanted: String,
    has_steps: bool,
    /// Set after a CONNECT: whether there was a doubt before it.
    asked: Option<bool>,
}

impl SessionMark {
    /// Reads the record from the journal.
    pub(super) fn restore(journal: &Journal, upstream: &str) -> SessionMark {
        let name = format!("{PREFIX}{upstream}\0");
        let written = journal.kept(&name).into_iter().next().map(|(_, value)| value).unwrap_or_default();
        let (journal, kept, wanted) = (journal.clone(), KeptMark::decode(&written), String::new());
        SessionMark { journal, name, kept, written, wanted, has_steps: false, asked: None }
    }

    /// Sets the session to ask for. `has_steps` tells that something is recorded which would be wrong in a new session.
    pub(super) fn wants(&mut self, settings: &UpstreamSettings, address: &UpstreamAddress, has_steps: bool) {
        self.wanted = session_name(settings, address);
        self.has_steps = has_steps;
    }

    /// Records that a CONNECT is about to be sent, which must wait for this. If the disk is stuck, the caller may go on
    /// without it: a crash before the answer can then lose messages, but the connection does not depend on the disk.
    pub(super) async fn asks(&mut self) {
        let Some(kept) = self.kept.as_mut().filter(|kept| self.has_steps && kept.session == self.wanted) else {
            return;
        };
        self.asked.get_or_insert(kept.is_doubtful);
        kept.is_doubtful = true;
        if self.write().is_ok() {
            let (safe, mut synced) = (self.journal.barrier(), self.journal.synced());
            // this ends when the journal ends
            let _ = synced.wait_for(|synced| *synced >= safe).await;
        }
    }

    /// Records that the connection broke and that it is not known whether the upstream received the CONNECT.
    pub(super) fn is_unanswered(&mut self) {
        self.asked = None;
    }

    /// Handles the end of an attempt. `is_answered` tells that the upstream's state is known or has not changed.
    pub(super) fn asked(&mut self, is_answered: bool) {
        if let (Some(false), Some(kept), true) = (self.asked.take(), &mut self.kept, is_answered) {
            // in the journal the doubt stays until there is a connection, so that refused attempts do not wear out the disk
            kept.is_doubtful = false;
        }
    }

    /// Whether the recorded steps belong to another session than the one asked for.
    pub(super) fn is_foreign(&self, is_exact: bool) -> bool {
        self.kept.as_ref().is_none_or(|kept| kept.session != self.wanted || kept.is_exact != is_exact)
    }

    /// Whether the session asked for, if it is present, is the one of the recorded steps.
    pub(super) fn goes_on(&self, is_exact: bool) -> bool {
        !self.is_foreign(is_exact) && self.kept.as_ref().is_some_and(|kept| !kept.is_doubtful)
    }

    /// Whether messages at QoS 2 were sent in the session asked for, as far as is known.
    pub(super) fn was_exact(&self) -> bool {
        self.kept.as_ref().is_some_and(|kept| kept.session == self.wanted && kept.is_exact)
    }

    /// Whether messages at QoS 2 are sent in the session of the recorded steps; `None` if the session is unknown.
    pub(super) fn is_exact(&self) -> Option<bool> {
        self.kept.as_ref().map(|kept| kept.is_exact)
    }

    /// Assigns the steps to the session asked for. `is_doubtful` makes the next connection start anew nevertheless.
    pub(super) fn set(&mut self, is_exact: bool, is_doubtful: bool) -> Result<(), Full> {
        let before = self.kept.replace(KeptMark { session: self.wanted.clone(), is_exact, is_doubtful });
        let written = self.write();
        if written.is_err() {
            // a record that was not written must not be relied on
            self.kept = before;
        }
        written
    }

    fn write(&mut self) -> Result<(), Full> {
        let value = self.kept.as_ref().map(KeptMark::encode).unwrap_or_default();
        if self.written != value {
            self.journal.keep(&self.name, Some(&value), false)?;
            self.written = value.into();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::journal::settings::JournalSettings;
    use crate::journal::storage::memory::{Faults, MemoryStorage};
    use crate::journal::{Limits, Note, WhenFull};
    use crate::time::SystemClock;
    use crate::upstream::rule::tests::settings;

    fn wants(mark: &mut SessionMark, address: &str) {
        mark.wants(&settings(), &UpstreamAddress::parse(address).unwrap(), true);
    }

    #[tokio::test]
    async fn a_session_goes_on_only_where_the_steps_were_made() {
        let journal = Journal::default();
        let mut mark = SessionMark::restore(&journal, "home");
        wants(&mut mark, "mqtt://one");
        assert!(!mark.goes_on(true), "nothing is known");
        mark.set(true, false).unwrap();
        assert!(mark.goes_on(true) && !mark.goes_on(false));
        let mut mark = SessionMark::restore(&journal, "home");
        wants(&mut mark, "mqtt://two");
        assert!(!mark.goes_on(true) && mark.is_foreign(true), "another broker");
        let mut other = settings();
        other.client_id = "another".into();
        mark.wants(&other, &UpstreamAddress::parse("mqtt://one").unwrap(), true);
        assert!(!mark.goes_on(true), "another client id");
        wants(&mut mark, "mqtt://one");
        assert!(mark.goes_on(true));
        let mut of_another = SessionMark::restore(&journal, "hom");
        wants(&mut of_another, "mqtt://one");
        assert!(!of_another.goes_on(true), "another upstream");
    }

    #[test]
    fn what_could_not_be_written_is_not_so() {
        let storage = MemoryStorage::default();
        let clock = Arc::new(SystemClock);
        let journal = Journal::open(Arc::new(storage.clone()), JournalSettings::default(), clock).unwrap();
        let consumer = journal.register("upstream/home", Limits { messages: 1, bytes: 1, when_full: WhenFull::Refuse });
        let mut mark = SessionMark::restore(&journal, "home");
        wants(&mut mark, "mqtt://one");
        mark.set(true, false).unwrap();
        storage.set_faults(Faults { write: Some(5), ..Faults::NONE });
        journal.note(consumer, Note::Again(0)).unwrap();
        while journal.status().failing.is_none() {
            std::thread::yield_now();
        }
        while journal.note(consumer, Note::Again(0)).is_ok() {}
        let mut names = 0..;
        while journal.keep(&format!("{}", names.next().unwrap()), Some(&[0; 4096]), false).is_ok() {}
        while journal.keep(&format!("{}", names.next().unwrap()), Some(&[0]), false).is_ok() {}
        wants(&mut mark, "mqtt://two");
        assert!(mark.set(true, true).is_err() && mark.is_foreign(true));
        wants(&mut mark, "mqtt://one");
        assert!(mark.goes_on(true));
    }

    #[tokio::test]
    async fn after_a_connect_without_an_answer_nobody_knows() {
        let journal = Journal::default();
        let mut mark = SessionMark::restore(&journal, "home");
        wants(&mut mark, "mqtt://one");
        mark.set(true, false).unwrap();
        for (is_answered, goes_on) in [(true, true), (false, false), (true, false)] {
            mark.asks().await;
            let mut after_a_crash = SessionMark::restore(&journal, "home");
            wants(&mut after_a_crash, "mqtt://one");
            assert!(!after_a_crash.goes_on(true) && !after_a_crash.is_foreign(true));
            mark.asked(is_answered);
            assert_eq!(mark.goes_on(true), goes_on, "an answer does not end an earlier doubt");
        }
        mark.set(true, false).unwrap();
        assert!(mark.goes_on(true));
        let mut later = SessionMark::restore(&journal, "home");
        wants(&mut later, "mqtt://one");
        assert!(later.goes_on(true));
    }
}

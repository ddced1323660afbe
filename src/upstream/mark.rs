//! Which session at an upstream the steps of QoS 2 exchanges belong to.
//!
//! A packet id means something only to the session that it was used in: one of another broker, or under another client id,
//! may well be present, and knows nothing of ours. So the journal says whose the steps are. It also says while a CONNECT is
//! without its answer, because that answer may say that the session is a new one, once only: after a crash or a silence by
//! then, nobody knows, and messages that may come twice are better than messages that are lost.

use bytes::Bytes;

use super::settings::{UpstreamAddress, UpstreamSettings};
use crate::journal::{Full, Journal};

/// Beginning of the names of marks in the journal.
pub(super) const PREFIX: &str = "\0upstream/";

const EXACT: u8 = 1;
const DOUBTFUL: u8 = 2;

#[derive(Clone, Debug, PartialEq, Eq)]
struct KeptMark {
    session: String,
    /// It has had messages at QoS 2, and no packet id of theirs is in use there but by what is in flight.
    is_exact: bool,
    /// It may have been a new one since.
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

/// Whose the steps are, for one upstream.
#[derive(Debug)]
pub struct SessionMark {
    journal: Journal,
    name: String,
    kept: Option<KeptMark>,
    /// As it is in the journal.
    written: Bytes,
    /// The session that is asked for.
    wanted: String,
    has_steps: bool,
    /// There was a CONNECT; whether there was a doubt before.
    asked: Option<bool>,
}

impl SessionMark {
    /// As the journal has it.
    pub(super) fn restore(journal: &Journal, upstream: &str) -> SessionMark {
        let name = format!("{PREFIX}{upstream}\0");
        let written = journal.kept(&name).into_iter().next().map(|(_, value)| value).unwrap_or_default();
        let (journal, kept, wanted) = (journal.clone(), KeptMark::decode(&written), String::new());
        SessionMark { journal, name, kept, written, wanted, has_steps: false, asked: None }
    }

    /// The session at this address is to be asked for; `has_steps`: something is noted that a new session would make wrong.
    pub(super) fn wants(&mut self, settings: &UpstreamSettings, address: &UpstreamAddress, has_steps: bool) {
        let user = settings.username.as_deref().unwrap_or_default();
        self.wanted = format!("{address}\n{}\n{user}", settings.client_id);
        self.has_steps = has_steps;
    }

    /// CONNECT leaves when this is done. Where the disk takes nothing, whoever waits for it may go on without: then a crash
    /// by the time of the answer can lose messages, but an upstream is not given up for a disk.
    pub(super) async fn asks(&mut self) {
        let Some(kept) = self.kept.as_mut().filter(|kept| self.has_steps && kept.session == self.wanted) else {
            return;
        };
        self.asked.get_or_insert(kept.is_doubtful);
        kept.is_doubtful = true;
        if self.write().is_ok() {
            let (safe, mut synced) = (self.journal.barrier(), self.journal.synced());
            // it ends with the journal
            let _ = synced.wait_for(|synced| *synced >= safe).await;
        }
    }

    /// The connection broke, and whether the upstream has taken the CONNECT is not known.
    pub(super) fn is_unanswered(&mut self) {
        self.asked = None;
    }

    /// The attempt is over; `is_answered`: what the upstream knows is known, or is what it was.
    pub(super) fn asked(&mut self, is_answered: bool) {
        if let (Some(false), Some(kept), true) = (self.asked.take(), &mut self.kept, is_answered) {
            // in the journal the doubt stays until there is a connection: a refused one need not wear out the disk
            kept.is_doubtful = false;
        }
    }

    /// Whether the steps that the journal has are of another session than the one asked for.
    pub(super) fn is_foreign(&self, is_exact: bool) -> bool {
        self.kept.as_ref().is_none_or(|kept| kept.session != self.wanted || kept.is_exact != is_exact)
    }

    /// Whether the session asked for is the one that the steps belong to, given that it is present.
    pub(super) fn goes_on(&self, is_exact: bool) -> bool {
        !self.is_foreign(is_exact) && self.kept.as_ref().is_some_and(|kept| !kept.is_doubtful)
    }

    /// Whether messages at QoS 2 have gone up in the session asked for, as far as known.
    pub(super) fn was_exact(&self) -> bool {
        self.kept.as_ref().is_some_and(|kept| kept.session == self.wanted && kept.is_exact)
    }

    /// Whether messages at QoS 2 go up in the session that the steps belong to; `None`: it is not known whose they are.
    pub(super) fn is_exact(&self) -> Option<bool> {
        self.kept.as_ref().map(|kept| kept.is_exact)
    }

    /// From now on the steps are those of the session asked for; `is_doubtful`: the next connection begins anew all the same.
    pub(super) fn set(&mut self, is_exact: bool, is_doubtful: bool) -> Result<(), Full> {
        let before = self.kept.replace(KeptMark { session: self.wanted.clone(), is_exact, is_doubtful });
        let written = self.write();
        if written.is_err() {
            // what is not written holds for no connection
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

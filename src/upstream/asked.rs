//! Records the filters that an upstream's session may be subscribed to.
//!
//! A session keeps its subscriptions while there is no connection, and a restart may come with other rules. What the rules do not ask
//! for any more would come down and be dropped, for as long as the session lives. So the filters are recorded in the journal before they are
//! subscribed to, with the session in which they are, and what is in excess is unsubscribed from on the next connection.

use std::collections::BTreeSet;

use tracing::{info, warn};

use super::settings::{UpstreamAddress, UpstreamSettings};
use crate::journal::Journal;
use crate::message::{Qos, TopicFilter};

/// The prefix of the names of these records in the journal.
pub(super) const PREFIX: &str = "\0filters/";
/// Stands between filters, which do not contain it.
const BETWEEN: char = '\0';
/// The number of connections that an upstream may end at UNSUBSCRIBE.
const STRIKES: u32 = 2;

/// The name of a session: who is known by which name at which address.
pub(super) fn session_name(settings: &UpstreamSettings, address: &UpstreamAddress) -> String {
    let user = settings.username.as_deref().unwrap_or_default();
    format!("{address}\n{}\n{user}", settings.client_id)
}

/// The record of one upstream.
#[derive(Debug)]
pub(super) struct AskedRecord {
    journal: Journal,
    upstream: String,
    /// The name of the record of the session in use; `None` if the upstream forgets it with the connection.
    name: Option<String>,
    filters: BTreeSet<String>,
    /// The numbers of the unanswered UNSUBSCRIBEs on this connection, and what they name.
    leaving: Vec<(u32, Vec<String>)>,
    /// The number of UNSUBSCRIBEs on this connection.
    left: u32,
    /// The filters that the upstream refuses to give up.
    refused: BTreeSet<String>,
    strikes: u32,
}

impl AskedRecord {
    pub(super) fn new(journal: &Journal, upstream: &str) -> AskedRecord {
        let (journal, upstream) = (journal.clone(), upstream.to_owned());
        let (filters, refused) = (BTreeSet::new(), BTreeSet::new());
        AskedRecord { journal, upstream, name: None, filters, leaving: Vec::new(), left: 0, refused, strikes: 0 }
    }

    /// Handles a new connection.
    pub(super) fn connected(&mut self, settings: &UpstreamSettings, address: &UpstreamAddress, is_resumed: bool) {
        let begin = format!("{PREFIX}{}{BETWEEN}", self.upstream);
        let name = |address: &UpstreamAddress| format!("{begin}{}", session_name(settings, address));
        let possible: Vec<_> = settings.addresses.iter().map(name).collect();
        let name = Some(name(address)).filter(|_| !settings.clean_session);
        let (mut ours, mut others) = (None, BTreeSet::new());
        for (known, value) in self.journal.kept(&begin) {
            let filters = String::from_utf8_lossy(&value).split(BETWEEN).map(str::to_owned).collect::<BTreeSet<_>>();
            if name.as_deref() == Some(&*known) {
                ours = Some(filters);
            } else if name.is_some() && possible.iter().any(|name| **name == *known) {
                others.extend(filters);
            } else {
                // a record that stays now is deleted later
                let _ = self.journal.keep(&known, None, true);
            }
        }
        // a session of which there is no record may be one that several addresses have in common
        let filters = ours.unwrap_or(others);
        (self.name, self.filters) = (name, if is_resumed { filters } else { BTreeSet::new() });
        self.leaving.clear();
        self.left = 0;
    }

    /// What the session has and these subscriptions do not.
    pub(super) fn in_excess(&self, wanted: &[(TopicFilter, Qos)]) -> Vec<TopicFilter> {
        let is_wanted = |filter: &String| wanted.iter().any(|(wanted, _)| wanted.to_string() == **filter);
        let excess = self.filters.difference(&self.refused);
        let excess = excess.filter(|filter| self.strikes < STRIKES && !is_wanted(filter));
        excess.filter_map(|filter| TopicFilter::new(filter.as_str()).ok()).collect()
    }

    /// Records filters that are about to be subscribed to.
    pub(super) fn subscribes<'a>(&mut self, filters: impl Iterator<Item = &'a TopicFilter>) {
        let before = self.filters.len();
        for filter in filters.map(ToString::to_string) {
            self.leaving
                .iter_mut()
                .flat_map(|(_, names)| names)
                .filter(|left| **left == filter)
                .for_each(String::clear);
            self.refused.remove(&filter);
            self.filters.insert(filter);
        }
        if self.filters.len() > before {
            self.write();
        }
    }

    /// Records that these filters are about to be unsubscribed from.
    pub(super) fn unsubscribes(&mut self, filters: &[TopicFilter]) {
        self.leaving.push((self.left, filters.iter().map(ToString::to_string).collect()));
        self.left += 1;
    }

    /// Handles the answer to the UNSUBSCRIBE with this number on this connection, with a reason code for each filter in version
    /// 5.
    pub(super) fn unsubscribed(&mut self, number: u32, reasons: &[u8]) {
        let Some(at) = self.leaving.iter().position(|(asked, _)| *asked == number) else { return };
        for (at, filter) in self.leaving.remove(at).1.into_iter().enumerate() {
            let refusal = reasons.get(at).copied().filter(|reason| *reason >= 0x80);
            match refusal.filter(|_| self.filters.contains(&filter)) {
                Some(reason) if self.refused.insert(filter.clone()) => warn!(
                    upstream = self.upstream,
                    filter,
                    reason,
                    "the upstream refuses to give up a subscription that no rule asks for any more: what comes down by it is \
                     dropped"
                ),
                Some(_) => {}
                None if self.filters.remove(&filter) => info!(upstream = self.upstream, filter, "unsubscribed"),
                None => {}
            }
        }
        self.strikes = 0;
        self.write();
    }

    /// Handles the end of the connection. Returns whether an UNSUBSCRIBE may be the reason.
    pub(super) fn ended(&mut self, by_upstream: bool) -> bool {
        let may_be_it = by_upstream && !self.leaving.is_empty() && self.strikes < STRIKES;
        self.leaving.clear();
        self.strikes += u32::from(may_be_it);
        if may_be_it && self.strikes == STRIKES {
            warn!(
                upstream = self.upstream,
                "the upstream closes the connection when subscriptions are given up that no rule asks for any more: they stay, \
                 and what comes down by them is dropped"
            );
        }
        may_be_it
    }

    /// Tries again what the upstream did not take, because settings have changed.
    pub(super) fn forgive(&mut self) {
        self.strikes = 0;
        self.refused.clear();
    }

    fn write(&self) {
        let Some(name) = &self.name else { return };
        let filters: Vec<&str> = self.filters.iter().map(String::as_str).collect();
        let value = filters.join(&BETWEEN.to_string());
        // if this is lost or finds no room, a subscription may stay in the session, and what comes by it is dropped
        let _ = self.journal.keep(name, Some(value.as_bytes()).filter(|value| !value.is_empty()), false);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::rule::tests::settings;

    fn filters(texts: &[&str]) -> Vec<TopicFilter> {
        texts.iter().map(|text| TopicFilter::new(*text).unwrap()).collect()
    }

    fn excess(record: &AskedRecord, wanted: &[&str]) -> Vec<String> {
        let wanted: Vec<_> = filters(wanted).into_iter().map(|filter| (filter, Qos::AtLeastOnce)).collect();
        record.in_excess(&wanted).iter().map(ToString::to_string).collect()
    }

    #[tokio::test]
    async fn what_was_asked_for_in_a_session_is_known_after_a_restart() {
        let journal = Journal::default();
        let mut settings = settings();
        settings.addresses = ["mqtt://one", "mqtt://two"].map(|text| UpstreamAddress::parse(text).unwrap()).into();
        let connected = |settings: &UpstreamSettings, at: usize, is_resumed: bool| {
            let mut record = AskedRecord::new(&journal, "home");
            record.connected(settings, &settings.addresses[at], is_resumed);
            record
        };
        let mut record = connected(&settings, 0, true);
        assert_eq!(excess(&record, &[]), [""; 0]);
        record.subscribes(filters(&["a/#", "b"]).iter());
        let mut record = connected(&settings, 0, true);
        assert_eq!(excess(&record, &["b"]), ["a/#"]);
        assert_eq!(excess(&connected(&settings, 1, true), &["b"]), ["a/#"], "it may be a cluster");
        record.unsubscribes(&filters(&["a/#"]));
        assert_eq!(excess(&connected(&settings, 0, true), &["b"]), ["a/#"], "that is not answered");
        record.unsubscribed(0, &[]);
        assert_eq!(excess(&connected(&settings, 0, true), &[]), ["b"]);
        // asked for again before the answer
        record.unsubscribes(&filters(&["b"]));
        record.subscribes(filters(&["b"]).iter());
        record.unsubscribed(1, &[0]);
        assert_eq!(excess(&connected(&settings, 0, true), &[]), ["b"]);
        let mut fresh = connected(&settings, 0, false);
        assert_eq!(excess(&fresh, &[]), [""; 0], "a new session");
        fresh.subscribes(filters(&["c"]).iter());
        assert_eq!(excess(&connected(&settings, 0, true), &[]), ["c"]);
        settings.client_id = "another".into();
        assert_eq!(excess(&connected(&settings, 0, true), &[]), [""; 0]);
        assert!(journal.kept(PREFIX).is_empty());
        settings.clean_session = true;
        connected(&settings, 0, false).subscribes(filters(&["c"]).iter());
        assert!(journal.kept(PREFIX).is_empty());
    }

    #[tokio::test]
    async fn an_upstream_that_closes_at_unsubscribe_is_not_asked_for_ever() {
        let (journal, settings) = (Journal::default(), settings());
        let mut record = AskedRecord::new(&journal, "home");
        record.connected(&settings, &settings.addresses[0], false);
        record.subscribes(filters(&["a"]).iter());
        for expected in [true, true, false] {
            record.connected(&settings, &settings.addresses[0], true);
            let gone: Vec<_> = excess(&record, &[]);
            assert_eq!(gone.is_empty(), !expected);
            record.unsubscribes(&filters(&["a"]));
            assert!(!record.ended(false), "the line");
            record.unsubscribes(&filters(&["a"]));
            assert_eq!(record.ended(true), expected);
        }
        record.forgive();
        record.connected(&settings, &settings.addresses[0], true);
        assert_eq!(excess(&record, &[]), ["a"]);
    }

    #[tokio::test]
    async fn answers_to_unsubscribe_belong_to_what_was_asked() {
        let (journal, settings) = (Journal::default(), settings());
        let mut record = AskedRecord::new(&journal, "home");
        record.connected(&settings, &settings.addresses[0], false);
        record.subscribes(filters(&["a", "b", "c", "d"]).iter());
        for asked in [&["a"][..], &["b", "c"], &["d"]] {
            record.unsubscribes(&filters(asked));
        }
        // out of order, never, and with a refusal
        record.unsubscribed(2, &[0]);
        record.unsubscribed(7, &[0]);
        record.unsubscribed(1, &[0x87, 0x11]);
        assert_eq!(record.filters.iter().collect::<Vec<_>>(), ["a", "b"]);
        // what was refused is asked again when settings change
        record.connected(&settings, &settings.addresses[0], true);
        assert_eq!(excess(&record, &[]), ["a"]);
        record.forgive();
        assert_eq!(excess(&record, &[]), ["a", "b"]);
        // asked for again before the refusal: the names keep their places
        record.unsubscribes(&filters(&["a", "b"]));
        record.subscribes(filters(&["a"]).iter());
        record.unsubscribed(0, &[0, 0x87]);
        assert_eq!(record.filters.iter().collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(excess(&record, &[]), ["a"], "only b was refused");
    }
}

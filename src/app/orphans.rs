//! Finds upstreams that are no longer configured and still have messages in the journal.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use tokio::sync::watch;
use tracing::warn;

use super::AppError;
use super::data_dir::DataDir;
use crate::access::owner::{ConsumerOwner, upstream_consumer};
use crate::config::Settings;
use crate::journal::settings::JournalSettings;
use crate::journal::storage::file::FileStorage;
use crate::journal::{Backlog, ConsumerId, Journal, WhenFull};
use crate::status::{UpstreamShown, UpstreamSnapshot, UpstreamState};
use crate::time::SystemClock;
use crate::upstream::retained::forget_unknown;

/// A limit above the size of any journal, so that opening one to discard messages drops no others.
const NO_BOUND: u64 = 1 << 50;

/// The journal's consumers that belong to unknown upstreams, by the name of the upstream.
fn unknown(journal: &Journal, is_known: impl Fn(&str) -> bool) -> BTreeMap<String, Vec<(ConsumerId, Backlog)>> {
    let mut unknown: BTreeMap<String, Vec<_>> = BTreeMap::new();
    for (name, id, backlog) in journal.consumers() {
        if let ConsumerOwner::Upstream(upstream) = ConsumerOwner::of(&name)
            && !is_known(upstream)
        {
            unknown.entry(upstream.to_owned()).or_default().push((id, backlog));
        }
    }
    unknown
}

fn remove(journal: &Journal, consumers: &[(ConsumerId, Backlog)]) {
    for (id, _) in consumers {
        journal.remove(*id);
    }
}

fn messages(consumers: &[(ConsumerId, Backlog)]) -> usize {
    consumers.iter().map(|(_, backlog)| backlog.messages).sum()
}

/// Keeps the messages for upstreams that are no longer configured, returns these upstreams for the status page, and removes
/// those without messages.
pub(super) fn keep(settings: &Settings, journal: &Journal) -> Vec<UpstreamShown> {
    let is_known = |name: &str| settings.upstreams.iter().any(|known| known.name == name);
    let unknown = unknown(journal, is_known);
    forget_unknown(journal, |name| is_known(name) || unknown.get(name).is_some_and(|queues| messages(queues) > 0));
    let mut shown = Vec::new();
    for (upstream, consumers) in unknown {
        let waiting = messages(&consumers);
        if waiting == 0 {
            remove(journal, &consumers);
            continue;
        }
        consumers.iter().for_each(|(id, _)| journal.orphan(*id));
        warn!(
            upstream,
            waiting,
            "no upstream of this name is configured any more: its messages are kept, and are the first to give way when the \
             journal is full; pigateway journal DIR --discard NAME removes them"
        );
        shown.push(show(upstream, consumers.into_iter().map(|(id, _)| id).collect(), journal.clone()));
    }
    shown
}

fn show(name: String, consumers: Vec<ConsumerId>, journal: Journal) -> UpstreamShown {
    let last_error = Some("not configured any more; what waits for it is kept".to_owned());
    let snapshot = UpstreamSnapshot { name, state: UpstreamState::Removed, last_error, ..UpstreamSnapshot::default() };
    UpstreamShown::new(watch::channel(snapshot).1, move || {
        consumers.iter().map(|id| journal.backlog(*id)).fold(Backlog::default(), |sum, backlog| sum.plus(&backlog))
    })
}

/// Removes the messages that wait for an upstream, or `NAME/no-rule` for those that none of its rules matches, `NAME/denied` for
/// those whose topic it does not take, or `NAME/too-large` for those that are larger than its address takes, from the journal in this data directory, which no gateway may be using. Returns their number, or `None` if the journal has no such upstream.
pub(crate) fn discard(data_dir: &Path, upstream: &str) -> Result<Option<usize>, AppError> {
    let lock = DataDir::open(data_dir)?;
    let storage = Arc::new(FileStorage::new(&data_dir.join("journal")));
    let settings = JournalSettings { max_size: NO_BOUND, when_full: WhenFull::Refuse, ..JournalSettings::default() };
    let journal = Journal::open(storage, settings, Arc::new(SystemClock))?;
    let found = unknown(&journal, |name| name != upstream).remove(upstream);
    if found.is_some() {
        forget_unknown(&journal, |name| name != upstream);
    }
    let consumer = upstream_consumer(upstream);
    let shelf = || journal.consumers().into_iter().find(|(name, ..)| **name == *consumer);
    let found = found.or_else(|| shelf().map(|(_, id, backlog)| vec![(id, backlog)]));
    if let Some(consumers) = &found {
        remove(&journal, consumers);
    }
    journal.close();
    drop(lock);
    Ok(found.map(|consumers| messages(&consumers)))
}

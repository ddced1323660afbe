//! The task of one upstream: connects, passes events to the session, and performs its actions.

mod connect;
mod events;
mod exact;
mod failback;
mod fault;
mod handing;
mod line;
mod mirror;
mod pass;
mod settle;
mod shelving;
mod showing;
mod troubles;
mod turn;

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

pub(crate) use self::fault::PART;

use self::exact::Exact;
use self::failback::{Failback, FailbackTries};
use self::shelving::ToShelve;
use self::troubles::Troubles;
use super::approach::Approach;
use super::asked::AskedRecord;
use super::backoff::Backoff;
use super::client::RemoteClient;
use super::door::InboxDoor;
use super::inbox::UpstreamInbox;
use super::lanes::{Consumers, Lane, Lanes, Readers};
use super::mark::SessionMark;
use super::mirror::Mirror;
use super::neighbours::Neighbours;
use super::retained::{Passes, losses};
use super::rule::UpstreamRules;
use super::session::UpstreamSession;
use super::settings::{Order, UpstreamSettings};
use super::shelf::Shelf;
use super::twins::Twins;
use super::wire::{Broken, Link, UpstreamClient};
use crate::exchange::ingress::{Ingress, IngressError};
use crate::health::{Health, Pulse};
use crate::journal::{Journal, Limits, Position};
use crate::message::{Origin, via};
use crate::status::{UpstreamShown, UpstreamSnapshot, UpstreamState};
use crate::time::SharedClock;

/// The longest time until the snapshot is updated after an event, and the pause before messages from the upstream that found
/// no room are tried again.
const SOON: Duration = Duration::from_millis(500);
/// The time for messages in flight, the status and the DISCONNECT when the gateway stops.
const GOOD_BYE: Duration = Duration::from_secs(2);
/// The number of messages that are taken from the journal before other work gets a turn.
const AT_ONCE: usize = 128;

/// Why the task of an upstream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UpstreamError {
    /// The exchange has ended.
    #[error("the upstream's messages cannot be published")]
    Ingress(#[from] IngressError),
}

/// One upstream, registered in the journal and the ingress, and ready to run.
pub struct Upstream<C> {
    name: String,
    settings: watch::Receiver<Arc<UpstreamSettings>>,
    current: Arc<UpstreamSettings>,
    client: C,
    session: UpstreamSession,
    lanes: Lanes,
    consumers: Consumers,
    readers: Readers,
    passes: Passes,
    mirror: Mirror,
    journal: Journal,
    synced: watch::Receiver<Position>,
    door: InboxDoor,
    inbox: UpstreamInbox,
    clock: SharedClock,
    pub(super) snapshots: watch::Sender<UpstreamSnapshot>,
    shown: UpstreamSnapshot,
    backoff: Backoff,
    /// The id of the upstream, if it is a gateway.
    gateway: Option<via::Id>,
    /// The index of the address that is tried next.
    address: usize,
    /// The versions and wills for the addresses.
    approach: Approach,
    twins: Twins,
    /// The check of a preferred address, if another one is in use.
    failback: Option<Failback>,
    failback_tries: FailbackTries,
    troubles: Troubles,
    /// The number of addresses in a row that have accepted a connection and soon ended it.
    passed_on: usize,
    /// The number of connections in a row that the address has accepted and soon ended.
    soon_ended: u32,
    /// When the snapshot must be updated.
    show_at: Option<Instant>,
    /// The subscriptions by which nothing comes down, as they are shown.
    missing: Vec<String>,
    exact: Exact,
    mark: SessionMark,
    shelf: Shelf,
    denied: Shelf,
    /// Messages that are larger than the present address takes.
    large: Shelf,
    /// Whether the shelf of denied topics must be looked through.
    wants_denied: bool,
    /// Messages that have no room on their shelf yet.
    to_shelve: VecDeque<ToShelve>,
    asked: AskedRecord,
    health: Health,
}

/// Why a conversation or a pause ended.
enum ConversationEnd {
    Broken(Broken),
    /// The settings have changed in a way that needs a new connection.
    Changed,
    /// A preferred address answers again.
    Failback,
    /// Packet ids of the old connection stay in use.
    Renewed,
    /// What was not taken comes again only on a new connection.
    Missed,
    /// What the upstream may take after all is asked for again.
    AsksAgain,
    Cancelled,
}

impl ConversationEnd {
    /// The reason for others to read, and whether the next attempt is made at once; `None` if there is no next one.
    fn reason(self) -> Option<(Broken, bool)> {
        let (why, at_once) = match self {
            ConversationEnd::Cancelled => return None,
            ConversationEnd::Broken(why) => return Some((why, false)),
            ConversationEnd::Changed => ("the configuration has changed", true),
            ConversationEnd::Failback => ("the first address answers again", true),
            ConversationEnd::Renewed => ("what it never acknowledges needs a new one", false),
            ConversationEnd::Missed => ("what there was no room for comes again on a new one", false),
            ConversationEnd::AsksAgain => ("what it did not seem to take is asked for again", true),
        };
        Some((Broken::Failed(why.into()), at_once))
    }
}

impl Upstream<RemoteClient> {
    /// Creates an upstream. From now on the journal keeps the messages that its rules forward. Must be called within the
    /// runtime.
    pub(crate) fn new(
        settings: watch::Receiver<Arc<UpstreamSettings>>,
        journal: &Journal,
        (limits, order): (Limits, Order),
        ingress: Ingress,
        max_packet_size: usize,
        clock: SharedClock,
    ) -> Self {
        let client = RemoteClient::new(max_packet_size);
        Upstream::speaking_by(client, settings, journal, (limits, order), ingress, max_packet_size, clock)
    }

    /// Makes no connection from now on by which messages would loop between it and these.
    pub(crate) fn beside(mut self, neighbours: Neighbours) -> Self {
        self.client.beside(neighbours);
        self
    }
}

impl<C: UpstreamClient> Upstream<C> {
    /// Like [`Upstream::new`], with this client.
    pub fn speaking_by(
        client: C,
        settings: watch::Receiver<Arc<UpstreamSettings>>,
        journal: &Journal,
        kept: (Limits, Order),
        ingress: Ingress,
        max_packet_size: usize,
        clock: SharedClock,
    ) -> Self {
        Upstream::with(settings, journal, kept, InboxDoor::Ingress(ingress), client, max_packet_size, clock)
    }

    pub(super) fn with(
        mut settings: watch::Receiver<Arc<UpstreamSettings>>,
        journal: &Journal,
        (limits, order): (Limits, Order),
        door: InboxDoor,
        client: C,
        max_packet_size: usize,
        clock: SharedClock,
    ) -> Self {
        let current = settings.borrow_and_update().clone();
        let consumers = Consumers::register(journal, &current.name, limits, order);
        let lanes = Lanes::new(order, consumers.waiting());
        let rules = UpstreamRules::new(&current);
        door.set_filters(consumers.id(lanes.append()), Origin::upstream(&current.name), rules.local_filters());
        let (since_boot_ms, retry) = (clock.boot_ms(), current.retry);
        let shown = UpstreamSnapshot {
            name: current.name.clone(),
            rules: current.rules_in_words(),
            since_boot_ms,
            ..UpstreamSnapshot::default()
        };
        let mark = SessionMark::restore(journal, &current.name);
        let shelf = Shelf::new(journal, &current.name, limits);
        let denied = Shelf::of_denied(journal, &current.name, limits);
        let large = Shelf::of_large(journal, &current.name, limits);
        let asked = AskedRecord::new(journal, &current.name);
        let mut session = UpstreamSession::new(rules, &current);
        if let Some(note) = denied.size_note() {
            session.restore_size(&note);
        }
        for (lane, consumer) in consumers.all().filter(|_| mark.is_exact() == Some(true)) {
            session.may_have_begun(lane, journal.maybe_sent(consumer, u16::MAX.into()));
        }
        Upstream {
            name: current.name.clone(),
            session,
            readers: consumers.readers(),
            passes: Passes::restore(journal, &current.name),
            mirror: Mirror::new(getrandom::u32().unwrap_or(0)),
            journal: journal.clone(),
            synced: journal.synced(),
            inbox: UpstreamInbox::new(&current.name, max_packet_size, journal, consumers.id(Lane::First)),
            shown: shown.clone(),
            settings,
            current,
            client,
            lanes,
            consumers,
            door,
            clock,
            snapshots: watch::Sender::new(shown),
            backoff: Backoff::new(retry),
            gateway: None,
            address: 0,
            approach: Approach::default(),
            twins: Twins::default(),
            failback: None,
            failback_tries: FailbackTries::default(),
            troubles: Troubles::default(),
            passed_on: 0,
            soon_ended: 0,
            show_at: None,
            missing: Vec::new(),
            exact: Exact::default(),
            mark,
            shelf,
            denied,
            large,
            wants_denied: true,
            to_shelve: VecDeque::new(),
            asked,
            health: Health::default(),
        }
    }

    /// The state of the upstream, for those who show it.
    pub fn shown(&self) -> UpstreamShown {
        let consumers = self.consumers.clone();
        UpstreamShown::new(self.snapshots.subscribe(), move || consumers.all_backlog())
    }

    /// Runs until `cancel`. Ends earlier only if nothing can be published here any more. Answers `pulse` whether the
    /// upstream can be reached or not.
    pub async fn run(mut self, mut pulse: Pulse, cancel: CancellationToken) -> Result<(), UpstreamError> {
        loop {
            let Some(link) = self.connect(&mut pulse, &cancel).await else { break };
            let connected = Instant::now();
            let end = self.converse(link, &mut pulse, &cancel).await?;
            self.client.close();
            self.backoff.connected_for(connected.elapsed());
            let is_planned = self.session.is_renewing() || matches!(end, ConversationEnd::Missed);
            let Some((why, at_once)) = end.reason() else { break };
            let is_failure = !at_once && !is_planned;
            self.connection_ended(&why, is_failure, connected.elapsed());
            let is_passed_on = is_failure && self.pass_on(&why, connected.elapsed());
            let pause = match at_once {
                true => Duration::ZERO,
                // nothing is known yet against the next one
                false if is_passed_on => Backoff::new(self.current.retry).next(getrandom::u64().unwrap_or(0)),
                false => {
                    let pause = self.backoff.next(getrandom::u64().unwrap_or(0));
                    pause.max(self.session.quiet_left(self.clock.boot_ms()))
                }
            };
            if pulse.during(self.pause(pause, &cancel)).await {
                break;
            }
        }
        self.set_carried(None);
        if self.mirror.is_sure() {
            self.passes.close(&self.journal, self.session.is_mirroring());
        }
        self.set_state(UpstreamState::Stopped, None);
        self.is_over();
        Ok(())
    }

    /// Concludes from the end of a connection that has lasted so long what to do with the next one, and logs it. It is a failure
    /// unless the gateway has ended it itself.
    fn connection_ended(&mut self, why: &Broken, is_failure: bool, lasted: Duration) {
        if is_failure {
            self.is_down(why, &format!("the connection ended: {why}"));
        }
        self.pass_ended(why);
        let by_upstream = matches!(why, Broken::Closed | Broken::Dismissed(..));
        let at_own_answer = by_upstream && !self.session.is_after_answer();
        let at_answer = self.inbox.ended(at_own_answer, self.clock.boot_ms());
        let at_reading = self.reading_ended(by_upstream);
        if self.asked.ended(by_upstream) || at_answer || at_reading {
            self.session.explain();
        }
        let actions = self.session.disconnected(why, self.clock.boot_ms());
        let finds_item = self.passes.blames() && self.session.got_through();
        if finds_item || self.session.is_cause_clear(self.clock.boot_ms()) {
            self.backoff.made_progress();
        } else if self.session.got_through() && !self.session.blames() {
            self.backoff.worked_for(lasted);
        }
        self.perform(actions);
        self.readers.say_settled();
        self.look_for_twin(why, lasted);
        self.lanes.disconnected(self.consumers.waiting());
        self.set_filters();
        self.inbox.disconnected(self.current.clean_session);
        self.exact.disconnected(why);
        let upstream = &self.name;
        let waiting = self.consumers.backlog().messages;
        let address = &self.shown.address;
        if is_failure && self.troubles.ended(address, why, lasted) {
            warn!(upstream, address, waiting, "connections are accepted, and end at once: {why}");
        } else if self.backoff.is_news() {
            info!(upstream, address, waiting, "connection ended: {why}");
        } else {
            debug!(upstream, address, waiting, "connection ended: {why}");
        }
        self.shown.last_error = Some(why.to_string());
        self.set_state(UpstreamState::Waiting, None);
    }

    /// Waits, unless the settings change meanwhile. Returns whether it was cancelled.
    async fn pause(&mut self, pause: Duration, cancel: &CancellationToken) -> bool {
        let wait = sleep(pause);
        tokio::pin!(wait);
        let mut may_change = true;
        loop {
            tokio::select! {
                () = cancel.cancelled() => return true,
                () = &mut wait => return false,
                changed = self.settings.changed(), if may_change => match changed {
                    Ok(()) => {
                        let needs_connection = self.apply_settings();
                        if needs_connection {
                            return false;
                        }
                    }
                    Err(_) => may_change = false,
                },
            }
        }
    }

    /// Exchanges packets with the upstream until the connection ends, and says good-bye if it is not broken.
    async fn converse(
        &mut self,
        link: Link,
        pulse: &mut Pulse,
        cancel: &CancellationToken,
    ) -> Result<ConversationEnd, UpstreamError> {
        let end = self.talk(link, pulse, cancel).await?;
        if !matches!(end, ConversationEnd::Broken(_)) {
            self.say_good_bye().await;
        }
        if let ConversationEnd::Failback = end {
            self.address = 0;
            self.failback_tries.begin();
        }
        Ok(end)
    }

    async fn talk(
        &mut self,
        link: Link,
        pulse: &mut Pulse,
        cancel: &CancellationToken,
    ) -> Result<ConversationEnd, UpstreamError> {
        let mut alive = self.begin(link);
        let mut may_change = true;
        while alive {
            let waits = match self.advance().await? {
                ControlFlow::Continue(waits) => waits,
                ControlFlow::Break(end) => return Ok(end),
            };
            alive = !waits.is_last;
            tokio::select! {
                () = cancel.cancelled() => return Ok(ConversationEnd::Cancelled),
                events = self.client.events() => match events {
                    Ok(events) => alive &= self.handle(events).await?,
                    Err(why) => return Ok(ConversationEnd::Broken(why)),
                },
                changed = self.settings.changed(), if may_change => match changed {
                    Ok(()) => if self.apply_settings() {
                        return Ok(ConversationEnd::Changed);
                    },
                    Err(_) => may_change = false,
                },
                settled = self.inbox.next_settled(&self.door) => settled?,
                () = sleep(waits.wake.unwrap_or_default()), if waits.wake.is_some() => {
                    self.look_at_line();
                    let actions = self.session.time(self.clock.boot_ms());
                    alive &= self.perform(actions);
                    self.inbox.deliver(&self.door, self.clock.boot_ms()).await?;
                    self.show();
                    continue;
                }
                _ = self.synced.changed(), if waits.for_disk => {}
                true = Failback::is_due(&mut self.failback, &self.current, &mut self.failback_tries), if waits.is_first_welcome => {
                    return Ok(ConversationEnd::Failback);
                }
                () = tokio::task::yield_now(), if waits.has_more => {}
                () = self.shelf.ready(), if self.shelf.is_looking() && !waits.has_more => {}
                () = self.denied.ready(), if self.denied.is_looking() && !waits.has_more => {}
                () = self.large.ready(), if self.large.is_looking() && !waits.has_more => {}
                () = self.readers.ready(), if waits.has_room && !waits.has_more => {}
                () = pulse.asked() => {
                    pulse.answer();
                    continue;
                }
            }
            self.show_at.get_or_insert_with(|| Instant::now() + SOON);
        }
        let is_renewing = self.session.is_renewing();
        Ok(if is_renewing { ConversationEnd::Renewed } else { ConversationEnd::Broken(Broken::Silent) })
    }
}

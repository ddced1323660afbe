//! What all connections share, and what happens to sessions between connections.

pub(crate) mod groups;

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use self::groups::Groups;
use super::allowance::Allowance;
use super::away::Parked;
use super::registry::{Kick, Registry};
use super::session::{DurableFeed, Session, split_share};
use super::settings::BrokerSettings;
use crate::access::Access;
use crate::access::authorise::Permissions;
use crate::access::identity::{Identity, SessionName};
use crate::access::places::{Bounds, PlaceHolder, Places};
use crate::access::quota::Quota;
use crate::access::waiting::{Sockets, WaitingRoom};
use crate::exchange::delivery::{Run, Share, SharesOut};
use crate::exchange::inbox::{Inbox, InboxLimits};
use crate::exchange::ingress::{Ingress, Receipt, Route};
use crate::exchange::stats::Stats;
use crate::exchange::subscribers::{Subscriber, SubscriptionOptions};
use crate::exchange::waiting::{self, DeliveryMemory};
use crate::health::{CLIENT_PART, Health};
use crate::journal::{Limits, WhenFull};
use crate::message::{Origin, Owner, Qos};
use crate::mqtt::{Reason, Version, Will};
use crate::status::{ClientCounts, ClientSnapshot};

/// While its client is connected, a persistent session may be this many times further behind than while it is away:
/// enough for a burst that the client is busy reading.
pub(super) const CONNECTED_FACTOR: usize = 16;

/// The end of a session, and what else is written of users, is waited for no longer than this until it is on disk.
pub(crate) const LONGEST_SYNC: Duration = Duration::from_secs(2);

/// Subscriptions of one user, or of all clients without a user name, one with a long topic filter counting as several.
const MAX_SUBSCRIPTIONS: usize = 50_000;

/// A connected client, as others may see it.
#[derive(Clone, Debug)]
pub(crate) struct ConnectedClient {
    /// Who it is.
    pub(crate) identity: Identity,
    /// Where it comes from.
    pub(crate) address: IpAddr,
    /// What it speaks.
    pub(crate) version: Version,
    /// Since when, on the boot clock in milliseconds.
    pub(crate) since_boot_ms: u64,
    /// Seconds.
    pub(crate) keep_alive: u16,
    /// Whether its session outlives the connection.
    pub(crate) is_persistent: bool,
    /// The name of its session in the journal.
    pub(super) session: Box<str>,
    pub(super) permissions: Arc<Permissions>,
    pub(super) password_hash: Option<String>,
    pub(super) kick: Arc<Kick>,
    pub(super) subscriber: Arc<Subscriber>,
    /// Its session has begun with this connection.
    pub(super) is_new: bool,
}

/// Shared by all connections.
pub struct Core {
    /// Limits, as they are now.
    pub(crate) settings: ArcSwap<BrokerSettings>,
    /// The door in.
    pub ingress: Ingress,
    /// Who may come in and do what.
    pub access: Arc<Access>,
    /// Client ids in use.
    pub(crate) registry: Registry,
    /// Connections that have not said who they are.
    pub(crate) waiting: Arc<WaitingRoom>,
    /// Sockets of MQTT clients by network, those that wait or are about to go included.
    pub(crate) sockets: Arc<Sockets>,
    /// Places of clients that are connected.
    pub(crate) places: Arc<Places>,
    /// Subscriptions of all sessions, those of absent clients included.
    pub(super) subscriptions: Arc<Quota>,
    /// What waits for all clients.
    pub(super) queues: DeliveryMemory,
    /// What is counted.
    pub stats: Arc<Stats>,
    /// What is wrong now.
    pub(crate) health: Health,
    /// Cancelled when the gateway goes down.
    pub(crate) cancel: CancellationToken,
    clients: Mutex<HashMap<u64, ConnectedClient>>,
    next_client: AtomicU64,
    pub(super) groups: Groups,
    /// What users have written by changing their sessions.
    pub(super) allowance: Allowance,
    /// Wills of clients that were connected when the gateway ended, and whose sessions ended with it.
    pub(super) orphaned_wills: Mutex<Vec<(Box<str>, Will)>>,
}

impl Core {
    /// Everything new.
    pub(crate) fn new(
        settings: BrokerSettings,
        ingress: Ingress,
        health: Health,
        cancel: CancellationToken,
    ) -> Arc<Core> {
        ingress.set_max_packet_size(settings.max_packet_size);
        Arc::new(Core {
            access: Arc::new(Access::new(&settings.access)),
            queues: DeliveryMemory::new(most_waiting(&settings)),
            settings: ArcSwap::from_pointee(settings),
            stats: ingress.stats().clone(),
            ingress,
            registry: Registry::default(),
            waiting: Arc::default(),
            health,
            sockets: Arc::default(),
            places: Arc::default(),
            subscriptions: Arc::new(Quota::new(MAX_SUBSCRIPTIONS)),
            cancel,
            clients: Mutex::default(),
            next_client: AtomicU64::new(0),
            groups: Groups::default(),
            allowance: Allowance::default(),
            orphaned_wills: Mutex::default(),
        })
    }

    /// Applies new users, rules and limits. Clients whose user has gone or changed are disconnected.
    pub(crate) fn reload(&self, settings: BrokerSettings) {
        self.access.reload(&settings.access);
        if settings.max_packet_size != self.settings.load().max_packet_size {
            // whoever was cut off may now be let through; if not, it is said again
            self.health.forget(CLIENT_PART);
        }
        self.ingress.set_max_packet_size(settings.max_packet_size);
        self.queues.set_most(most_waiting(&settings));
        self.settings.store(Arc::new(settings));
        for client in self.clients.lock().values() {
            if !self.still_holds(client) {
                info!(client_id = &*client.identity.client_id, "disconnected: its user has changed");
                client.kick.kick(Reason::ADMINISTRATIVE_ACTION);
            }
        }
    }

    /// Whether a client would be let in with the same permissions now.
    fn still_holds(&self, client: &ConnectedClient) -> bool {
        let hash = client.password_hash.as_deref();
        self.access.authoriser.still_holds(&client.identity, hash, client.address, &client.permissions)
    }

    /// Ends the connections of a user, or of somebody without a user name, with this client id; says how many there were.
    pub(crate) fn disconnect(&self, user: Option<&str>, client_id: &str) -> usize {
        let clients = self.clients.lock();
        let is_it = |client: &&ConnectedClient| {
            client.identity.user.as_deref() == user && *client.identity.client_id == *client_id
        };
        let meant = clients.values().filter(is_it);
        meant.map(|client| client.kick.kick(Reason::ADMINISTRATIVE_ACTION)).count()
    }

    /// Connected clients, at most so many, in the order of their client ids.
    pub fn clients(&self, most: usize) -> Vec<ClientSnapshot> {
        let mut clients: Vec<ConnectedClient> = self.clients.lock().values().cloned().collect();
        clients.sort_by(|a, b| a.identity.client_id.cmp(&b.identity.client_id));
        clients.truncate(most);
        clients.into_iter().map(|client| self.shown(client)).collect()
    }

    fn shown(&self, client: ConnectedClient) -> ClientSnapshot {
        let queue = client.is_persistent.then(|| consumer_name(&client.session));
        let queue = queue.and_then(|name| self.ingress.journal().backlog_of(&name));
        let dropped = client.subscriber.inbox.dropped() + queue.as_ref().map_or(0, |queue| queue.dropped);
        ClientSnapshot {
            client_id: client.identity.client_id,
            user: client.identity.user,
            address: client.address,
            version: client.version,
            since_boot_ms: client.since_boot_ms,
            keep_alive: client.keep_alive,
            is_persistent: client.is_persistent,
            waiting: queue.map(|queue| queue.messages),
            dropped,
        }
    }

    /// How many clients are connected, and how many are away with a session that is kept for them.
    pub fn client_counts(&self) -> ClientCounts {
        let (connected, away) = self.registry.counts();
        ClientCounts { connected, away }
    }

    /// How many places there are.
    pub(super) fn bounds(&self) -> Bounds {
        let most = self.settings.load().max_connections;
        Bounds { most, has_users: self.access.authoriser.has_any_users() }
    }

    /// Whose subscriptions count as those of this session, of a client at this address.
    pub(super) fn holder(owner: &str, from: Option<IpAddr>) -> PlaceHolder {
        let user = SessionName::of(owner).user;
        match from {
            Some(from) => PlaceHolder::of(user, from),
            None => user.map_or(PlaceHolder::Guest(None), |user| PlaceHolder::User(user.into())),
        }
    }

    pub(super) fn enter(&self, client: ConnectedClient) -> u64 {
        let number = self.next_client.fetch_add(1, Ordering::Relaxed);
        let mut clients = self.clients.lock();
        let client = clients.entry(number).or_insert(client);
        // it was let in a while ago, and a reload in between has not seen it
        if !self.still_holds(client) {
            client.kick.kick(Reason::ADMINISTRATIVE_ACTION);
            // it has nothing yet that somebody could come back for, and its user may have been removed
            if client.is_new {
                client.kick.end_session();
            }
        }
        drop(clients);
        self.stats.connected.add(1);
        self.stats.connected_maximum.raise_to(self.stats.connected.get());
        number
    }

    pub(super) fn leave(&self, number: u64) {
        self.clients.lock().remove(&number);
        self.stats.connected.sub(1);
    }

    pub(super) fn inbox_limits(&self) -> InboxLimits {
        let settings = self.settings.load();
        InboxLimits { messages: settings.max_queued_messages, bytes: settings.max_queued_size }
    }

    /// A fresh live subscriber for a session.
    pub(super) fn subscriber(&self, session: &Session) -> Arc<Subscriber> {
        let shown = SessionName::of(&session.owner).to_string();
        // guests together are one user, whose name nobody can have
        let payer = SessionName::of(&session.owner).user.unwrap_or_default();
        let inbox = Inbox::new(&shown, self.inbox_limits()).paid_by(self.queues.account(payer));
        let is_durable = session.durable.is_some();
        Arc::new(Subscriber { inbox, origin: origin(&session.owner), is_durable })
    }

    /// A new session; a persistent one gets its consumer in the journal.
    pub(super) fn new_session(&self, name: &str, window: u16, is_persistent: bool, expiry: u32) -> Session {
        let durable = is_persistent.then(|| {
            let journal = self.ingress.journal();
            let consumer = journal.register(&consumer_name(name), self.journal_limits(CONNECTED_FACTOR));
            DurableFeed { consumer, reader: journal.reader(consumer) }
        });
        Session::new(name, window, durable, expiry)
    }

    pub(super) fn journal_limits(&self, factor: usize) -> Limits {
        let limits = self.inbox_limits();
        Limits {
            messages: limits.messages.saturating_mul(factor),
            bytes: limits.bytes.saturating_mul(factor),
            when_full: WhenFull::DropOldest,
        }
    }

    /// The client of a session is connected again: its live subscriptions start anew.
    pub(super) fn attach(&self, session: &Session, subscriber: &Arc<Subscriber>) {
        if session.durable.is_some() {
            let name = consumer_name(&session.name);
            self.ingress.journal().register(&name, self.journal_limits(CONNECTED_FACTOR));
        }
        for (filter, subscription) in &session.subscriptions {
            match &subscription.group {
                Some(group) => {
                    group.join(subscriber, subscription.options, session.consumer());
                    self.bound_group(group, CONNECTED_FACTOR);
                }
                None => {
                    self.ingress.subscribe(filter, subscriber, subscription.options, |_| None);
                }
            }
        }
    }

    /// The client of a session has gone: nothing live is kept, and what shared subscriptions gave it goes to others.
    pub(super) fn detach(&self, session: &mut Session, subscriber: &Arc<Subscriber>, pending: Option<Run>) {
        for (filter, subscription) in &session.subscriptions {
            match &subscription.group {
                Some(group) => {
                    if group.leave(subscriber) {
                        self.bound_group(group, 1);
                    }
                }
                None => {
                    self.ingress.unsubscribe(filter, subscriber);
                }
            }
        }
        let unread = pending.into_iter().chain(subscriber.inbox.close());
        let unread = unread.flat_map(|Run { mut messages, terms }| {
            std::iter::from_fn(move || terms.share.clone().zip(messages.next_message()))
        });
        let mut back: Vec<(Arc<dyn SharesOut>, Vec<_>)> = Vec::new();
        for (share, message) in session.outbound.take_shared().into_iter().chain(unread) {
            match back.iter_mut().find(|(known, _)| Arc::ptr_eq(known, &share.group)) {
                Some((_, messages)) => messages.push((share, message)),
                None => back.push((share.group.clone(), vec![(share, message)])),
            }
        }
        for (group, messages) in back {
            group.take_back(messages);
        }
        if let Some(durable) = &mut session.durable {
            durable.reader.rest();
            self.ingress.journal().register(&consumer_name(&session.name), self.journal_limits(1));
        }
    }

    /// A session is over: nothing of it is kept. That is so after a crash as well once the receipt has come true.
    pub(super) fn end(&self, mut session: Session) -> Receipt {
        session.outbound.shares().for_each(Share::give_up);
        let filters: Vec<Box<str>> = session.subscriptions.keys().cloned().collect();
        for filter in filters {
            if let Some(subscription) = session.unsubscribe(&filter) {
                self.drop_subscription(&session, &filter, &subscription);
            }
        }
        let Some(durable) = &session.durable else { return Receipt::default() };
        let journal = self.ingress.journal();
        journal.remove(durable.consumer);
        // where it cannot be written now, the session comes back with the next start and expires then
        let ended = journal.keep_session(&session.name, None, false).ok();
        self.charge(&session, ended.map_or(0, |(_, bytes)| bytes));
        Receipt { durable: ended.map(|(position, _)| position) }
    }

    /// The session of an absent client is over, and with it the delay of its will [MQTT-3.1.2-8].
    pub(super) async fn end_parked(&self, parked: Parked) -> Receipt {
        if let Some((_, will)) = parked.will {
            self.publish_delayed(&parked.session.owner, will).await;
        }
        self.end(parked.session)
    }

    /// A user is gone for good: its sessions end, with what waits in them. Whoever has that name next finds nothing, after a
    /// power cut too.
    pub(crate) async fn end_sessions_of(&self, user: &str) {
        let mut last = Receipt::default();
        for parked in self.registry.take_all_of(user) {
            info!(client_id = %SessionName::of(&parked.session.owner), "its session has ended: its user was removed");
            let ended = self.end_parked(parked).await;
            last = if ended.durable.is_some() { ended } else { last };
        }
        // a disk that does not answer holds nobody up
        let _ = timeout(LONGEST_SYNC, self.ingress.settled(last)).await;
        self.access.passwords.familiar.forget(user);
    }

    /// What a client finds besides what its own session has left. A session that was made before anybody noted whose it
    /// was goes to the first who has its client id and may have all its subscriptions. A session that a client
    /// without a user name has left ends when a user comes with its client id: that is mostly the same device, which
    /// has been given a password and will not come back for it.
    pub(super) async fn inherit(
        &self,
        identity: &Identity,
        permissions: &Permissions,
        own: Option<Parked>,
    ) -> Option<Parked> {
        if identity.user.is_some()
            && let Some(left) = self.registry.take(&SessionName::of_guest(&identity.client_id), |_| true)
        {
            self.end_parked(left).await;
        }
        if own.is_some() {
            return own;
        }
        let may_have = |filter: &str| {
            let inner =
                split_share(filter).filter(|_| filter.starts_with("$share/")).map_or(filter, |(_, inner)| inner);
            permissions.may_subscribe(inner)
        };
        let is_wanted = |parked: &Parked| parked.session.subscriptions.keys().all(|filter| may_have(filter));
        let mut found = self.registry.take(&identity.client_id, is_wanted)?;
        self.keep_will(&found.session.owner, None);
        found.session.owner = identity.session();
        Some(found)
    }

    /// Ends expired sessions and publishes delayed wills, until cancelled.
    pub async fn sweep(self: Arc<Self>) {
        loop {
            tokio::select! {
                () = self.cancel.cancelled() => return,
                () = self.registry.due() => {}
            }
            let now = Instant::now();
            let most = self.settings.load().max_sessions;
            for (session, will) in self.registry.due_wills(now) {
                self.publish_delayed(&session, will).await;
            }
            for parked in self.registry.expired(now, most) {
                let Parked { session, expires, .. } = &parked;
                if *expires > now {
                    warn!(
                        client_id = %SessionName::of(&session.owner),
                        "more clients are away than broker.max_sessions: of whoever has most sessions, the one longest away \
                         is given up"
                    );
                }
                self.stats.sessions_expired.add(1);
                self.end_parked(parked).await;
            }
        }
    }
}

/// Bytes that may wait for all clients of one user: for a few with full queues, or for many with some.
fn most_waiting(settings: &BrokerSettings) -> usize {
    waiting::MOST.max(settings.max_queued_size.saturating_mul(4))
}

/// What the owner of a session publishes as.
pub(super) fn origin(owner: &str) -> Origin {
    Origin::client(owner).owned_by(Owner::of(SessionName::of(owner).user))
}

/// Name of a session's consumer in the journal.
pub(crate) fn consumer_name(session: &str) -> String {
    format!("session/{session}")
}

/// How the journal feeds a session for a subscription; `None` if it need not.
pub(super) fn session_route(session: &Session, options: SubscriptionOptions) -> Option<Route> {
    let durable = session.durable.as_ref()?;
    (options.qos > Qos::AtMostOnce).then(|| Route::Session {
        consumer: durable.consumer,
        qos: options.qos,
        not_from: options.no_local.then(|| Origin::client(&session.owner)),
    })
}

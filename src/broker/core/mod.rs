//! The state that all connections share, and what happens to sessions between connections.

mod endings;
pub(crate) mod groups;
pub(in crate::broker) mod portions;

use std::cell::LazyCell;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tracing::info;

use self::groups::Groups;
use self::portions::{Portions, by_group};
use super::allowance::Allowance;
use super::away::Parked;
use super::capacity;
use super::late_wills::LateWills;
use super::registry::{Kick, Registry};
use super::session::{DurableFeed, Session, Subscription, split_share};
use super::settings::BrokerSettings;
use super::waiting_will::MAX_WILLS;
use crate::access::Access;
use crate::access::authorise::Permissions;
use crate::access::identity::{Identity, SessionName};
use crate::access::in_force::RightsInForce;
use crate::access::places::{Bounds, PlaceHolder, Places};
use crate::access::quota::Quota;
use crate::access::waiting::{Sockets, WaitingRoom};
use crate::exchange::delivery::Run;
use crate::exchange::inbox::{Inbox, InboxLimits};
use crate::exchange::ingress::{Ingress, Route};
use crate::exchange::stats::Stats;
use crate::exchange::subscribers::{Subscriber, SubscriptionOptions};
use crate::exchange::waiting::{self, DeliveryMemory};
use crate::health::{CLIENT_PART, Health};
use crate::journal::{Limits, WhenFull};
use crate::message::{Origin, Owner, Qos};
use crate::mqtt::{Reason, Version, Will};
use crate::status::{ClientCounts, ClientSnapshot};

/// While its client is connected, a persistent session may have this many times more waiting messages than while the client
/// is absent. That is enough for a burst that the client is busy reading.
pub(super) const CONNECTED_FACTOR: usize = 16;

/// The longest wait until the end of a session, or another record about users, is on disk.
pub(crate) const LONGEST_SYNC: Duration = Duration::from_secs(2);

/// Most subscriptions of one user, or of all clients without a user name. A subscription with a long topic filter counts as
/// several.
const MAX_SUBSCRIPTIONS: usize = 50_000;

/// A connected client, as other rooms may see it.
#[derive(Clone, Debug)]
pub(crate) struct ConnectedClient {
    pub(crate) identity: Identity,
    pub(crate) address: IpAddr,
    pub(crate) version: Version,
    /// When it connected, in milliseconds of the boot clock.
    pub(crate) since_boot_ms: u64,
    /// The keep alive in force, in seconds.
    pub(crate) keep_alive: u16,
    /// Whether its session outlives the connection.
    pub(crate) is_persistent: bool,
    /// The name of its session in the journal.
    pub(super) session: Box<str>,
    pub(super) permissions: Arc<Permissions>,
    pub(super) password_hash: Option<String>,
    pub(super) kick: Arc<Kick>,
    pub(super) subscriber: Arc<Subscriber>,
    /// Whether its session began with this connection.
    pub(super) is_new: bool,
}

/// The state that all connections share.
pub struct Core {
    /// The limits in force, which a reload changes.
    pub(crate) settings: ArcSwap<BrokerSettings>,
    /// The entrance for messages, which gives them their places in the order.
    pub ingress: Ingress,
    /// The access decisions for clients.
    pub access: Arc<Access>,
    /// The client ids in use.
    pub(crate) registry: Registry,
    /// Connections that have not sent a CONNECT yet.
    pub(crate) waiting: Arc<WaitingRoom>,
    /// The sockets of MQTT clients by network, including those that wait or are about to end.
    pub(crate) sockets: Arc<Sockets>,
    pub(crate) places: Arc<Places>,
    /// The subscriptions of all sessions, including those of absent clients.
    pub(super) subscriptions: Arc<Quota>,
    /// The bytes of all wills, including those of absent clients.
    pub(super) wills: Arc<Quota>,
    /// The memory of messages that wait for clients.
    pub(super) queues: DeliveryMemory,
    /// Counters for metrics and `$SYS`.
    pub stats: Arc<Stats>,
    pub(crate) health: Health,
    /// Cancelled when the gateway shuts down.
    pub(crate) cancel: CancellationToken,
    clients: Mutex<HashMap<u64, ConnectedClient>>,
    next_client: AtomicU64,
    pub(super) groups: Groups,
    /// The bytes that users have written by changing their sessions.
    pub(super) allowance: Allowance,
    /// The wills of clients that were connected when the gateway ended, and whose sessions ended with it.
    pub(super) orphaned_wills: Mutex<Vec<(Box<str>, Will)>>,
    pub(super) late_wills: LateWills,
}

impl Core {
    pub(crate) fn new(
        settings: BrokerSettings,
        ingress: Ingress,
        health: Health,
        cancel: CancellationToken,
    ) -> Arc<Core> {
        ingress.set_max_packet_size(settings.max_packet_size);
        capacity::report(settings.max_connections);
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
            wills: Arc::new(Quota::new(MAX_WILLS)),
            cancel,
            clients: Mutex::default(),
            next_client: AtomicU64::new(0),
            groups: Groups::default(),
            allowance: Allowance::default(),
            orphaned_wills: Mutex::default(),
            late_wills: LateWills::default(),
        })
    }

    /// Applies new users, rules and limits. Clients whose user is gone or has changed are disconnected.
    pub(crate) fn reload(&self, settings: BrokerSettings) {
        self.access.reload(&settings.access);
        if settings.max_packet_size != self.settings.load().max_packet_size {
            // clients that were disconnected for their packets may be allowed now; if not, that is reported again
            self.health.forget(CLIENT_PART);
        }
        self.ingress.set_max_packet_size(settings.max_packet_size);
        if settings.max_connections != self.settings.load().max_connections {
            capacity::report(settings.max_connections);
        }
        self.queues.set_most(most_waiting(&settings));
        self.settings.store(Arc::new(settings));
        for client in self.clients.lock().values() {
            if !self.still_holds(client) {
                info!(client_id = &*client.identity.client_id, "disconnected: its user has changed");
                client.kick.kick(Reason::ADMINISTRATIVE_ACTION);
            }
        }
    }

    /// Whether a client would get the same permissions now.
    fn still_holds(&self, client: &ConnectedClient) -> bool {
        let hash = client.password_hash.as_deref();
        self.access.authoriser.still_holds(&client.identity, hash, client.address, &client.permissions)
    }

    /// Ends the connections with this client id, of a user or of clients without a user name. Returns their number.
    pub(crate) fn disconnect(&self, user: Option<&str>, client_id: &str) -> usize {
        let clients = self.clients.lock();
        let is_it = |client: &&ConnectedClient| {
            client.identity.user.as_deref() == user && *client.identity.client_id == *client_id
        };
        let meant = clients.values().filter(is_it);
        meant.map(|client| client.kick.kick(Reason::ADMINISTRATIVE_ACTION)).count()
    }

    /// At most `most` connected clients, in the order of their client ids.
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

    /// The numbers of connected clients and of absent clients with a kept session.
    pub fn client_counts(&self) -> ClientCounts {
        let (connected, away) = self.registry.counts();
        ClientCounts { connected, away }
    }

    /// The number of places for clients.
    pub(super) fn bounds(&self) -> Bounds {
        let most = capacity::places(self.settings.load().max_connections);
        Bounds { most, has_users: self.access.authoriser.has_any_users() }
    }

    /// The holder to whose quota the subscriptions of this session count; `from` is the address of its client.
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
        // the client was accepted a while ago, and a reload in between has not seen it
        if !self.still_holds(client) {
            client.kick.kick(Reason::ADMINISTRATIVE_ACTION);
            // a new session holds nothing yet that its client could come back for, and its user may have been removed
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

    /// Makes a new live subscriber for a session.
    pub(super) fn subscriber(&self, session: &Session) -> Arc<Subscriber> {
        let shown = SessionName::of(&session.owner).to_string();
        // all guests count as one user, with a name that no user can have
        let payer = SessionName::of(&session.owner).user.unwrap_or_default();
        let inbox = Inbox::new(&shown, self.inbox_limits()).paid_by(self.queues.account(payer));
        let is_durable = session.durable.is_some();
        Arc::new(Subscriber { inbox, origin: origin(&session.owner), is_durable })
    }

    /// Makes a new session. A persistent session gets a consumer in the journal.
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

    /// Starts live delivery for a session whose client has connected again.
    pub(super) async fn attach(&self, session: &Session, subscriber: &Arc<Subscriber>, permissions: &Arc<Permissions>) {
        if session.durable.is_some() {
            let name = consumer_name(&session.name);
            self.ingress.journal().register(&name, self.journal_limits(CONNECTED_FACTOR));
        }
        let mut portions = Portions::in_turn(self, session).await;
        // first those above QoS 0: as long as one of them is missing, a message for it that matches another one at QoS 0
        // would come both live and from the journal
        for (filter, subscription) in by_qos(session, true).chain(by_qos(session, false)) {
            portions.next().await;
            match &subscription.group {
                Some(group) => {
                    group.join((subscriber, permissions), subscription.options, session.consumer());
                    self.bound_group(group, CONNECTED_FACTOR);
                }
                None => {
                    self.ingress.subscribe(filter, subscriber, subscription.options, |_| None);
                }
            }
        }
        portions.end();
    }

    /// Ends live delivery for a session whose client has left. Unacknowledged messages of shared subscriptions go to other
    /// members.
    pub(super) async fn detach(
        &self,
        session: &mut Session,
        (subscriber, identity): (&Arc<Subscriber>, &Identity),
        pending: Option<Run>,
    ) {
        let rights = LazyCell::new(|| Arc::new(RightsInForce::of(&self.access, identity.clone())));
        let mut portions = Portions::of(self, &session.owner);
        // in the opposite order, for the same reason
        for (filter, subscription) in by_qos(session, false).chain(by_qos(session, true)) {
            portions.next().await;
            match &subscription.group {
                Some(group) => {
                    if let Some(consumer) = session.awaits(subscription.options) {
                        // before it leaves, so that what only it may have waits for it
                        group.expect(consumer, Arc::clone(&rights));
                    }
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
        for (group, messages) in by_group(session.outbound.take_shared().into_iter().chain(unread)) {
            portions.next().await;
            group.take_back(messages);
        }
        portions.end();
        if let Some(durable) = &mut session.durable {
            durable.reader.rest();
            self.ingress.journal().register(&consumer_name(&session.name), self.journal_limits(1));
        }
    }

    /// Finds what a client gets in addition to its own session. A session without a recorded owner, from an older version,
    /// goes to the first client with its client id that may have all its subscriptions. A session of a client without a user
    /// name ends when a user connects with its client id: it is mostly the same device, which has been given a password and
    /// will not come back without it.
    pub(super) async fn inherit(
        &self,
        identity: &Identity,
        permissions: &Permissions,
        own: Option<Parked>,
    ) -> Option<Parked> {
        if identity.user.is_some()
            && let Some(left) = self.registry.take_in_hand(&SessionName::of_guest(&identity.client_id))
        {
            self.end_in_hand(left).await;
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
}

/// The session's subscriptions above QoS 0, or the others.
fn by_qos(session: &Session, is_above: bool) -> impl Iterator<Item = (&Box<str>, &Subscription)> {
    session.subscriptions.iter().filter(move |(_, known)| (known.options.qos > Qos::AtMostOnce) == is_above)
}

/// The bytes that may wait for all clients of one user: enough for a few clients with full queues, or for many with partly
/// filled ones.
fn most_waiting(settings: &BrokerSettings) -> usize {
    waiting::MOST.max(settings.max_queued_size.saturating_mul(4))
}

/// The origin of messages that the owner of a session publishes.
pub(super) fn origin(owner: &str) -> Origin {
    Origin::client(owner).owned_by(Owner::of(SessionName::of(owner).user))
}

/// The name of a session's consumer in the journal.
pub(crate) fn consumer_name(session: &str) -> String {
    format!("session/{session}")
}

/// How the journal delivers messages for a subscription of this session; `None` if it need not.
pub(super) fn session_route(session: &Session, options: SubscriptionOptions) -> Option<Route> {
    let durable = session.durable.as_ref()?;
    (options.qos > Qos::AtMostOnce).then(|| Route::Session {
        consumer: durable.consumer,
        qos: options.qos,
        not_from: options.no_local.then(|| Origin::client(&session.owner)),
    })
}

//! The connection of one client, from CONNECT to its end.
//!
//! A single task owns the socket and the session. It reads what has arrived, makes one batch of all PUBLISHes of a read,
//! takes waiting messages as far as the client's window allows, and writes everything at once. It never waits for the disk
//! or for other clients: acknowledgements are queued in order and sent when their receipts are complete.

mod acks;
mod admit;
mod aliases;
mod deliver;
mod handshake;
mod input;
mod leave;
mod memory;
mod output;
mod peer;
mod receive;
mod run;
mod size;
mod spare;
mod subscribe;

use std::collections::VecDeque;
use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::time::{Duration, Instant};
use tracing::{debug, error, info};

use self::acks::Acks;
use self::admit::Admitted;
use self::aliases::InboundAliases;
pub(super) use self::leave::part;
use self::output::SocketOutput;
pub use self::peer::Peer;
use self::subscribe::FilterChange;
use super::away::Parked;
use super::core::{self, Core};
use super::registry::expires;
use super::session::Session;
use super::waiting_will::WaitingWill;
use crate::access::authorise::Permissions;
use crate::access::guesses::network;
use crate::access::identity::Identity;
use crate::access::places::{Place, PlaceHolder};
use crate::exchange::delivery::Run;
use crate::exchange::meter::PaidByNetwork;
use crate::exchange::receiving::Reservation;
use crate::exchange::subscribers::Subscriber;
use crate::journal::Position;
use crate::message::{BatchBuilder, Origin, USUAL_LEVELS, levels, via};
use crate::mqtt::alias::OutboundAliases;
use crate::mqtt::{self, Reason, Version, write};

/// Why a connection ends.
#[derive(Clone, Debug)]
enum ConnectionEnd {
    /// The client has closed the connection, or it broke.
    Closed,
    /// The client has sent DISCONNECT, with this reason and perhaps a new session expiry interval.
    Disconnected(Reason, Option<u32>),
    /// The client has violated the protocol.
    Broken(mqtt::Error),
    /// The gateway ends the connection.
    Ended(Reason),
    /// The client does not read any more.
    Stalled,
    /// The client's maximum packet size is smaller than the CONNACK.
    TooSmall,
    /// Processing the connection has panicked, which is a fault of the gateway.
    Panicked,
}

impl ConnectionEnd {
    /// The reason to send to an MQTT 5 client; `None` if nothing is sent.
    fn reason(&self) -> Option<Reason> {
        match self {
            ConnectionEnd::Closed
            | ConnectionEnd::Disconnected(..)
            | ConnectionEnd::Stalled
            | ConnectionEnd::TooSmall => None,
            ConnectionEnd::Broken(error) => Some(error.reason()),
            ConnectionEnd::Ended(reason) => Some(*reason),
            ConnectionEnd::Panicked => Some(Reason::UNSPECIFIED_ERROR),
        }
    }

    /// Whether the connection ends because the gateway shuts down.
    fn is_stopping(&self) -> bool {
        matches!(self, ConnectionEnd::Ended(Reason::SERVER_SHUTTING_DOWN))
    }

    fn publishes_will(&self) -> bool {
        match self {
            // only a normal disconnection deletes the will [MQTT-3.14.4-3]
            ConnectionEnd::Disconnected(reason, _) => *reason != Reason::SUCCESS,
            ConnectionEnd::TooSmall => false,
            _ => true,
        }
    }

    fn log(&self, core: &Core, client_id: &str, from: IpAddr) {
        let what = match self {
            ConnectionEnd::Closed => return debug!(client_id, "connection closed without DISCONNECT"),
            ConnectionEnd::Disconnected(..) => return debug!(client_id, "disconnected"),
            ConnectionEnd::Ended(Reason::SESSION_TAKEN_OVER) => {
                return debug!(client_id, "disconnected: its client id connected again");
            }
            ConnectionEnd::Broken(mqtt::Error::TooLarge(..)) => {
                return debug!(client_id, "disconnected: packet too large");
            }
            ConnectionEnd::Panicked => return error!(client_id, "disconnected: the session has failed"),
            ConnectionEnd::Ended(Reason::SERVER_BUSY) => {
                "its place was needed: of whoever has most connections, the last to come gives way".to_owned()
            }
            ConnectionEnd::Ended(Reason::KEEP_ALIVE_TIMEOUT) => "keep alive timeout".to_owned(),
            ConnectionEnd::Ended(reason) => return debug!(client_id, reason = reason.0, "disconnected"),
            ConnectionEnd::Broken(error) => format!("protocol violation: {error}"),
            ConnectionEnd::Stalled => "it takes no data any more".to_owned(),
            ConnectionEnd::TooSmall => "its Maximum Packet Size is less than the size of CONNACK".to_owned(),
        };
        if let Some(more_since_last) = core.access.limiter.due(network(from), (client_id, &what)) {
            info!(client_id, %from, more_since_last, "disconnected: {what}");
        }
    }
}

/// A connected client with its session and buffers.
struct BrokerConnection {
    core: Arc<Core>,
    identity: Identity,
    address: IpAddr,
    permissions: Arc<Permissions>,
    origin: Origin,
    version: Version,
    is_bridge: bool,
    /// The client's id if it is a pigateway.
    gateway: Option<via::Id>,
    keep_alive: u16,
    session: Session,
    subscriber: Arc<Subscriber>,
    will: Option<WaitingWill>,
    /// The largest packet in bytes that the client accepts.
    max_packet: usize,
    aliases: InboundAliases,
    outbound_aliases: OutboundAliases,
    out: SocketOutput,
    batch: BatchBuilder,
    acks: Acks,
    /// SUBACKs and UNSUBACKs that wait until the subscriptions are on disk.
    subacks: VecDeque<(Position, BytesMut)>,
    /// The QoS 2 messages in the batch: index and packet id.
    received: Vec<(u32, u16)>,
    synced: watch::Receiver<Position>,
    /// Whether the client has stopped reading, so that output is dropped.
    is_deaf: bool,
    /// The holder whose allowance pays for changes of the session.
    holder: PlaceHolder,
    /// Until when the client's next request waits, because its user has changed subscriptions too often or the client has
    /// searched the retained messages too much.
    held_until: Option<Instant>,
    /// A packet of which only a part was processed.
    change: Option<FilterChange>,
    /// Whether there is more to do, which waits only until others have had their turns.
    has_more: bool,
    /// Whether whole packets that were received wait for the next turn, so that no more is read.
    has_input: bool,
    /// When the packets that are being processed were read, in milliseconds of the boot clock; set when first needed.
    read_at: Option<u64>,
    /// Whether a message waits for memory although nothing is in flight that would release any.
    is_short: bool,
    /// When the client may search for the first time, if clients of its owner had searched too much when it connected.
    first_turn: Option<Instant>,
    /// Charges a client without a user together with its network.
    payer: Option<PaidByNetwork>,
    /// Messages that were taken from the inbox and are not sent yet.
    pending: Option<Run>,
    /// Memory for the large packet that is being received, or a place in the queue for it.
    receiving: Option<Reservation>,
    /// Memory of large packets that are complete and wait in the batch.
    unplaced: Vec<Reservation>,
    /// Its place among the connected clients.
    _place: Place,
}

/// A connection with its right to use the session and its number among the connected clients.
type OpenedConnection = (super::registry::Claim, u64, Box<BrokerConnection>);

/// Serves a connection until it ends.
pub async fn serve<R, W>(core: Arc<Core>, reader: R, writer: W, peer: Peer)
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    serve_known(core, reader, writer, peer, |_| {}).await;
}

/// Like [`serve`]. Calls `known` with the user's name as soon as a user has signed in.
pub async fn serve_known<R, W>(core: Arc<Core>, mut reader: R, mut writer: W, peer: Peer, known: impl FnOnce(&str))
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut input = BytesMut::new();
    let connect = match handshake::read_connect(&core, &mut reader, &mut input, &peer).await {
        Ok(connect) => connect,
        Err(answer) => {
            if !answer.is_empty() {
                part(&core.waiting, reader, writer, &answer[..], false).await;
            }
            return;
        }
    };
    let arrived = peer.arrived();
    if peer.ticket.as_ref().is_some_and(|ticket| !ticket.seated()) {
        return;
    }
    let version = connect.version;
    // what is needed only at the beginning or at the end has memory of its own, because this future stays as large as its
    // largest part for as long as the client is connected
    let (claim, number, mut connection) =
        match Box::pin(begin(&core, connect, (&peer, arrived), handshake::gone(&core, &mut reader, &mut input), known))
            .await
        {
            Ok(opened) => opened,
            Err(None) => return,
            Err(Some(reason)) => {
                let mut answer = BytesMut::new();
                write::connack(&mut answer, version, false, reason, &write::ConnAckProperties::default());
                core.stats.refused.add(1);
                part(&core.waiting, reader, writer, answer, false).await;
                return;
            }
        };
    debug!(client_id = &*connection.identity.client_id, version = version.as_str(), from = %peer.address, "connected");

    let end = if connection.out.len() > connection.max_packet {
        connection.out.truncate(0); // [MQTT-3.1.2-24]
        ConnectionEnd::TooSmall
    } else {
        let kick = claim.kick.clone();
        let running = connection.run(&mut reader, &mut writer, &mut input, &kick);
        contain(running).await.unwrap_or_else(|()| {
            core.stats.panics.add(1);
            ConnectionEnd::Panicked
        })
    };
    end.log(&core, &connection.identity.client_id, peer.address);
    if end.is_stopping() {
        // the gateway's own last messages, such as that a sensor is offline, are still delivered
        connection.deliver();
    }
    // its own last messages may wait for a place, and nobody must wait for a reader that is gone
    connection.subscriber.inbox.give_up();
    if let Some(reason) = end.reason() {
        write::disconnect(connection.out.tail(), version, reason);
    }
    core.leave(number);
    drop(input);
    let (last, is_stopping) = (std::mem::take(&mut connection.out), end.is_stopping());
    let is_there = !connection.is_deaf && !matches!(end, ConnectionEnd::Closed | ConnectionEnd::Stalled);
    // a connection that waits for the client id does not wait for a client that is slow to read its last packet
    let closing = Box::pin(close(&core, connection, end, claim));
    if is_there {
        tokio::join!(closing, part(&core.waiting, reader, writer, last, is_stopping));
    } else {
        drop((reader, writer));
        closing.await;
    }
}

/// Admits the client and opens its connection. Without a reason the error is that the client has `gone` before.
async fn begin(
    core: &Arc<Core>,
    connect: mqtt::Connect,
    (peer, arrived): (&Peer, Instant),
    gone: impl Future<Output = ()>,
    known: impl FnOnce(&str),
) -> Result<OpenedConnection, Option<Reason>> {
    let admitted = admit::admit(core, connect, peer, gone).await?;
    if let Some(user) = &admitted.identity.user {
        known(user);
    }
    Ok(open(core, admitted, (peer, arrived)).await?)
}

/// Runs a future so that a panic ends only this future.
async fn contain<T>(future: impl Future<Output = T>) -> Result<T, ()> {
    let mut future = std::pin::pin!(future);
    std::future::poll_fn(|context| match std::panic::catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(context))) {
        Ok(poll) => poll.map(Ok),
        Err(_) => std::task::Poll::Ready(Err(())),
    })
    .await
}

/// Takes the client id, finds or creates the session, and sends the CONNACK. Fails if another connection takes the place
/// before.
async fn open(
    core: &Arc<Core>,
    admitted: Admitted,
    (peer, arrived): (&Peer, Instant),
) -> Result<OpenedConnection, Reason> {
    let Admitted { mut connect, identity, permissions, password_hash, assigned, keep_alive, expiry, place } = admitted;
    let owner = identity.session();
    let holder = Core::holder(&owner, Some(peer.address));
    if expiry > 0 || !connect.clean {
        tokio::select! {
            biased;
            () = core.wait_for_card(&holder) => {}
            () = place.cut() => return Err(Reason::SERVER_BUSY),
            // of two connections the newer one waits, in the place that both share
            () = place.replaced() => return Err(Reason::SERVER_BUSY),
            () = core.cancel.cancelled() => return Err(Reason::SERVER_SHUTTING_DOWN),
        }
    }
    let Some((claim, parked)) = core.registry.claim(&owner, arrived).await else { return Err(Reason::SERVER_BUSY) };
    let kick = claim.kick.clone();
    place.on_cut(move || kick.kick(Reason::SERVER_BUSY));
    let parked = core.inherit(&identity, &permissions, parked).await;
    let old = parked.as_ref().and_then(|parked| parked.will.as_ref()).map(|(_, will)| will);
    let has_will = connect.will.is_some();
    let will = connect.will.take().and_then(|will| WaitingWill::hold(&core.wills, &holder, will, old));
    if has_will && will.is_none() {
        core.access.quota(&identity, peer.address, "bytes of last wills");
        if let Some(over) = core.registry.release(claim, parked) {
            core.end_in_hand(over).await;
        }
        return Err(Reason::QUOTA_EXCEEDED);
    }
    let resumed = match parked {
        Some(parked) => core.take_up(parked, arrived, connect.clean).await,
        None => None,
    };
    let present = resumed.is_some();
    if !present && expiry > 0 && !core.ingress.journal().has_room_for_session(&owner) {
        // CONNACK would promise a session that is gone after a restart
        let _ = core.registry.release(claim, None);
        return Err(Reason::SERVER_BUSY);
    }
    let mut session = begin_session(core, &connect, (&owner, &holder), resumed, expiry);
    core.keep_will_of(&holder, &owner, will.as_deref().filter(|will| permissions.may_publish(&will.topic)));
    let subscriber = core.subscriber(&session);
    subscriber.inbox.set_in_hand(session.outbound.bytes());
    session.left = None;
    if present {
        core.attach(&session, &subscriber, &permissions).await;
    }
    let number = core.enter(super::core::ConnectedClient {
        identity: identity.clone(),
        address: peer.address,
        version: connect.version,
        since_boot_ms: core.ingress.clock().boot_ms(),
        keep_alive,
        is_persistent: expiry > 0,
        session: session.name.clone(),
        permissions: permissions.clone(),
        password_hash,
        kick: claim.kick.clone(),
        subscriber: subscriber.clone(),
        is_new: !present,
    });
    let origin = core::origin(&owner);
    let mut payer = core.ingress.meter().paid_by_network(origin, Origin::http_from(network(peer.address)));
    if will.as_ref().is_some_and(|will| levels(&will.topic) > USUAL_LEVELS) {
        payer.iter_mut().for_each(PaidByNetwork::may_owe);
    }
    let mut out = BytesMut::new();
    admit::greet(&mut out, core, &connect, present, assigned.then_some(&*identity.client_id), keep_alive);
    let connection = Box::new(BrokerConnection {
        origin,
        identity,
        address: peer.address,
        permissions,
        version: connect.version,
        is_bridge: connect.is_bridge,
        gateway: connect.gateway,
        keep_alive,
        session,
        subscriber,
        will,
        max_packet: connect.maximum_packet_size as usize,
        aliases: InboundAliases::default(),
        outbound_aliases: OutboundAliases::new(connect.topic_alias_maximum),
        out: SocketOutput::new(out),
        batch: BatchBuilder::default(),
        acks: Acks::default(),
        subacks: VecDeque::new(),
        received: Vec::new(),
        synced: core.ingress.journal().synced(),
        is_deaf: false,
        is_short: false,
        read_at: None,
        pending: None,
        receiving: None,
        unplaced: Vec::new(),
        holder,
        held_until: None,
        change: None,
        has_more: false,
        has_input: false,
        first_turn: core.ingress.meter().first_turn(origin),
        payer,
        _place: place,
        core: core.clone(),
    });
    Ok((claim, number, connection))
}

/// Continues the session that was found, or creates one.
fn begin_session(
    core: &Core,
    connect: &mqtt::Connect,
    (owner, holder): (&str, &PlaceHolder),
    resumed: Option<Session>,
    expiry: u32,
) -> Session {
    let window = connect.receive_maximum.min(core.settings.load().max_inflight);
    let mut session = resumed.unwrap_or_else(|| core.new_session(owner, window, expiry > 0, expiry));
    session.expiry = expiry;
    session.outbound.resume(window);
    session.held.belongs_to(&core.subscriptions, holder.clone());
    core.keep(&mut session, true);
    session
}

/// Publishes or keeps the will, parks or ends the session, and releases the client id.
async fn close(
    core: &Arc<Core>,
    mut connection: Box<BrokerConnection>,
    end: ConnectionEnd,
    claim: super::registry::Claim,
) {
    // accepted messages without a place in the order still get one; if the router has failed, its own task reports that
    if !connection.batch.is_empty() && !matches!(end, ConnectionEnd::Panicked) {
        loop {
            let room = core.ingress.room().notified();
            let session =
                connection.session.durable.as_ref().map(|durable| (durable.consumer, &connection.received[..]));
            match core.ingress.try_publish_for(&mut connection.batch, session) {
                Ok(None) => room.await,
                _ => break,
            }
        }
    }
    let mut session = connection.session;
    if let ConnectionEnd::Disconnected(_, Some(expiry)) = end {
        session.expiry = expiry;
    }
    core.detach(&mut session, (&connection.subscriber, &connection.identity), connection.pending).await;
    session.left = connection.subscriber.inbox.account().map(|account| account.left(session.outbound.bytes()));
    let will = connection.will.filter(|_| end.publishes_will());
    let keep = session.durable.is_some() && session.expiry > 0 && !claim.kick.ends_session();
    let now = Instant::now();
    let mut delayed = None;
    if let Some(will) = will {
        if keep && will.delay > 0 && connection.permissions.may_publish(&will.topic) {
            delayed = Some((now + Duration::from_secs(u64::from(will.delay)), will));
        } else {
            core.ingress.turn(connection.origin).await;
            core.publish_will(&connection.identity, &connection.permissions, &will).await;
        }
    }
    if delayed.is_none() {
        core.keep_will(&session.owner, None);
    }
    if keep {
        core.keep(&mut session, false);
        let expires = expires(now, session.expiry, core.settings.load().session_expiry);
        let parked = Parked { session, expires, since: now, will: delayed };
        if let Some(over) = core.registry.release(claim, Some(parked)) {
            core.end_in_hand(over).await;
        }
    } else {
        core.end(session).await;
        let _ = core.registry.release(claim, None);
    }
}

#[cfg(test)]
mod tests;

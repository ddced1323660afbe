//! The connection of one client, from CONNECT to its end.
//!
//! A single task owns the socket and the session. It reads what has arrived, makes one batch of all PUBLISHes of a read,
//! takes waiting messages as far as the client's window allows, and writes everything at once. It never waits for the disk
//! or for other clients: acknowledgements are queued in order and sent when their receipts are complete.

mod acks;
mod admit;
mod aliases;
mod deliver;
mod end;
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
mod turn;

use std::collections::VecDeque;
use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::time::{Duration, Instant};
use tracing::debug;

use self::acks::Acks;
use self::admit::Admitted;
use self::aliases::InboundAliases;
use self::end::ConnectionEnd;
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
use crate::exchange::stats::TurnCount;
use crate::exchange::subscribers::Subscriber;
use crate::journal::Position;
use crate::message::{BatchBuilder, Origin, USUAL_LEVELS, levels, via};
use crate::mqtt::alias::OutboundAliases;
use crate::mqtt::{self, Reason, Version, write};

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
    /// What was counted and is not yet in the counters of the broker.
    counted: TurnCount,
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
    /// Whether it was asked for a turn, see [`crate::exchange::inbox`].
    is_asked: bool,
    /// Whether it has published few messages in this turn, which are in the queues of their receivers.
    has_delivered: bool,
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

impl BrokerConnection {
    /// The connection of an admitted client, with the CONNACK in its output. `present` says whether it continues a session.
    fn new(
        core: &Arc<Core>,
        admitted: Admitted,
        peer: &Peer,
        (session, subscriber, will): (Session, Arc<Subscriber>, Option<WaitingWill>),
        (holder, present): (PlaceHolder, bool),
    ) -> Box<BrokerConnection> {
        let Admitted { connect, identity, permissions, assigned, keep_alive, place, .. } = admitted;
        let origin = core::origin(&identity.session());
        let mut payer = core.ingress.meter().paid_by_network(origin, Origin::http_from(network(peer.address)));
        if will.as_ref().is_some_and(|will| levels(&will.topic) > USUAL_LEVELS) {
            payer.iter_mut().for_each(PaidByNetwork::may_owe);
        }
        let mut out = BytesMut::new();
        admit::greet(&mut out, core, &connect, present, assigned.then_some(&*identity.client_id), keep_alive);
        Box::new(BrokerConnection {
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
            counted: TurnCount::default(),
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
            is_asked: false,
            has_input: false,
            has_delivered: false,
            first_turn: core.ingress.meter().first_turn(origin),
            payer,
            _place: place,
            core: core.clone(),
        })
    }
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
    drop(input);
    Box::pin(conclude(core, connection, end, (claim, number), (reader, writer))).await;
}

/// Says good-bye to the client after its connection has ended, and leaves its place to others.
async fn conclude<R, W>(
    core: Arc<Core>,
    mut connection: Box<BrokerConnection>,
    end: ConnectionEnd,
    (claim, number): (super::registry::Claim, u64),
    (reader, writer): (R, W),
) where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    end.log(&core, &connection.identity.client_id, connection.address);
    if end.is_stopping() {
        // the gateway's own last messages, such as that a sensor is offline, are still delivered
        connection.deliver();
    }
    // its own last messages may wait for a place, and nobody must wait for a reader that is gone
    connection.subscriber.inbox.give_up();
    if let Some(reason) = end.reason() {
        let version = connection.version;
        write::disconnect(connection.out.tail(), version, reason);
    }
    core.leave(number);
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
    mut admitted: Admitted,
    (peer, arrived): (&Peer, Instant),
) -> Result<OpenedConnection, Reason> {
    let owner = admitted.identity.session();
    let holder = Core::holder(&owner, Some(peer.address));
    if admitted.expiry > 0 || !admitted.connect.clean {
        wait_for_card(core, &holder, &admitted.place).await?;
    }
    let Some((claim, parked)) = core.registry.claim(&owner, arrived).await else { return Err(Reason::SERVER_BUSY) };
    let kick = claim.kick.clone();
    admitted.place.on_cut(move || kick.kick(Reason::SERVER_BUSY));
    let parked = core.inherit(&admitted.identity, &admitted.permissions, parked).await;
    let old = parked.as_ref().and_then(|parked| parked.will.as_ref()).map(|(_, will)| will);
    let Ok(will) = hold_will(core, &mut admitted, (&holder, peer.address), old) else {
        if let Some(over) = core.registry.release(claim, parked) {
            core.end_in_hand(over).await;
        }
        return Err(Reason::QUOTA_EXCEEDED);
    };
    let resumed = match parked {
        Some(parked) => core.take_up(parked, arrived, admitted.connect.clean).await,
        None => None,
    };
    let present = resumed.is_some();
    if !present && admitted.expiry > 0 && !core.ingress.journal().has_room_for_session(&owner) {
        // CONNACK would promise a session that is gone after a restart
        let _ = core.registry.release(claim, None);
        return Err(Reason::SERVER_BUSY);
    }
    let mut session = begin_session(core, &admitted.connect, (&owner, &holder), resumed, admitted.expiry);
    let lasting = will.as_deref().filter(|will| admitted.permissions.may_publish(&will.topic));
    core.keep_will_of(&holder, &owner, lasting);
    let subscriber = core.subscriber(&session);
    subscriber.inbox.set_in_hand(session.outbound.bytes());
    session.left = None;
    if present {
        core.attach(&session, &subscriber, &admitted.permissions).await;
    }
    let password_hash = admitted.password_hash.take();
    let connection = BrokerConnection::new(core, admitted, peer, (session, subscriber, will), (holder, present));
    let number = core.enter(super::core::ConnectedClient {
        identity: connection.identity.clone(),
        address: peer.address,
        version: connection.version,
        since_boot_ms: core.ingress.clock().boot_ms(),
        keep_alive: connection.keep_alive,
        is_persistent: connection.session.expiry > 0,
        session: connection.session.name.clone(),
        permissions: connection.permissions.clone(),
        password_hash,
        kick: claim.kick.clone(),
        subscriber: connection.subscriber.clone(),
        is_new: !present,
    });
    Ok((claim, number, connection))
}

/// Waits until the holder may write to the card. The error is the reason not to wait any longer.
async fn wait_for_card(core: &Core, holder: &PlaceHolder, place: &Place) -> Result<(), Reason> {
    tokio::select! {
        biased;
        () = core.wait_for_card(holder) => Ok(()),
        () = place.cut() => Err(Reason::SERVER_BUSY),
        // of two connections the newer one waits, in the place that both share
        () = place.replaced() => Err(Reason::SERVER_BUSY),
        () = core.cancel.cancelled() => Err(Reason::SERVER_SHUTTING_DOWN),
    }
}

/// Takes memory for the client's will, which replaces an `old` one of the session. Fails if the holder has too many wills.
fn hold_will(
    core: &Core,
    admitted: &mut Admitted,
    (holder, address): (&PlaceHolder, IpAddr),
    old: Option<&WaitingWill>,
) -> Result<Option<WaitingWill>, ()> {
    let Some(will) = admitted.connect.will.take() else { return Ok(None) };
    let held = WaitingWill::hold(&core.wills, holder, will, old);
    if held.is_none() {
        core.access.quota(&admitted.identity, address, "bytes of last wills");
    }
    held.map(Some).ok_or(())
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

//! Decides whether a client may connect, and under which identity.

use std::sync::Arc;

use bytes::BytesMut;

use super::super::core::Core;
use super::super::settings::BrokerSettings;
use super::Peer;
use super::aliases::TOPIC_ALIAS_MAXIMUM;
use super::receive::RECEIVE_MAXIMUM;
use crate::access::authenticate::{Authenticated, Credentials, Refusal};
use crate::access::authorise::Permissions;
use crate::access::identity::Identity;
use crate::access::places::{Newcomer, Place};
use crate::health::beginning;
use crate::message::via;
use crate::mqtt::write::{self, ConnAckProperties};
use crate::mqtt::{Connect, Reason};

/// The longest client id in bytes. The id is the name of the session, so the registry, the journal and all that belongs to the
/// session have copies of it. Every server must accept 23 bytes [MQTT-3.1.3-5], and hardly any client uses more than 100.
const LONGEST_ID: usize = 1024;
/// The number of bytes of a longer one that are logged.
const SHOWN: usize = 64;

/// A client that may connect.
pub(crate) struct Admitted {
    pub(crate) connect: Connect,
    pub(crate) identity: Identity,
    pub(crate) permissions: Arc<Permissions>,
    pub(crate) password_hash: Option<String>,
    /// Whether the broker has chosen the client id.
    pub(crate) assigned: bool,
    /// The keep alive in force, in seconds.
    pub(crate) keep_alive: u16,
    /// How long the session may outlive the connection, in seconds.
    pub(crate) expiry: u32,
    /// Its place among the connected clients.
    pub(crate) place: Place,
}

/// Checks credentials, client id and limits. Without a reason the error is that the client has `gone` before.
pub(super) async fn admit(
    core: &Arc<Core>,
    connect: Connect,
    peer: &Peer,
    gone: impl Future<Output = ()>,
) -> Result<Admitted, Option<Reason>> {
    let settings = core.settings.load_full();
    if core.cancel.is_cancelled() {
        return Err(Some(Reason::SERVER_SHUTTING_DOWN));
    }
    if connect.extended_authentication {
        return Err(Some(Reason::BAD_AUTHENTICATION_METHOD));
    }
    if connect.client_id.len() > LONGEST_ID {
        let why = format!("its client id is longer than {LONGEST_ID} bytes");
        let credentials = credentials(&connect, peer);
        let client_id = beginning(credentials.client_id, SHOWN);
        core.access.refused(&Credentials { client_id, ..credentials }, &why);
        return Err(Some(Reason::CLIENT_ID_NOT_VALID));
    }
    let is_v5 = connect.version.is_v5();
    let assigned = connect.client_id.is_empty();
    // [MQTT-3.1.3-8] of 3.1.1; version 3.1 does not allow an empty client id
    if assigned && !is_v5 && (!connect.clean || connect.version == super::Version::V31) {
        return Err(Some(Reason::CLIENT_ID_NOT_VALID));
    }
    let client_id = if assigned { assigned_id() } else { connect.client_id.clone() };
    let shown = credentials(&connect, peer);
    let Authenticated { user, password_hash } = tokio::select! {
        biased;
        who = core.access.authenticate(&shown) => who.map_err(reason)?,
        // whoever has gone gives up its place among those who wait for a password check
        () = gone => return Err(None),
    };
    let identity = Identity { user, client_id, listener: peer.listener.clone() };
    if !assigned && !may_have_id(core, &identity) {
        let why = "its client id is not one that client_ids of its user allow";
        core.access.refused(&credentials(&connect, peer), why);
        return Err(Some(Reason::CLIENT_ID_NOT_VALID));
    }
    if core.registry.has_another_user(&identity) {
        core.access.foreign_client_id(&identity, peer.address);
    }
    let place = place(core, &connect, &identity, peer)?;
    let permissions = Arc::new(core.access.authoriser.permissions(&identity));
    // older clients cannot be told of another keep alive, and would be disconnected although they keep their own
    let keep_alive = match settings.max_keep_alive {
        Some(most) if is_v5 && (connect.keep_alive == 0 || connect.keep_alive > most) => most,
        _ => connect.keep_alive,
    };
    let expiry = expiry(&connect).min(longest_expiry(&settings));
    Ok(Admitted { expiry, connect, identity, permissions, password_hash, assigned, keep_alive, place })
}

/// How long the client wants its session to outlive the connection, in seconds. Before version 5 that is for ever or not at all.
fn expiry(connect: &Connect) -> u32 {
    match connect.session_expiry {
        asked if connect.version.is_v5() => asked.unwrap_or(0),
        _ if connect.clean => 0,
        _ => u32::MAX,
    }
}

/// How long a session may outlive its connection at most, in seconds.
fn longest_expiry(settings: &BrokerSettings) -> u32 {
    u32::try_from(settings.session_expiry.as_secs()).unwrap_or(u32::MAX)
}

fn reason(refusal: Refusal) -> Reason {
    match refusal {
        Refusal::NotAuthorized => Reason::NOT_AUTHORIZED,
        Refusal::BadCredentials => Reason::BAD_USER_NAME_OR_PASSWORD,
        Refusal::Busy => Reason::SERVER_BUSY,
    }
}

/// Takes a place for this client, if one is free or somebody has to give way.
fn place(core: &Core, connect: &Connect, identity: &Identity, peer: &Peer) -> Result<Place, Reason> {
    let session = identity.session();
    let user = identity.user.as_deref();
    let newcomer = Newcomer {
        user,
        from: peer.address,
        session: Some(&session),
        is_returning: core.registry.knows(&session),
        is_unknown: false,
    };
    core.places.enter(&newcomer, core.bounds()).map_err(|_| {
        let why = "too many clients are connected; broker.max_connections can be raised";
        core.access.refused(&credentials(connect, peer), why);
        Reason::SERVER_BUSY
    })
}

fn may_have_id(core: &Core, identity: &Identity) -> bool {
    let Some(name) = identity.user.as_deref() else { return true };
    let user = core.access.authoriser.user(identity.listener.as_deref(), name);
    user.is_some_and(|user| user.may_have_id(&identity.client_id))
}

fn credentials<'a>(connect: &'a Connect, peer: &'a Peer) -> Credentials<'a> {
    Credentials {
        certificate_user: peer.certificate_user.as_deref(),
        username: connect.username.as_deref(),
        password: connect.password.as_deref(),
        client_id: &connect.client_id,
        from: peer.address,
        listener: peer.listener.as_deref(),
    }
}

/// Makes a client id for a client that has sent none.
fn assigned_id() -> Box<str> {
    let mut random = [0u8; 8];
    if getrandom::fill(&mut random).is_err() {
        // it must only be unique within this process
        static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        random = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed).to_be_bytes();
    }
    format!("auto-{:016x}", u64::from_be_bytes(random)).into()
}

pub(crate) fn greet(
    out: &mut BytesMut,
    core: &Core,
    connect: &Connect,
    present: bool,
    assigned: Option<&str>,
    keep_alive: u16,
) {
    let settings = core.settings.load();
    let bound = longest_expiry(&settings);
    let properties = ConnAckProperties {
        session_expiry: connect.session_expiry.filter(|asked| *asked > bound).map(|_| bound),
        receive_maximum: Some(RECEIVE_MAXIMUM),
        maximum_packet_size: u32::try_from(settings.max_packet_size).ok(),
        assigned_client_id: assigned,
        topic_alias_maximum: Some(TOPIC_ALIAS_MAXIMUM),
        server_keep_alive: (keep_alive != connect.keep_alive).then_some(keep_alive),
        reason_string: None,
        gateway: connect.is_gateway.then(via::Id::ours),
    };
    write::connack(out, connect.version, present, Reason::SUCCESS, &properties);
}

//! Whether a client may come in, and as whom.

use std::sync::Arc;

use bytes::BytesMut;
use parking_lot::Mutex;
use tokio::time::{Duration, Instant};
use tracing::warn;

use super::super::authorise::{Identity, Permissions};
use super::super::codec::write::{self, ConnAckProperties};
use super::super::codec::{Connect, Reason};
use super::super::core::Core;
use super::super::password::Verdict;
use super::Peer;
use super::receive::{RECEIVE_MAXIMUM, TOPIC_ALIAS_MAXIMUM};

/// Longest keep alive for MQTT 5 clients, in seconds: a dead one is noticed within one and a half times this.
const MAX_KEEP_ALIVE: u16 = 60;

/// A client that may come in.
pub struct Admitted {
    pub connect: Connect,
    pub identity: Identity,
    pub permissions: Arc<Permissions>,
    pub password_hash: Option<String>,
    /// The broker chose the client id.
    pub assigned: bool,
    /// In force, in seconds.
    pub keep_alive: u16,
    /// Seconds that the session may outlive the connection.
    pub expiry: u32,
}

/// Checks who it is.
pub async fn admit(core: &Arc<Core>, connect: Connect, peer: &Peer) -> Result<Admitted, Reason> {
    let settings = core.settings.load_full();
    if core.cancel.is_cancelled() {
        return Err(Reason::SERVER_SHUTTING_DOWN);
    }
    if connect.extended_authentication {
        return Err(Reason::BAD_AUTHENTICATION_METHOD);
    }
    if core.stats.connected.get() >= settings.max_connections as u64 {
        refused(&connect, peer, "too many clients are connected; broker.max_connections can be raised");
        return Err(Reason::SERVER_BUSY);
    }
    let is_v5 = connect.version.is_v5();
    let assigned = connect.client_id.is_empty();
    // [MQTT-3.1.3-8] of 3.1.1; 3.1 knows no empty client id
    if assigned && !is_v5 && (!connect.clean || connect.version == super::Version::V31) {
        return Err(Reason::CLIENT_ID_NOT_VALID);
    }
    let client_id = if assigned { assigned_id() } else { connect.client_id.clone() };
    let (user, password_hash) = authenticate(core, &connect, peer).await?;
    let identity = Identity { user, client_id };
    let permissions = Arc::new(core.authoriser.permissions(&identity));
    let wanted = match connect.session_expiry {
        _ if !is_v5 => {
            if connect.clean {
                0
            } else {
                u32::MAX
            }
        }
        asked => asked.unwrap_or(0),
    };
    let bound = u32::try_from(settings.session_expiry.as_secs()).unwrap_or(u32::MAX);
    let keep_alive = if is_v5 && connect.keep_alive > MAX_KEEP_ALIVE { MAX_KEEP_ALIVE } else { connect.keep_alive };
    Ok(Admitted { expiry: wanted.min(bound), connect, identity, permissions, password_hash, assigned, keep_alive })
}

/// User name and hash in force; `None`: anonymous.
async fn authenticate(
    core: &Arc<Core>,
    connect: &Connect,
    peer: &Peer,
) -> Result<(Option<Box<str>>, Option<String>), Reason> {
    if let Some(name) = &peer.certificate_user {
        return match core.authoriser.user(name) {
            Some(user) => Ok((Some(name.clone()), user.password_hash.clone())),
            None => {
                refused(connect, peer, "there is no [[broker.user]] with the common name of its certificate");
                Err(Reason::NOT_AUTHORIZED)
            }
        };
    }
    let has_users = !core.settings.load().users.is_empty();
    let Some(name) =
        connect.username.as_ref().filter(|_| has_users || !core.authoriser.accepts_anonymous(peer.address))
    else {
        // where there are no users, a user name means nothing, as it does to mosquitto
        return if core.authoriser.accepts_anonymous(peer.address) {
            Ok((None, None))
        } else {
            refused(
                connect,
                peer,
                "it gave no user name. Add a user (pigateway user NAME) and give the client its name and password, or \
                 let clients without one in: accept = \"all\" under [broker.anonymous]",
            );
            Err(Reason::NOT_AUTHORIZED)
        };
    };
    let hash = core.authoriser.user(name).and_then(|user| user.password_hash.clone());
    let password = connect.password.as_deref().unwrap_or_default();
    // an unknown user costs as much time as a wrong password
    let against = hash.as_deref().unwrap_or(NOBODY);
    match core.passwords.check(name, against, password, peer.address).await {
        Verdict::Right if hash.is_some() => Ok((Some(name.clone()), hash)),
        Verdict::Busy => Err(Reason::SERVER_BUSY),
        _ => {
            refused(
                connect,
                peer,
                "wrong user name or password. `pigateway user NAME` makes a new [[broker.user]] table",
            );
            Err(Reason::BAD_USER_NAME_OR_PASSWORD)
        }
    }
}

/// A hash that no password has.
const NOBODY: &str =
    "$argon2id$v=19$m=19456,t=2,p=1$cGlnYXRld2F5LW5vYm9keQ$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

/// A client id for a client that has none.
fn assigned_id() -> Box<str> {
    let mut random = [0u8; 8];
    if getrandom::fill(&mut random).is_err() {
        // unique in this process is all that is needed
        static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        random = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed).to_be_bytes();
    }
    format!("auto-{:016x}", u64::from_be_bytes(random)).into()
}

/// Writes the CONNACK.
pub fn greet(
    out: &mut BytesMut,
    core: &Core,
    connect: &Connect,
    present: bool,
    assigned: Option<&str>,
    keep_alive: u16,
) {
    let settings = core.settings.load();
    let bound = u32::try_from(settings.session_expiry.as_secs()).unwrap_or(u32::MAX);
    let properties = ConnAckProperties {
        session_expiry: connect.session_expiry.filter(|asked| *asked > bound).map(|_| bound),
        receive_maximum: Some(RECEIVE_MAXIMUM),
        maximum_packet_size: u32::try_from(settings.max_packet_size).ok(),
        assigned_client_id: assigned,
        topic_alias_maximum: Some(TOPIC_ALIAS_MAXIMUM),
        server_keep_alive: (keep_alive != connect.keep_alive).then_some(keep_alive),
        reason_string: None,
    };
    write::connack(out, connect.version, present, Reason::SUCCESS, &properties);
}

/// Says why a client was refused and how to let it in; at most once in ten seconds, so that a client that tries for ever
/// does not fill the log.
fn refused(connect: &Connect, peer: &Peer, why: &str) {
    static LAST: Mutex<Option<(Instant, u64)>> = Mutex::new(None);
    let now = Instant::now();
    let mut last = LAST.lock();
    match &mut *last {
        Some((at, more)) if now.duration_since(*at) < Duration::from_secs(10) => *more += 1,
        slot => {
            let more = slot.map_or(0, |(_, more)| more);
            *slot = Some((now, 0));
            drop(last);
            warn!(
                client_id = &*connect.client_id,
                user = connect.username.as_deref(),
                from = %peer.address,
                more_since_last = more,
                "client refused: {why}"
            );
        }
    }
}

//! Who a client is and what it may do: one answer for every door.
//!
//! | file | what |
//! |---|---|
//! | `settings` | users, clients without a user name, and what they may do |
//! | `identity`, `owner` | users, clients, whose a session is, and what waits in the journal |
//! | `authenticate`, `password` | who somebody is |
//! | `queue`, `turns` | who may wait for the check of a password, and whose is checked next |
//! | `hash`, `replaced` | forms of password hashes, and argon2id in place of the weaker ones |
//! | `guesses`, `familiar` | how fast passwords may be guessed, and who goes first |
//! | `former` | users that there were |
//! | `authorise`, `in_force` | what it may publish and receive, also while it is not connected |
//! | `handshakes` | whose TLS handshake is next |
//! | `held` | what of a TLS handshake waits for its turn |
//! | `places` | places of connections, and who gives way |
//! | `quota` | shares of what is counted |
//! | `security` | events that a person should see |
//! | `waiting` | places of connections that have not said who they are |
//! | `made` | users that are made while the gateway runs |
//! | `limiter` | which log lines that clients cause are written |

pub(crate) mod authenticate;
pub(crate) mod authorise;
pub mod familiar;
pub(crate) mod former;
pub(crate) mod guesses;
mod handshakes;
pub mod hash;
mod held;
pub(crate) mod identity;
pub(crate) mod in_force;
pub(crate) mod limiter;
pub mod made;
pub(crate) mod owner;
pub(crate) mod password;
pub(crate) mod places;
pub(crate) mod queue;
pub(crate) mod quota;
pub mod replaced;
pub(crate) mod security;
pub mod settings;
mod turns;
pub(crate) mod waiting;

use std::io;
use std::net::IpAddr;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use self::authorise::Authoriser;
use self::handshakes::Handshakes;
use self::held::HeldStream;
use self::limiter::Limiter;
use self::password::Passwords;
use self::security::Security;
use self::settings::AccessSettings;
use crate::message::Owner;

/// The access decisions that all doors share.
#[derive(Debug)]
pub struct Access {
    pub(crate) authoriser: Authoriser,
    pub(crate) passwords: Passwords,
    handshakes: Handshakes,
    /// The rate limit for log lines that clients can cause.
    pub(crate) limiter: Limiter,
    /// Counters and log lines for events that a person should see.
    pub(crate) security: Security,
}

impl Access {
    /// Starts with the users and rules of these settings.
    pub(crate) fn new(settings: &AccessSettings) -> Access {
        Owner::know(settings.all_users().map(|user| &*user.name));
        Access {
            authoriser: Authoriser::new(settings),
            passwords: Passwords::default(),
            handshakes: Handshakes::default(),
            limiter: Limiter::default(),
            security: Security::default(),
        }
    }

    /// Accepts TLS on a stream from this address, when it has its turn. An error comes with the stream, if it is still open.
    pub(crate) async fn accept_tls<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        stream: S,
        tls: &TlsAcceptor,
        from: IpAddr,
    ) -> Result<TlsStream<HeldStream<S>>, (io::Error, Option<S>)> {
        let is_familiar = self.passwords.familiar.knows_somebody(from);
        self.handshakes.accept(stream, tls, (from, is_familiar)).await
    }

    /// Replaces users and rules. The caller must check afterwards whether existing sessions may stay.
    pub(crate) fn reload(&self, settings: &AccessSettings) {
        Owner::know(settings.all_users().map(|user| &*user.name));
        self.authoriser.reload(settings);
        self.passwords.reload();
        self.passwords.replaced.retain(settings.hashes());
        self.passwords.familiar.retain(|name| settings.all_users().any(|user| user.name == name));
    }
}

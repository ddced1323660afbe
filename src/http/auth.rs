//! Who makes a request, and what it may do: the same decision as for MQTT clients.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use base64ct::{Base64, Encoding};

use super::Http;
use super::problem::Problem;
use crate::access::Access;
use crate::access::authenticate::{Credentials, Refusal};
use crate::access::authorise::Permissions;
use crate::access::identity::Identity;
use crate::access::places::{Newcomer, Place};
use crate::message;

/// Longest password and user name together.
const MAX_CREDENTIALS: usize = 1024;

/// Where a request comes from.
#[derive(Clone, Copy, Debug)]
pub struct Origin(pub IpAddr);

/// The user that the certificate of a connection names.
#[derive(Clone, Debug)]
pub struct Certificate(pub Option<Box<str>>);

/// Who makes a request.
#[derive(Clone, Debug)]
pub struct Caller {
    identity: Identity,
    password_hash: Option<String>,
    from: IpAddr,
    /// What it may do.
    pub permissions: Permissions,
}

impl Caller {
    /// Its user; `None`: somebody without a user name.
    pub fn user(&self) -> Option<&str> {
        self.identity.user.as_deref()
    }

    /// Whether it would be let in with the same permissions now.
    pub fn still_holds(&self, access: &Access) -> bool {
        access.authoriser.still_holds(&self.identity, self.password_hash.as_deref(), self.from, &self.permissions)
    }

    /// What it publishes as.
    pub fn origin(&self) -> message::Origin {
        message::Origin::http().owned_by(message::Owner::of(self.identity.user.as_deref()))
    }

    /// As somebody who wants a place.
    pub fn newcomer(&self) -> Newcomer<'_> {
        let user = self.identity.user.as_deref();
        Newcomer { user, from: self.from, session: None, is_returning: false, is_unknown: false }
    }

    /// Whether it may see how the gateway itself is doing.
    pub fn must_observe(&self) -> Result<(), Problem> {
        if self.permissions.may_observe() {
            return Ok(());
        }
        Err(Problem::forbidden("this user may not see it: subscribe must contain \"#\" or \"$SYS/#\""))
    }
}

/// User name and password of `Authorization: Basic` [RFC 7617].
fn basic(headers: &HeaderMap) -> Result<Option<(String, Vec<u8>)>, Problem> {
    let Some(value) = headers.get(header::AUTHORIZATION) else { return Ok(None) };
    let malformed = || Problem::unauthorized("the Authorization header is not Basic with a user name and a password");
    let value = value.to_str().map_err(|_| malformed())?;
    let (scheme, encoded) = value.split_once(' ').ok_or_else(malformed)?;
    if !scheme.eq_ignore_ascii_case("basic") || encoded.len() > MAX_CREDENTIALS * 4 / 3 {
        return Err(malformed());
    }
    let decoded = Base64::decode_vec(encoded.trim()).map_err(|_| malformed())?;
    let colon = decoded.iter().position(|byte| *byte == b':').ok_or_else(malformed)?;
    let name = std::str::from_utf8(&decoded[..colon]).map_err(|_| malformed())?;
    Ok(Some((name.to_owned(), decoded[colon + 1..].to_vec())))
}

/// Finds out who it is.
async fn identify(http: &Http, peer: IpAddr, headers: &HeaderMap) -> Result<Caller, Problem> {
    let access = &http.access;
    let from = http.address(peer, headers);
    let basic = basic(headers)?;
    if basic.is_none() && !access.authoriser.accepts_anonymous(None, from) {
        // not worth a line in the log: this is how browsers come to ask for the password
        return Err(Problem::unauthorized(
            "a user name and password are needed here. `pigateway user NAME` makes a user; accept = \"all\" under \
             [broker.anonymous] lets everybody in",
        ));
    }
    let credentials = Credentials {
        certificate_user: None,
        username: basic.as_ref().map(|(name, _)| name.as_str()),
        password: basic.as_ref().map(|(_, password)| password.as_slice()),
        client_id: "(HTTP)",
        from,
        listener: None,
    };
    let who = access.authenticate(&credentials).await.map_err(|refusal| match refusal {
        Refusal::NotAuthorized | Refusal::BadCredentials => Problem::unauthorized(refusal.to_string()),
        Refusal::Busy => Problem::unavailable(refusal.to_string()),
    })?;
    // HTTP knows no client id: rules with %c allow nothing
    let identity = Identity { user: who.user, client_id: "".into(), listener: None };
    let permissions = access.authoriser.permissions(&identity);
    Ok(Caller { identity, password_hash: who.password_hash, from, permissions })
}

impl FromRequestParts<Arc<Http>> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, http: &Arc<Http>) -> Result<Caller, Problem> {
        let Some(Origin(peer)) = parts.extensions.get() else {
            return Err(Problem::unauthorized("nobody knows where this request comes from"));
        };
        let caller = identify(http, *peer, &parts.headers).await?;
        if let (Some(place), Some(user)) = (parts.extensions.get::<Arc<Place>>(), &caller.identity.user) {
            place.belongs_to(user);
        }
        Ok(caller)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(name: &'static str, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(name.parse().unwrap(), value.parse().unwrap())])
    }

    #[test]
    fn basic_credentials_are_read_and_nothing_else() {
        let read = |value: &str| basic(&headers("authorization", value));
        assert_eq!(read("Basic YTpiOmM=").unwrap(), Some(("a".into(), b"b:c".to_vec())));
        assert_eq!(read("basic YTo=").unwrap(), Some(("a".into(), Vec::new())));
        for bad in ["Bearer x", "Basic", "Basic !", "Basic YQ==", "Basic /zph", "Basic YTpiOmM"] {
            assert!(read(bad).is_err(), "{bad}");
        }
        assert_eq!(basic(&HeaderMap::new()).unwrap(), None);
    }
}

//! Finds out who makes a request and what it may do, by the same decision as for MQTT clients.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, header};
use base64ct::{Base64, Encoding};
use schemars::JsonSchema;
use serde::Serialize;

use super::Http;
use super::answers::Asker;
use super::guard::SameOrigin;
use super::problem::HttpProblem;
use super::sign_ins::SignIn;
use crate::access::Access;
use crate::access::authenticate::{Credentials, Refusal};
use crate::access::authorise::Permissions;
use crate::access::guesses::network;
use crate::access::identity::Identity;
use crate::access::places::{Newcomer, Place, PlaceHolder};
use crate::message;

/// The longest user name and password together, in bytes.
const MAX_CREDENTIALS: usize = 1024;

/// The address from which a request comes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RequestOrigin(pub(crate) IpAddr);

/// The user that the client certificate of a connection names.
#[derive(Clone, Debug)]
pub(crate) struct Certificate(pub(crate) Option<Box<str>>);

/// The client that makes a request.
#[derive(Clone, Debug)]
pub(crate) struct Caller {
    identity: Identity,
    password_hash: Option<String>,
    from: IpAddr,
    sign_in: Option<Arc<SignIn>>,
    /// What the client may publish and receive.
    pub(crate) permissions: Permissions,
}

impl Caller {
    /// The user name; `None` for a client without one.
    pub(crate) fn user(&self) -> Option<&str> {
        self.identity.user.as_deref()
    }

    /// Whether the client would get the same permissions now.
    pub(crate) fn still_holds(&self, access: &Access) -> bool {
        self.sign_in.as_ref().is_none_or(|sign_in| sign_in.goes_on() && sign_in.is_of_now(access))
            && access.authoriser.still_holds(
                &self.identity,
                self.password_hash.as_deref(),
                self.from,
                &self.permissions,
            )
    }

    /// How the client was identified.
    pub(crate) fn by(&self) -> By {
        match (&self.sign_in, &self.identity.user) {
            (Some(_), _) => By::SignIn,
            (None, Some(_)) => By::Password,
            (None, None) => By::Nothing,
        }
    }

    /// Fails unless the caller is an administrator. A client without a user name never is, wherever it comes from.
    pub(crate) fn must_administer(&self, http: &Http) -> Result<(), HttpProblem> {
        let user = self.user().and_then(|name| http.access.authoriser.user(None, name));
        if user.is_some_and(|user| user.is_admin) && self.still_holds(&http.access) {
            return Ok(());
        }
        Err(HttpProblem::forbidden("only a [[broker.user]] of the configuration with admin = true may do this"))
    }

    /// The origin of messages that the caller publishes.
    pub(crate) fn origin(&self) -> message::Origin {
        match self.user() {
            Some(user) => message::Origin::http().owned_by(message::Owner::of(Some(user))),
            None => message::Origin::http_from(network(self.from)),
        }
    }

    /// The caller as a candidate for a place.
    pub(crate) fn newcomer(&self) -> Newcomer<'_> {
        let user = self.identity.user.as_deref();
        Newcomer { user, from: self.from, session: None, is_returning: false, is_unknown: false }
    }

    /// With whom the caller shares turns.
    pub(crate) fn holder(&self) -> PlaceHolder {
        PlaceHolder::of(self.user(), self.from)
    }

    /// Fails unless the caller may see the state of the gateway.
    pub(crate) fn must_observe(&self) -> Result<(), HttpProblem> {
        if self.permissions.may_observe() {
            return Ok(());
        }
        Err(HttpProblem::forbidden("this user may not see it: subscribe must contain \"#\" or \"$SYS/#\""))
    }
}

impl From<Refusal> for HttpProblem {
    fn from(refusal: Refusal) -> HttpProblem {
        match refusal {
            Refusal::NotAuthorized | Refusal::BadCredentials => HttpProblem::unauthorized(refusal.to_string()),
            Refusal::Busy => HttpProblem::unavailable(refusal.to_string()),
        }
    }
}

/// How a client was identified.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum By {
    /// The client has not identified itself.
    Nothing,
    /// By user name and password in this request.
    Password,
    /// By a cookie of the web page, after a sign-in there.
    SignIn,
}

/// Whether a script of a web page makes the request. If such a request were answered with an offer of Basic authentication,
/// the browser would ask for a password in a window of its own, while the page has a form for that. Not all browsers send
/// more than these headers: without TLS there are no `Sec-Fetch` headers. Programs that send credentials only when they are
/// asked, such as PowerShell, call themselves Mozilla too, but only browsers have an engine like Gecko.
pub(crate) fn is_script(headers: &HeaderMap) -> bool {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let agent = text(header::USER_AGENT);
    agent.starts_with("Mozilla/") && agent.contains("Gecko") && !text(header::ACCEPT).contains("text/html")
}

/// The user name and password of `Authorization: Basic` [RFC 7617].
fn basic(headers: &HeaderMap) -> Result<Option<(String, Vec<u8>)>, HttpProblem> {
    let Some(value) = headers.get(header::AUTHORIZATION) else { return Ok(None) };
    let malformed =
        || HttpProblem::unauthorized("the Authorization header is not Basic with a user name and a password");
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

/// The client that has signed in on the page. A browser sends the cookie with any request, so it counts only for requests of
/// the page itself.
fn signed_in(http: &Http, from: IpAddr, parts: &Parts) -> Result<Option<Caller>, HttpProblem> {
    let Some(sign_in) = http.sign_ins.find(&parts.headers) else { return Ok(None) };
    if !sign_in.is_of_now(&http.access) {
        http.sign_ins.forget(&sign_in);
        return Ok(None);
    }
    let is_safe = matches!(parts.method, Method::GET | Method::HEAD | Method::OPTIONS);
    match http.guard.same_origin(&parts.uri, &parts.headers) {
        SameOrigin::Yes => {}
        SameOrigin::Unsaid if is_safe => {}
        SameOrigin::No if is_safe => return Ok(None),
        _ => {
            let detail = "with the page's cookie only the page itself may change something, and this does not come from it (Origin)";
            return Err(HttpProblem::forbidden(detail));
        }
    }
    let permissions = http.permissions_of(&sign_in.user.name);
    let identity = identity_of(Some(&sign_in.user.name));
    let password_hash = sign_in.user.password_hash.clone();
    Ok(Some(Caller { identity, password_hash, from, sign_in: Some(sign_in), permissions }))
}

/// HTTP has no client id, so rules with %c allow nothing.
fn identity_of(user: Option<&str>) -> Identity {
    Identity { user: user.map(Into::into), client_id: "".into(), listener: None }
}

impl Http {
    /// What a user may do by HTTP.
    pub(crate) fn permissions_of(&self, user: &str) -> Permissions {
        self.access.authoriser.permissions(&identity_of(Some(user)))
    }
}

/// Identifies the client of a request.
async fn identify(http: &Http, peer: IpAddr, parts: &Parts) -> Result<Caller, HttpProblem> {
    let (access, headers) = (&http.access, &parts.headers);
    let from = http.address(peer, headers);
    let basic = basic(headers)?;
    if basic.is_none()
        && let Some(caller) = signed_in(http, from, parts)?
    {
        return Ok(caller);
    }
    if basic.is_none() && !access.authoriser.accepts_anonymous(None, from) {
        // not logged, because browsers need this answer before they ask for the password
        return Err(HttpProblem::unauthorized(
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
    let who = access.authenticate(&credentials).await?;
    let identity = identity_of(who.user.as_deref());
    let permissions = access.authoriser.permissions(&identity);
    Ok(Caller { identity, password_hash: who.password_hash, from, sign_in: None, permissions })
}

impl FromRequestParts<Arc<Http>> for Caller {
    type Rejection = HttpProblem;

    async fn from_request_parts(parts: &mut Parts, http: &Arc<Http>) -> Result<Caller, HttpProblem> {
        let Some(RequestOrigin(peer)) = parts.extensions.get() else {
            return Err(HttpProblem::unauthorized("nobody knows where this request comes from"));
        };
        let caller = identify(http, *peer, parts).await?;
        if let (Some(place), Some(user)) = (parts.extensions.get::<Arc<Place>>(), &caller.identity.user) {
            place.belongs_to(user);
        }
        // what publishes is paid for by its message
        let is_read = matches!(parts.method, Method::GET | Method::HEAD);
        if let Some(asker) = parts.extensions.get::<Asker>() {
            let payer = is_read.then(|| (http.ingress.clone(), caller.origin()));
            asker.is(caller.holder(), payer);
        }
        if is_read {
            http.ingress.turn(caller.origin()).await;
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

    #[test]
    fn a_script_of_a_page_is_told_from_programs_and_from_what_somebody_opens() {
        let asks = |agent: &str, accept: &str| {
            let mut map = headers("user-agent", agent);
            map.insert("accept", accept.parse().unwrap());
            is_script(&map)
        };
        let browser =
            "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/131.0.0.0 Safari/537.36";
        let firefox = "Mozilla/5.0 (Windows NT 10.0; rv:133.0) Gecko/20100101 Firefox/133.0";
        assert!(asks(browser, "*/*") && asks(browser, "text/event-stream") && asks(firefox, "*/*"));
        // these programs send no credentials before they are asked
        for program in [
            "Mozilla/5.0 (Windows NT; Windows NT 10.0; en-US) WindowsPowerShell/5.1.22621.2506",
            "Mozilla/5.0 (Linux; Debian GNU/Linux 12; en-US) PowerShell/7.4.6",
            "Mozilla/4.0 (compatible; Win32; WinHttp.WinHttpRequest.5)",
        ] {
            assert!(!asks(program, "*/*") && !asks(program, "application/json"), "{program}");
        }
        assert!(!asks(browser, "text/html,application/xhtml+xml,*/*;q=0.8"));
        assert!(!asks("curl/8.14", "*/*") && !asks("python-requests/2.32", "*/*") && !is_script(&HeaderMap::new()));
    }
}

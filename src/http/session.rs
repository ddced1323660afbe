//! Signing in and out on the web page, and the identity of the caller.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tracing::info;

use super::auth::{By, Caller, RequestOrigin};
use super::guard::SameOrigin;
use super::problem::HttpProblem;
use super::{Http, body, proxies};
use crate::access::authenticate::Credentials;
use crate::access::guesses::network;
use crate::access::places::{Place, PlaceHolder};

/// The largest body with user name and password, in bytes.
const MOST: usize = 8 << 10;

/// The sign-in form of the page. A success returns a cookie.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct SignInBody {
    /// A user of the configuration, or one that was added by HTTP.
    user: String,
    /// The password of the user in plain text.
    password: String,
}

/// The identity of the caller.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Session")]
pub(crate) struct SessionView {
    /// The user name; `null` if the caller has not given one.
    user: Option<String>,
    /// How the caller was identified.
    by: By,
    /// Whether the caller may read and publish what the rules allow; otherwise it needs a user name and a password.
    let_in: bool,
    /// Whether the caller may see the state of the gateway.
    may_observe: bool,
    /// Whether there are users who could sign in.
    can_sign_in: bool,
    /// Whether the caller may disconnect clients, delete retained messages, and manage users.
    admin: bool,
}

impl SessionView {
    /// The view for a caller without access.
    fn nobody(http: &Http) -> SessionView {
        let can_sign_in = http.access.authoriser.has_users(None);
        SessionView { user: None, by: By::Nothing, let_in: false, may_observe: false, can_sign_in, admin: false }
    }

    /// The view for a caller with access.
    fn of(http: &Http, user: Option<&str>, by: By, (may_observe, admin): (bool, bool)) -> SessionView {
        let user = user.map(Into::into);
        SessionView { user, by, let_in: true, may_observe, admin, ..SessionView::nobody(http) }
    }
}

/// Handles `GET /api/v1/session`. It is open to everybody, because the page asks this first.
pub(crate) async fn read(
    State(http): State<Arc<Http>>,
    headers: HeaderMap,
    caller: Result<Caller, HttpProblem>,
) -> Result<Json<SessionView>, HttpProblem> {
    match caller {
        Ok(caller) => {
            let may = (caller.permissions.may_observe(), caller.must_administer(&http).is_ok());
            Ok(Json(SessionView::of(&http, caller.user(), caller.by(), may)))
        }
        Err(problem) if headers.contains_key(header::AUTHORIZATION) => Err(problem),
        Err(_) => Ok(Json(SessionView::nobody(&http))),
    }
}

/// Makes the cookie for the sender of the request, or the one that deletes it.
fn cookie(
    http: &Http,
    RequestOrigin(peer): RequestOrigin,
    headers: &HeaderMap,
    token: Option<&str>,
) -> Result<HeaderValue, HttpProblem> {
    let is_secure = http.is_tls || proxies::is_https(&http.trusted_proxies, peer, headers);
    let text = http.sign_ins.cookie(token, proxies::prefix(headers), is_secure);
    HeaderValue::try_from(text).map_err(|_| HttpProblem::bad_request("the path of the page cannot be that of a cookie"))
}

/// Handles `POST /api/v1/session`. The password is checked like any other, for HTTP or for the broker.
pub(crate) async fn sign_in(
    State(http): State<Arc<Http>>,
    Extension(origin): Extension<RequestOrigin>,
    Extension(place): Extension<Arc<Place>>,
    (uri, headers): (Uri, HeaderMap),
    content: Body,
) -> Result<Response, HttpProblem> {
    // otherwise another page could sign somebody in as a different user
    if headers.contains_key(header::ORIGIN) && http.guard.same_origin(&uri, &headers) != SameOrigin::Yes {
        return Err(HttpProblem::forbidden(
            "only the gateway's own page signs in here; programs use Basic authentication",
        ));
    }
    let from = http.address(origin.0, &headers);
    let holder = PlaceHolder::of(None, from);
    let SignInBody { user, password } = body::json(content, &headers, MOST, http.ingress.receiving(), holder).await?;
    let credentials = Credentials {
        certificate_user: None,
        username: Some(&user),
        password: Some(password.as_bytes()),
        client_id: "(page)",
        from,
        listener: None,
    };
    let who = http.access.authenticate(&credentials).await?;
    let settings = who.user.as_deref().and_then(|name| http.access.authoriser.user(None, name));
    // without any users a name has no meaning, and the user may just have been changed
    let Some(settings) = settings.filter(|user| user.password_hash == who.password_hash) else {
        return Err(HttpProblem::unauthorized("there is no such user"));
    };
    place.belongs_to(&settings.name);
    http.sign_ins.end(&headers);
    let token = http.sign_ins.begin(settings.clone());
    let token = token.ok_or_else(|| HttpProblem::unavailable("the system has no random numbers now"))?;
    if let Some(more_since_last) = http.access.limiter.due(network(from), ("sign-in", &settings.name)) {
        info!(user = settings.name, %from, more_since_last, "signed in on the page");
    }
    let may = (http.permissions_of(&settings.name).may_observe(), settings.is_admin);
    let view = SessionView::of(&http, Some(&settings.name), By::SignIn, may);
    Ok(([(header::SET_COOKIE, cookie(&http, origin, &headers, Some(&token))?)], Json(view)).into_response())
}

/// Handles `DELETE /api/v1/session`: signs out.
pub(crate) async fn sign_out(
    State(http): State<Arc<Http>>,
    Extension(origin): Extension<RequestOrigin>,
    (uri, headers): (Uri, HeaderMap),
) -> Result<Response, HttpProblem> {
    if http.guard.same_origin(&uri, &headers) != SameOrigin::Yes {
        return Err(HttpProblem::forbidden("only the gateway's own page signs out here"));
    }
    http.sign_ins.end(&headers);
    Ok((StatusCode::NO_CONTENT, [(header::SET_COOKIE, cookie(&http, origin, &headers, None)?)]).into_response())
}

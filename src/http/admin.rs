//! What only an administrator may do: end a client's connection, delete what is retained below a branch, and make users.
//!
//! An administrator is a `[[broker.user]]` with `admin = true` in the configuration, and nobody else, wherever the request
//! comes from. Its own rules hold all the same: what it may not publish on, it does not delete.

use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tracing::info;

use super::auth::Caller;
use super::problem::HttpProblem;
use super::query::{Query, decode};
use super::topics::cleared;
use super::{Http, body};
use crate::access::made::{ChangeRefused, UserChange, UserDraft};
use crate::access::settings::{AccessRule, UserSettings, is_client_id_pattern, is_user_name};
use crate::exchange::retained::SelectedRetained;
use crate::exchange::search::PORTION;
use crate::message::{BatchBuilder, check_filter};
use crate::secret::Secret;

/// Where users are.
const USERS: &str = "/api/v1/users/";
/// Largest body of a change of a user, in bytes: its rules are most of it.
const MOST: usize = 64 << 10;
/// Longest name and password of a user that is made here: both fit into a Basic header.
const LONGEST_NAME: usize = 256;
const LONGEST_PASSWORD: usize = 512;

/// Where a user stands.
#[derive(Clone, Copy, Debug, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum UserFrom {
    /// In the configuration file.
    Configuration,
    /// In the gateway's own file: made here.
    Made,
}

/// A user as administrators see it, without its password.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "User")]
pub(crate) struct UserView {
    name: String,
    from: UserFrom,
    /// Whether it counts: a user of the configuration wins over one of the same name that was made here.
    in_force: bool,
    /// Whether it may use these calls.
    admin: bool,
    /// Whether it has a password; otherwise it can only come with a certificate.
    has_password: bool,
    /// Topics that it may publish to; `!` denies.
    publish: Vec<String>,
    /// Topics that it may receive; `!` denies.
    subscribe: Vec<String>,
    /// Client ids that its clients may have; none: any.
    client_ids: Vec<String>,
}

impl UserView {
    fn new(user: &UserSettings, from: UserFrom, in_force: bool) -> UserView {
        let rules = |rules: &[AccessRule]| rules.iter().map(ToString::to_string).collect();
        UserView {
            name: user.name.clone(),
            from,
            in_force,
            admin: user.is_admin,
            has_password: user.password_hash.is_some(),
            publish: rules(&user.rights.publish),
            subscribe: rules(&user.rights.subscribe),
            client_ids: user.client_ids.clone(),
        }
    }
}

/// What is to become of a user. What is left out stays as it is, and is as in `[[broker.user]]` where the user is new.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "UserChange")]
pub(crate) struct ChangeBody {
    /// The password from now on, in clear; only its hash is kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    password: Option<String>,
    /// Topics that it may publish to; `!` denies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    publish: Option<Vec<String>>,
    /// Topics that it may receive; `!` denies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    subscribe: Option<Vec<String>>,
    /// Client ids that its clients may have, with `%u` for the user and `*` for anything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    client_ids: Option<Vec<String>>,
}

/// A user that is to be made, under a name that nobody has.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "NewUser")]
pub(crate) struct NewBody {
    /// The name that it signs in with.
    name: String,
    /// Its password, in clear; only the hash is kept.
    password: String,
    /// Topics that it may publish to; `!` denies. `["#"]` if missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    publish: Option<Vec<String>>,
    /// Topics that it may receive; `!` denies. `["#"]` if missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    subscribe: Option<Vec<String>>,
    /// Client ids that its clients may have, with `%u` for the user and `*` for anything; any if missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    client_ids: Option<Vec<String>>,
}

/// Retained messages that a filter selects.
#[derive(Default, Serialize, JsonSchema)]
#[schemars(rename = "RetainedCount")]
pub(crate) struct RetainedView {
    /// Those that the caller may delete, or that were deleted.
    messages: usize,
    /// Those that the caller's rules keep it from deleting, and those of the gateway itself.
    kept: usize,
}

impl ChangeBody {
    fn draft(self) -> Result<UserDraft, HttpProblem> {
        let ChangeBody { password, publish, subscribe, client_ids } = self;
        let wrong = |what: String| Err(HttpProblem::bad_request(what));
        if password.as_ref().is_some_and(|password| password.is_empty() || password.len() > LONGEST_PASSWORD) {
            return wrong(format!("password: it must have 1 to {LONGEST_PASSWORD} bytes"));
        }
        if let Some(bad) = client_ids.iter().flatten().find(|pattern| !is_client_id_pattern(pattern)) {
            return wrong(format!("client_ids: {bad:?} is empty or has control characters"));
        }
        let (publish, subscribe) = (rules("publish", publish)?, rules("subscribe", subscribe)?);
        Ok(UserDraft { password: password.map(Secret::new), publish, subscribe, client_ids })
    }
}

fn rules(key: &str, texts: Option<Vec<String>>) -> Result<Option<Vec<AccessRule>>, HttpProblem> {
    let rule = |text: &String| {
        AccessRule::parse(text)
            .map_err(|error| HttpProblem::bad_request(format!("{key}: {text:?} is not a topic filter: this {error}")))
    };
    texts.map(|texts| texts.iter().map(rule).collect()).transpose()
}

/// A name that an address can hold, too.
fn check_name(name: &str) -> Result<(), HttpProblem> {
    // Basic authentication takes all behind a colon for the password [RFC 7617, 2]
    if is_user_name(name) && name.len() <= LONGEST_NAME && !matches!(name, "." | "..") && !name.contains(':') {
        return Ok(());
    }
    let valid =
        format!("1 to {LONGEST_NAME} bytes without control characters and colons, and neither \".\" nor \"..\"");
    Err(HttpProblem::bad_request(format!("name: found {name:?}; valid: {valid}")))
}

impl From<ChangeRefused> for HttpProblem {
    fn from(why: ChangeRefused) -> HttpProblem {
        let status = match why {
            ChangeRefused::Exists | ChangeRefused::Configured | ChangeRefused::TooMany | ChangeRefused::Broken(_) => {
                StatusCode::CONFLICT
            }
            ChangeRefused::Unknown => StatusCode::NOT_FOUND,
            ChangeRefused::NoPassword => StatusCode::BAD_REQUEST,
            ChangeRefused::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            ChangeRefused::Unwritten(_) => StatusCode::INSUFFICIENT_STORAGE,
            ChangeRefused::Busy | ChangeRefused::Uncertain => StatusCode::SERVICE_UNAVAILABLE,
        };
        HttpProblem::new(status, why.to_string())
    }
}

/// `GET /api/v1/users`
pub(crate) async fn users(State(http): State<Arc<Http>>, caller: Caller) -> Result<Json<Vec<UserView>>, HttpProblem> {
    caller.must_administer(&http)?;
    let lists = http.users.lists();
    let configured = lists.configured.iter().map(|user| UserView::new(user, UserFrom::Configuration, true));
    let made = lists.made.iter();
    let made = made.map(|user| UserView::new(user, UserFrom::Made, !lists.is_configured(&user.name)));
    Ok(Json(configured.chain(made).collect()))
}

/// Has a user made or changed, and returns it as it is then.
async fn change(http: &Http, caller: &Caller, change: UserChange) -> Result<Json<UserView>, HttpProblem> {
    let user = http.users.change(change, caller.user().unwrap_or_default()).await?;
    // only who was removed is not there any more
    let user = user.ok_or(ChangeRefused::Unknown)?;
    Ok(Json(UserView::new(&user, UserFrom::Made, true)))
}

/// The user that an address names.
fn named(uri: &Uri) -> Result<String, HttpProblem> {
    decode(uri.path().strip_prefix(USERS).unwrap_or_default(), false)
}

/// `POST /api/v1/users`
pub(crate) async fn create(
    State(http): State<Arc<Http>>,
    caller: Caller,
    headers: HeaderMap,
    content: Body,
) -> Result<(StatusCode, Json<UserView>), HttpProblem> {
    caller.must_administer(&http)?;
    let body = body::json(content, &headers, MOST, http.ingress.receiving(), caller.user()).await?;
    // it has taken its time to come
    caller.must_administer(&http)?;
    let NewBody { name, password, publish, subscribe, client_ids } = body;
    check_name(&name)?;
    let draft = ChangeBody { password: Some(password), publish, subscribe, client_ids }.draft()?;
    let made = change(&http, &caller, UserChange::Add(name, draft)).await?;
    Ok((StatusCode::CREATED, made))
}

/// `PUT /api/v1/users/{name}`
pub(crate) async fn update(
    State(http): State<Arc<Http>>,
    caller: Caller,
    (uri, headers): (Uri, HeaderMap),
    content: Body,
) -> Result<Json<UserView>, HttpProblem> {
    caller.must_administer(&http)?;
    let body: ChangeBody = body::json(content, &headers, MOST, http.ingress.receiving(), caller.user()).await?;
    caller.must_administer(&http)?;
    change(&http, &caller, UserChange::Change(named(&uri)?, body.draft()?)).await
}

/// `DELETE /api/v1/users/{name}`
pub(crate) async fn remove(State(http): State<Arc<Http>>, caller: Caller, uri: Uri) -> Result<StatusCode, HttpProblem> {
    caller.must_administer(&http)?;
    http.users.change(UserChange::Remove(named(&uri)?), caller.user().unwrap_or_default()).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// `DELETE /api/v1/clients`
pub(crate) async fn disconnect(
    State(http): State<Arc<Http>>,
    caller: Caller,
    uri: Uri,
) -> Result<StatusCode, HttpProblem> {
    let query = Query::parse(&uri, &["client_id", "user"])?;
    caller.must_administer(&http)?;
    let client_id = query.get("client_id")?;
    let client_id = client_id.ok_or_else(|| HttpProblem::bad_request("parameter \"client_id\" is missing"))?;
    let user = query.get("user")?;
    match (http.disconnect)(user, client_id) {
        0 => Err(HttpProblem::not_found("no such client is connected")),
        _ => {
            info!(client_id, user, by = caller.user(), "client disconnected by HTTP");
            Ok(StatusCode::NO_CONTENT)
        }
    }
}

fn filter(uri: &Uri) -> Result<String, HttpProblem> {
    let query = Query::parse(uri, &["filter"])?;
    let filter = query.get("filter")?.ok_or_else(|| HttpProblem::bad_request("parameter \"filter\" is missing"))?;
    check_filter(filter)?;
    Ok(filter.to_owned())
}

/// Topics of retained messages behind `after`, so many at a time: those that the caller may delete, and where to go on.
fn some_of(
    (http, caller): (&Http, &Caller),
    (filter, after): (&str, &str),
    view: &mut RetainedView,
) -> (Vec<Box<str>>, Option<Box<str>>) {
    let SelectedRetained { found, behind } = http.ingress.retained_behind(filter, after, PORTION, caller.origin());
    let topics = found.iter().map(|message| Box::<str>::from(message.view().topic()));
    let (may, may_not): (Vec<_>, Vec<_>) = topics.partition(|topic| caller.permissions.may_publish(topic));
    view.messages += may.len();
    view.kept += may_not.len();
    (may, behind)
}

/// `GET /api/v1/retained`
pub(crate) async fn count(
    State(http): State<Arc<Http>>,
    caller: Caller,
    uri: Uri,
) -> Result<Json<RetainedView>, HttpProblem> {
    let filter = filter(&uri)?;
    caller.must_administer(&http)?;
    let (mut view, mut after) = (RetainedView::default(), Some(Box::default()));
    while let Some(behind) = after {
        (_, after) = some_of((&http, &caller), (&filter, &behind), &mut view);
        tokio::task::yield_now().await;
    }
    Ok(Json(view))
}

/// `DELETE /api/v1/retained`
pub(crate) async fn delete(
    State(http): State<Arc<Http>>,
    caller: Caller,
    uri: Uri,
) -> Result<Json<RetainedView>, HttpProblem> {
    let filter = filter(&uri)?;
    caller.must_administer(&http)?;
    let (mut view, mut after) = (RetainedView::default(), Some(Box::default()));
    while let Some(behind) = after {
        let topics;
        (topics, after) = some_of((&http, &caller), (&filter, &behind), &mut view);
        let cleared = match caller.must_administer(&http) {
            Ok(()) => clear(&http, &caller, &topics).await,
            Err(problem) => Err(problem),
        };
        if let Err(problem) = cleared {
            let messages = view.messages - topics.len();
            info!(filter, messages, by = caller.user(), "retained messages deleted by HTTP, and not all");
            return Err(problem);
        }
    }
    info!(filter, messages = view.messages, by = caller.user(), "retained messages deleted by HTTP");
    Ok(Json(view))
}

/// Clears topics, and waits until that is safe.
async fn clear(http: &Http, caller: &Caller, topics: &[Box<str>]) -> Result<(), HttpProblem> {
    let Some(last) = topics.last() else { return Ok(()) };
    let mut batch = BatchBuilder::default();
    for topic in topics {
        batch.push(&cleared(http, caller, topic));
    }
    let accepted = http.ingress.publish_batch(&mut batch).await?;
    http.ingress.settled(accepted.whole()?).await?;
    http.hub.cleared(last).await;
    Ok(())
}

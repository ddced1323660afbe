//! Calls for administrators: end a client's connection, delete the retained messages below a topic, and manage users.
//!
//! An administrator is a `[[broker.user]]` with `admin = true` in the configuration, wherever the request comes from; nobody
//! else is one. An administrator's own rules still apply: retained messages on topics that it may not publish on are not
//! deleted.

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
use super::topics::{check_levels, cleared};
use super::{Http, body};
use crate::access::made::{ChangeRefused, UserChange, UserDraft};
use crate::access::settings::{AccessRule, UserSettings, is_client_id_pattern, is_user_name};
use crate::exchange::retained::SelectedRetained;
use crate::exchange::search::PORTION;
use crate::message::{BatchBuilder, check_filter};
use crate::secret::Secret;

/// The path of users.
const USERS: &str = "/api/v1/users/";
/// The largest body of a change of a user, in bytes. Most of it are rules.
const MOST: usize = 64 << 10;
/// The longest name and password of a user that is added here, in bytes: both must fit into a Basic header.
const LONGEST_NAME: usize = 256;
const LONGEST_PASSWORD: usize = 512;

/// The place in which a user is defined.
#[derive(Clone, Copy, Debug, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum UserFrom {
    /// The configuration file.
    Configuration,
    /// The gateway's own file, for users that were added by HTTP.
    Made,
}

/// A user as administrators see it, without its password.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "User")]
pub(crate) struct UserView {
    name: String,
    from: UserFrom,
    /// Whether the user is in force: a user of the configuration has precedence over one of the same name that was added by
    /// HTTP.
    in_force: bool,
    /// Whether the user is an administrator.
    admin: bool,
    /// Whether the user has a password; otherwise it can sign in only with a client certificate.
    has_password: bool,
    /// Filters of the topics that the user may publish on; `!` denies.
    publish: Vec<String>,
    /// Filters of the topics that the user may receive; `!` denies.
    subscribe: Vec<String>,
    /// The client ids that the user's clients may have; an empty list allows any.
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

/// The wanted values of a user. A missing value stays as it is, or gets the default of `[[broker.user]]` for a new user.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "UserChange")]
pub(crate) struct ChangeBody {
    /// The new password in plain text; only its hash is stored.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    password: Option<String>,
    /// Filters of the topics that the user may publish on; `!` denies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    publish: Option<Vec<String>>,
    /// Filters of the topics that the user may receive; `!` denies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    subscribe: Option<Vec<String>>,
    /// The client ids that the user's clients may have, with `%u` for the user name and `*` for any text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    client_ids: Option<Vec<String>>,
}

/// A new user. The name must not be in use.
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "NewUser")]
pub(crate) struct NewBody {
    /// The name with which the user signs in.
    name: String,
    /// The password in plain text; only its hash is stored.
    password: String,
    /// Filters of the topics that the user may publish on; `!` denies. `["#"]` if missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    publish: Option<Vec<String>>,
    /// Filters of the topics that the user may receive; `!` denies. `["#"]` if missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    subscribe: Option<Vec<String>>,
    /// The client ids that the user's clients may have, with `%u` for the user name and `*` for any text; any if missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    client_ids: Option<Vec<String>>,
}

/// The numbers of retained messages that a filter matches.
#[derive(Default, Serialize, JsonSchema)]
#[schemars(rename = "RetainedCount")]
pub(crate) struct RetainedView {
    /// The number of messages that the caller may delete, or that were deleted.
    messages: usize,
    /// The number of messages that are not deleted, because the caller's rules forbid it or because the gateway itself
    /// publishes them.
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

/// Checks that a name can also be part of a URL.
fn check_name(name: &str) -> Result<(), HttpProblem> {
    // Basic authentication takes everything after a colon as the password [RFC 7617, 2]
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

/// Handles `GET /api/v1/users`: lists all users.
pub(crate) async fn users(State(http): State<Arc<Http>>, caller: Caller) -> Result<Json<Vec<UserView>>, HttpProblem> {
    caller.must_administer(&http)?;
    let lists = http.users.lists();
    let configured = lists.configured.iter().map(|user| UserView::new(user, UserFrom::Configuration, true));
    let made = lists.made.iter();
    let made = made.map(|user| UserView::new(user, UserFrom::Made, !lists.is_configured(&user.name)));
    Ok(Json(configured.chain(made).collect()))
}

/// Requests the change of a user, and returns the user as it is afterwards.
async fn change(http: &Http, caller: &Caller, change: UserChange) -> Result<Json<UserView>, HttpProblem> {
    let user = http.users.change(change, caller.user().unwrap_or_default()).await?;
    // only a removed user does not exist afterwards
    let user = user.ok_or(ChangeRefused::Unknown)?;
    Ok(Json(UserView::new(&user, UserFrom::Made, true)))
}

/// The name of the user in the path.
fn named(uri: &Uri) -> Result<String, HttpProblem> {
    decode(uri.path().strip_prefix(USERS).unwrap_or_default(), false)
}

/// Handles `POST /api/v1/users`: adds a user.
pub(crate) async fn create(
    State(http): State<Arc<Http>>,
    caller: Caller,
    headers: HeaderMap,
    content: Body,
) -> Result<(StatusCode, Json<UserView>), HttpProblem> {
    caller.must_administer(&http)?;
    let body = body::json(content, &headers, MOST, http.ingress.receiving(), caller.holder()).await?;
    // checked again, because the body may have taken its time to arrive
    caller.must_administer(&http)?;
    let NewBody { name, password, publish, subscribe, client_ids } = body;
    check_name(&name)?;
    let draft = ChangeBody { password: Some(password), publish, subscribe, client_ids }.draft()?;
    let made = change(&http, &caller, UserChange::Add(name, draft)).await?;
    Ok((StatusCode::CREATED, made))
}

/// Handles `PUT /api/v1/users/{name}`: changes a user.
pub(crate) async fn update(
    State(http): State<Arc<Http>>,
    caller: Caller,
    (uri, headers): (Uri, HeaderMap),
    content: Body,
) -> Result<Json<UserView>, HttpProblem> {
    caller.must_administer(&http)?;
    let body: ChangeBody = body::json(content, &headers, MOST, http.ingress.receiving(), caller.holder()).await?;
    caller.must_administer(&http)?;
    change(&http, &caller, UserChange::Change(named(&uri)?, body.draft()?)).await
}

/// Handles `DELETE /api/v1/users/{name}`: removes a user.
pub(crate) async fn remove(State(http): State<Arc<Http>>, caller: Caller, uri: Uri) -> Result<StatusCode, HttpProblem> {
    caller.must_administer(&http)?;
    http.users.change(UserChange::Remove(named(&uri)?), caller.user().unwrap_or_default()).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Handles `DELETE /api/v1/clients`: ends the connections of a client id.
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
    check_levels("topic filter", filter)?;
    Ok(filter.to_owned())
}

/// A limited number of topics with retained messages after `after`: those that the caller may delete, and where to continue.
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

/// Handles `GET /api/v1/retained`: counts what a deletion would delete.
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

/// Handles `DELETE /api/v1/retained`: deletes retained messages.
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

/// Deletes the retained messages of topics, and waits until that is on disk.
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

//! The table of all calls. Both the router and the OpenAPI document are made from it, so neither can miss a call.

use std::sync::{Arc, LazyLock};

use axum::Router;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post, put};
use serde_json::{Map, Value};

use super::calls::{Call, Parameter};
use super::problem::HttpProblem;
use super::{
    Http, admin, envelope, metrics, openapi, overview, page, proxies, sensors, session, stream, topics, traces,
    websocket,
};

const fn parameter(name: &'static str, kind: &'static str, meaning: &'static str) -> Parameter {
    Parameter { name, meaning, kind }
}

const TOPIC: Parameter = parameter("topic", "string", "The topic, where no path can hold it, as \"..\".");
const PUBLISH: &[Parameter] = &[
    parameter("qos", "integer", "0, 1 (the default) or 2; from 1 on, the answer means that the message is safe."),
    parameter("retain", "boolean", "Whether it becomes the retained message of the topic."),
    parameter("expiry", "integer", "Message expiry interval in seconds."),
];
const PUBLISH_ANYWHERE: &[Parameter] = &[
    TOPIC,
    parameter("qos", "integer", "0, 1 (the default) or 2."),
    parameter("retain", "boolean", "Whether it becomes the retained message of the topic."),
    parameter("expiry", "integer", "Message expiry interval in seconds."),
];
const LIST: &[Parameter] = &[
    parameter("filter", "string", "Topic filter; \"#\" if missing. In an address, # is written %23 and + is %2B."),
    parameter("contains", "string", "Only topics with this text in them, in capitals or not."),
    parameter("after", "string", "Begin behind this topic: \"next\" of the page before."),
    parameter("limit", "integer", "Messages of a page, at most 1000."),
    TOPIC,
];
const STREAM: &[Parameter] = &[
    parameter("filter", "strings", "Topic filter; may be given several times."),
    parameter("status", "boolean", "Also sensors, upstreams, clients, problems and the gateway, when they change."),
    parameter("last_event_id", "string", "Go on behind this id, as the header Last-Event-ID does."),
];
const EVENTS: &[Parameter] = &[
    parameter("since", "string", "Only events from this time on, as 2026-03-01T12:00:00Z."),
    parameter("limit", "integer", "Events of a page, at most 1000; 100 if missing."),
    parameter("cursor", "integer", "Begin behind this event: \"cursor\" of the page before."),
];

const CLIENT: &[Parameter] = &[
    parameter("client_id", "string", "Its client id."),
    parameter("user", "string", "Its user name; missing: a client without one."),
];
const FILTER: &[Parameter] = &[parameter("filter", "string", "Topic filter; `a/+/#` is all below `a`.")];
const PROBLEMS: &[Parameter] = &[parameter("now", "boolean", "Only what is wrong now.")];

const JSON: (u16, &str) = (200, "application/json");
const TEXT: (u16, &str) = (200, "text/plain");
const CREATED: (u16, &str) = (201, "application/json");
const DONE: (u16, &str) = (204, "");

macro_rules! answer {
    () => {
        None
    };
    ($answer:ty) => {
        Some(|generator| generator.subschema_for::<$answer>())
    };
}

macro_rules! calls {
    ($($method:ident $path:literal $id:literal $summary:literal $query:expr, $success:expr, [$($answer:ty)?], $is_open:literal,
        $handler:path $(, $body:ty)?;)*) => {
        &[$(Call {
            id: $id,
            method: stringify!($method),
            path: $path,
            summary: $summary,
            query: $query,
            success: $success,
            answer: answer!($($answer)?),
            body: answer!($($body)?),
            is_open: $is_open,
            handler: || $method($handler),
        },)*]
    };
}

/// All calls of the HTTP interface.
pub(crate) const CALLS: &[Call] = calls! {
    get "/api/v1/topics" "list_messages" "The last message on each topic that a filter selects" LIST, JSON, [topics::List], false,
        topics::list;
    put "/api/v1/topics" "publish_anywhere" "Publish, with the topic as a parameter" PUBLISH_ANYWHERE, DONE, [], false,
        topics::publish;
    post "/api/v1/topics" "post_anywhere" "Publish, with the topic as a parameter" PUBLISH_ANYWHERE, DONE, [], false,
        topics::publish;
    delete "/api/v1/topics" "clear_anywhere" "Clear a retained message, with the topic as a parameter" &[TOPIC], DONE, [], false,
        topics::clear;
    get "/api/v1/topics/{*topic}" "read_message" "The last message on a topic: its payload, or all of it as JSON by Accept" &[],
        (200, "application/octet-stream"), [envelope::Envelope], false, topics::read;
    put "/api/v1/topics/{*topic}" "publish" "Publish" PUBLISH, DONE, [], false, topics::publish;
    post "/api/v1/topics/{*topic}" "post" "Publish" PUBLISH, DONE, [], false, topics::publish;
    delete "/api/v1/topics/{*topic}" "clear" "Clear the retained message of a topic" &[], DONE, [], false, topics::clear;
    get "/api/v1/stream" "stream" "Messages as they come, as server-sent events" STREAM, (200, "text/event-stream"), [], false,
        stream::stream;
    get "/api/v1/sensors" "list_sensors" "All sensors" &[], JSON, [Vec<sensors::SensorView<'static>>], false, sensors::list;
    get "/api/v1/sensors/{name}" "get_sensor" "A sensor" &[], JSON, [sensors::SensorView<'static>], false, sensors::one;
    get "/api/v1/sensors/{name}/events" "list_sensor_events" "When there was motion" EVENTS, JSON, [sensors::Events], false,
        sensors::events;
    get "/api/v1/sensors/{name}/edges" "get_sensor_edges" "What the last edges of a sensor's pin look like" &[], JSON,
        [sensors::Edges], false, sensors::edges;
    get "/api/v1/upstreams" "list_upstreams" "The upstreams, their backlog and ledger" &[], JSON,
        [Vec<overview::UpstreamView<'static>>], false, overview::upstreams;
    get "/api/v1/clients" "list_clients" "Connected MQTT clients" &[], JSON, [Vec<overview::ClientView>], false,
        overview::clients;
    get "/api/v1/problems" "list_problems" "What is wrong now, and then the last warnings and errors of the log" PROBLEMS, JSON,
        [Vec<overview::ProblemView>], false, overview::problems;
    get "/api/v1/gateway" "get_gateway" "The gateway itself" &[], JSON, [overview::GatewayView<'static>], false,
        overview::gateway;
    delete "/api/v1/clients" "disconnect_client" "End the connection of an MQTT client; for administrators" CLIENT, DONE, [], false,
        admin::disconnect;
    get "/api/v1/retained" "count_retained" "How many retained messages a filter selects; for administrators" FILTER, JSON,
        [admin::RetainedView], false, admin::count;
    delete "/api/v1/retained" "delete_retained" "Delete all retained messages that a filter selects; for administrators" FILTER,
        JSON, [admin::RetainedView], false, admin::delete;
    get "/api/v1/users" "list_users" "All users; for administrators" &[], JSON, [Vec<admin::UserView>], false, admin::users;
    post "/api/v1/users" "create_user" "Make a user; for administrators" &[], CREATED, [admin::UserView], false,
        admin::create, admin::NewBody;
    put "/api/v1/users/{name}" "change_user" "Change a user that was made here; for administrators" &[], JSON,
        [admin::UserView], false, admin::update, admin::ChangeBody;
    delete "/api/v1/users/{name}" "remove_user" "Remove a user that was made here; for administrators" &[], DONE, [], false,
        admin::remove;
    get "/api/v1/session" "get_session" "Who is asking" &[], JSON, [session::SessionView], true, session::read;
    post "/api/v1/session" "sign_in" "Sign in on the page, which keeps a cookie" &[], JSON, [session::SessionView], true,
        session::sign_in, session::SignInBody;
    delete "/api/v1/session" "sign_out" "Sign out of the page" &[], DONE, [], true, session::sign_out;
    post "/api/v1/traces" "begin_trace" "Begin to follow the message that will carry the id in the answer" &[], CREATED,
        [traces::Begun], false, traces::begin;
    get "/api/v1/traces/{id}" "get_trace" "What has happened to a message" &[], JSON, [traces::TraceView], false, traces::read;
    get "/api/v1/openapi.json" "describe" "This description" &[], JSON, [Map<String, Value>], true, describe;
    get "/metrics" "metrics" "Figures for Prometheus" &[], TEXT, [], false, metrics::metrics;
    get "/livez" "is_alive" "Whether the process answers" &[], TEXT, [], true, overview::live;
    get "/readyz" "is_ready" "Whether messages are taken; an upstream that is down does not matter" &[], TEXT, [], true,
        overview::ready;
    get "/healthz" "is_healthy" "The same as readyz" &[], TEXT, [], true, overview::ready;
    get "/mqtt" "mqtt" "MQTT over WebSocket" &[], (101, ""), [], true, websocket::upgrade;
    get "/" "page" "The web page" &[], (200, "text/html"), [], false, page::serve;
};

/// Handles `GET /api/v1/openapi.json`.
async fn describe(headers: HeaderMap) -> Response {
    let prefix = proxies::prefix(&headers);
    let server = if prefix.is_empty() { "/" } else { prefix };
    ([(header::CONTENT_TYPE, "application/json")], document(server)).into_response()
}

/// The description, which is made once. It is in a function of its own because `CALLS` refers to `describe`.
fn document(server: &str) -> String {
    /// A placeholder for the address of the gateway.
    const SERVER: &str = "{server}";
    static TEXT: LazyLock<String> = LazyLock::new(|| openapi::text(CALLS, SERVER));
    TEXT.replacen(SERVER, server, 1)
}

/// The router for all calls.
pub(crate) fn router(http: Arc<Http>) -> Router {
    let mut router = Router::new();
    for call in CALLS {
        router = router.route(call.path, (call.handler)());
    }
    router
        .fallback(async || HttpProblem::not_found("there is nothing at this address; / is the web page"))
        .method_not_allowed_fallback(async || {
            HttpProblem::new(StatusCode::METHOD_NOT_ALLOWED, "this address does not have that method")
        })
        .with_state(http)
}

//! The description of a call, from which the table of all calls is made.

use std::sync::Arc;

use axum::routing::MethodRouter;
use schemars::{Schema, SchemaGenerator};

use super::Http;

pub(crate) struct Call {
    /// The name of the call, which never changes.
    pub(crate) id: &'static str,
    /// The HTTP method in lower case.
    pub(crate) method: &'static str,
    /// The path with `{name}` for variable parts. A topic may contain slashes.
    pub(crate) path: &'static str,
    /// What the call does, in a few words.
    pub(crate) summary: &'static str,
    pub(crate) query: &'static [Parameter],
    /// The status and content type of a successful answer; the type is empty if there is no body.
    pub(crate) success: (u16, &'static str),
    /// The schema of a successful JSON answer.
    pub(crate) answer: Option<fn(&mut SchemaGenerator) -> Schema>,
    /// The schema of the JSON request body; `None` if there is none.
    pub(crate) body: Option<fn(&mut SchemaGenerator) -> Schema>,
    /// Whether everybody may use the call.
    pub(crate) is_open: bool,
    /// The function that handles the call.
    pub(crate) handler: fn() -> MethodRouter<Arc<Http>>,
}

impl Call {
    /// The statuses of unsuccessful answers, with their reasons. A test makes requests of every kind and compares.
    pub(crate) fn refusals(&self) -> Vec<(u16, &'static str)> {
        let (has_name, is_reading) = (self.path.contains('{'), self.method == "get");
        let is_session = self.path == "/api/v1/session";
        let changes_users = self.path.starts_with("/api/v1/users") && !is_reading;
        let has_content = self.body.is_some() || self.takes_payload();
        let is_websocket = self.success.0 == 101;
        let is_asked = !self.query.is_empty() || has_content || has_name || is_session || is_websocket;
        let may_not_exist = has_name && (is_reading || changes_users)
            || is_reading && self.path == "/api/v1/topics"
            || self.id == "disconnect_client";
        let refusals = [
            (400, is_asked, "The request is not valid"),
            (401, !self.is_open || is_session, "A user name and password are needed, or are wrong"),
            (403, true, "Not allowed, or a page of another site has asked"),
            (404, may_not_exist, "There is no such thing"),
            (408, has_content, "The body has not arrived in time"),
            (
                409,
                changes_users,
                "The name is taken, or stands in the configuration, or the file of the users is broken",
            ),
            (413, has_content, "The body is too large, or what would come of it"),
            (415, self.body.is_some(), "The body is not JSON"),
            (426, is_websocket, "Not a WebSocket of version 13"),
            (500, self.id == "list_sensor_events", "What was kept cannot be read"),
            (
                503,
                !self.is_open || is_session || self.path.ends_with("z"),
                "Not now: the same request may succeed later",
            ),
            (507, self.takes_payload() || changes_users, "What was asked for cannot be kept"),
        ];
        refusals.into_iter().filter(|(_, may_be, _)| *may_be).map(|(status, _, why)| (status, why)).collect()
    }

    /// Whether the request body is a message payload, so that the answer has no body.
    pub(crate) fn takes_payload(&self) -> bool {
        matches!(self.method, "put" | "post") && self.success.0 == 204
    }
}

/// A parameter in the path or query of a request.
pub(crate) struct Parameter {
    /// The name without the syntax around it.
    pub(crate) name: &'static str,
    /// What the parameter means.
    pub(crate) meaning: &'static str,
    /// `string`, `integer`, `boolean`, or `strings` for a parameter that may be given several times.
    pub(crate) kind: &'static str,
}

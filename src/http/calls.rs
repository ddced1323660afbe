//! What a call is: what the table of all calls is made of.

use std::sync::Arc;

use axum::routing::MethodRouter;
use schemars::{Schema, SchemaGenerator};

use super::Http;

pub(crate) struct Call {
    /// Its name, which stays.
    pub(crate) id: &'static str,
    /// In lower case.
    pub(crate) method: &'static str,
    /// With `{name}` for what varies; a topic may contain slashes.
    pub(crate) path: &'static str,
    /// What it does, in a few words.
    pub(crate) summary: &'static str,
    /// Parameters behind the question mark.
    pub(crate) query: &'static [Parameter],
    /// What a success gives: status and content type, empty for none.
    pub(crate) success: (u16, &'static str),
    /// What the JSON of a success looks like.
    pub(crate) answer: Option<fn(&mut SchemaGenerator) -> Schema>,
    /// What the JSON of a request looks like; `None`: it has none.
    pub(crate) body: Option<fn(&mut SchemaGenerator) -> Schema>,
    /// Whether everybody may.
    pub(crate) is_open: bool,
    /// Who answers.
    pub(crate) handler: fn() -> MethodRouter<Arc<Http>>,
}

impl Call {
    /// How it may be answered where it does not succeed, and why. A test makes requests of every kind and compares.
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

    /// Whether its body is a payload: whoever publishes sends one, and gets nothing back.
    pub(crate) fn takes_payload(&self) -> bool {
        matches!(self.method, "put" | "post") && self.success.0 == 204
    }
}

/// What a request says in its path or query.
pub(crate) struct Parameter {
    /// As it stands there, without what belongs to the syntax of either.
    pub(crate) name: &'static str,
    /// What it means.
    pub(crate) meaning: &'static str,
    /// `string`, `integer` or `boolean`; `strings`: may be given several times.
    pub(crate) kind: &'static str,
}

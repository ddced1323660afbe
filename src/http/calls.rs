//! What a call is: what the table of all calls is made of.

use std::sync::Arc;

use axum::routing::MethodRouter;
use schemars::{Schema, SchemaGenerator};

use super::Http;

/// A call.
pub struct Call {
    /// Its name, which stays.
    pub id: &'static str,
    /// In lower case.
    pub method: &'static str,
    /// With `{name}` for what varies; a topic may contain slashes.
    pub path: &'static str,
    /// What it does, in a few words.
    pub summary: &'static str,
    /// Parameters behind the question mark.
    pub query: &'static [Parameter],
    /// What a success gives: status and content type, empty for none.
    pub success: (u16, &'static str),
    /// What the JSON of a success looks like.
    pub answer: Option<fn(&mut SchemaGenerator) -> Schema>,
    /// What the JSON of a request looks like; `None`: it has none.
    pub body: Option<fn(&mut SchemaGenerator) -> Schema>,
    /// Whether everybody may.
    pub is_open: bool,
    /// Who answers.
    pub handler: fn() -> MethodRouter<Arc<Http>>,
}

/// A parameter.
pub struct Parameter {
    /// Name.
    pub name: &'static str,
    /// What it means.
    pub meaning: &'static str,
    /// `string`, `integer` or `boolean`; `strings`: may be given several times.
    pub kind: &'static str,
}

//! Errors as problem details [RFC 9457].

use axum::http::{HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::Serialize;

use crate::exchange::ingress::IngressError;
use crate::message::TopicError;

/// An answer that reports an error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HttpProblem {
    status: StatusCode,
    detail: String,
    header: Option<(HeaderName, &'static str)>,
}

impl HttpProblem {
    /// An error with this status and explanation.
    pub(crate) fn new(status: StatusCode, detail: impl Into<String>) -> HttpProblem {
        HttpProblem { status, detail: detail.into(), header: None }
    }

    /// An error with status 400.
    pub(crate) fn bad_request(detail: impl Into<String>) -> HttpProblem {
        HttpProblem::new(StatusCode::BAD_REQUEST, detail)
    }

    /// An error with status 401, which makes a browser ask for a name and a password.
    pub(crate) fn unauthorized(detail: impl Into<String>) -> HttpProblem {
        let challenge = "Basic realm=\"pigateway\", charset=\"UTF-8\"";
        HttpProblem::new(StatusCode::UNAUTHORIZED, detail).with(header::WWW_AUTHENTICATE, challenge)
    }

    /// An error with status 403.
    pub(crate) fn forbidden(detail: impl Into<String>) -> HttpProblem {
        HttpProblem::new(StatusCode::FORBIDDEN, detail)
    }

    /// An error with status 404.
    pub(crate) fn not_found(detail: impl Into<String>) -> HttpProblem {
        HttpProblem::new(StatusCode::NOT_FOUND, detail)
    }

    /// An error with status 503: the same request may succeed later.
    pub(crate) fn unavailable(detail: impl Into<String>) -> HttpProblem {
        HttpProblem::new(StatusCode::SERVICE_UNAVAILABLE, detail).with(header::RETRY_AFTER, "5")
    }

    /// An error with status 507: the message was delivered to present subscribers, but not kept for others.
    pub(crate) fn full_store() -> HttpProblem {
        let detail = "the message was delivered but not retained: the store of retained messages is full \
                      (broker.max_retained, broker.max_retained_size)";
        HttpProblem::new(StatusCode::INSUFFICIENT_STORAGE, detail)
    }

    pub(crate) fn status(&self) -> StatusCode {
        self.status
    }

    pub(crate) fn with(self, name: HeaderName, value: &'static str) -> HttpProblem {
        HttpProblem { header: Some((name, value)), ..self }
    }
}

impl From<TopicError> for HttpProblem {
    fn from(error: TopicError) -> HttpProblem {
        HttpProblem::bad_request(format!("the topic or topic filter {error}"))
    }
}

impl From<IngressError> for HttpProblem {
    fn from(error: IngressError) -> HttpProblem {
        match error {
            IngressError::TooLarge => HttpProblem::new(StatusCode::PAYLOAD_TOO_LARGE, error.to_string()),
            _ => HttpProblem::unavailable(error.to_string()),
        }
    }
}

/// Problem details [RFC 9457].
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Problem")]
pub(crate) struct Details<'a> {
    #[serde(rename = "type")]
    kind: &'static str,
    /// The meaning of the status code.
    title: &'static str,
    /// The HTTP status code, repeated in the body as RFC 9457 asks.
    status: u16,
    /// The problem in words.
    detail: &'a str,
}

impl IntoResponse for HttpProblem {
    fn into_response(self) -> Response {
        let details = Details {
            kind: "about:blank",
            title: self.status.canonical_reason().unwrap_or("Error"),
            status: self.status.as_u16(),
            detail: &self.detail,
        };
        // strings and a number can always be serialised
        let body = serde_json::to_string(&details).unwrap_or_default();
        let kind = [(header::CONTENT_TYPE, "application/problem+json")];
        let mut response = (self.status, kind, body).into_response();
        if let Some((name, value)) = self.header {
            response.headers_mut().insert(name, axum::http::HeaderValue::from_static(value));
        }
        response
    }
}

//! The web page: one file that loads nothing from other servers.

use std::sync::{Arc, LazyLock};

use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, Uri, header};
use axum::response::{Html, IntoResponse, Response};
use base64ct::{Base64, Encoding};

use super::Http;
use super::auth::Caller;
use super::problem::HttpProblem;
use crate::secret::sha256;

/// The page with its script, which is put together from several files.
static PAGE: LazyLock<String> = LazyLock::new(|| include_str!("page.html").replacen("/* scripts */", SCRIPTS, 1));
const SCRIPTS: &str = concat!(include_str!("page_sensor.js"), include_str!("page_admin.js"));

/// Handles `GET /`. The page has no secrets and has a form for signing in, so a browser gets it in any case. Programs, and
/// requests for `/?basic`, are told that Basic authentication is needed. In a frame of another site no cookie is sent, so
/// `/?basic` offers the browser's own window for the password.
pub(crate) async fn serve(
    State(http): State<Arc<Http>>,
    (uri, headers): (Uri, HeaderMap),
    caller: Result<Caller, HttpProblem>,
) -> Result<Response, HttpProblem> {
    let wants_basic = uri.query() == Some("basic");
    match caller {
        Ok(caller) if wants_basic && caller.user().is_none() => {
            Err(HttpProblem::unauthorized("a user name and a password are asked for"))
        }
        Err(problem) if wants_basic || headers.contains_key(header::AUTHORIZATION) || !is_opened(&headers) => {
            Err(problem)
        }
        _ => Ok(page(&http)),
    }
}

/// Whether a browser opens the page to show it.
fn is_opened(headers: &HeaderMap) -> bool {
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
    accept.is_some_and(|accept| accept.contains("text/html"))
}

fn page(http: &Http) -> Response {
    static POLICY: LazyLock<String> = LazyLock::new(policy);
    let ancestors = match http.frame_ancestors.as_slice() {
        [] => "'none'".into(),
        origins => origins.join(" "),
    };
    let mut response = Html(PAGE.as_str()).into_response();
    if let Ok(policy) = HeaderValue::try_from(format!("{}; frame-ancestors {ancestors}", *POLICY)) {
        response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    response
}

/// The content security policy: only the page's own script and style run, known by their hashes, and only this gateway may
/// be contacted.
fn policy() -> String {
    format!(
        "default-src 'none'; script-src {}; style-src {}; img-src data:; connect-src 'self'; base-uri 'none'; \
         form-action 'none'",
        hash("script"),
        hash("style")
    )
}

/// The hash of an element's text as a source [CSP 2.3.1].
fn hash(element: &str) -> String {
    let begin = format!("<{element}>");
    let inside = PAGE.split_once(&begin).and_then(|(_, rest)| rest.split_once(&format!("</{element}>")));
    match inside {
        Some((text, _)) => format!("'sha256-{}'", Base64::encode_string(&sha256(text.as_bytes()))),
        None => "'none'".into(),
    }
}

//! The web page: one file without anything from elsewhere.

use std::sync::{Arc, LazyLock};

use axum::extract::State;
use axum::http::{HeaderValue, header};
use axum::response::{Html, IntoResponse, Response};
use base64ct::{Base64, Encoding};

use super::Http;
use super::auth::Caller;

const PAGE: &str = include_str!("page.html");

/// `GET /`: to everybody who is let in, so that a browser asks for the password here.
pub async fn serve(State(http): State<Arc<Http>>, _: Caller) -> Response {
    static POLICY: LazyLock<String> = LazyLock::new(policy);
    let ancestors = match http.frame_ancestors.as_slice() {
        [] => "'none'".into(),
        origins => origins.join(" "),
    };
    let mut response = Html(PAGE).into_response();
    if let Ok(policy) = HeaderValue::try_from(format!("{}; frame-ancestors {ancestors}", *POLICY)) {
        response.headers_mut().insert(header::CONTENT_SECURITY_POLICY, policy);
    }
    response
}

/// Only the page's own script and style run, known by their hashes; it talks to this gateway only.
fn policy() -> String {
    format!(
        "default-src 'none'; script-src {}; style-src {}; img-src data:; connect-src 'self'; base-uri 'none'; \
         form-action 'none'",
        hash("script"),
        hash("style")
    )
}

/// The hash of an element's text as a source [CSP 2.3.1], by the SHA-256 that TLS brings.
fn hash(element: &str) -> String {
    let begin = format!("<{element}>");
    let inside = PAGE.split_once(&begin).and_then(|(_, rest)| rest.split_once(&format!("</{element}>")));
    let digest = rustls::crypto::ring::default_provider()
        .cipher_suites
        .iter()
        .filter_map(|suite| suite.tls13().map(|suite| suite.common.hash_provider))
        .find(|hash| hash.algorithm() == rustls::crypto::hash::HashAlgorithm::SHA256);
    match (inside, digest) {
        (Some((text, _)), Some(sha256)) => {
            format!("'sha256-{}'", Base64::encode_string(sha256.hash(text.as_bytes()).as_ref()))
        }
        _ => "'none'".into(),
    }
}

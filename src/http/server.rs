//! The HTTP port: connections and their time limits.
//!
//! Every wait for a client has a limit: for its handshake, for the header of a request (including the pause between two
//! requests), for a body, and for the client to read an answer. A connection uses a bounded amount of memory, and the number
//! of connections is bounded, so slow clients cost others nothing.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use axum::response::IntoResponse;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, timeout};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tower_service::Service;
use tracing::{debug, warn};

use super::answers::{self, Asker};
use super::auth::{Certificate, RequestOrigin, is_script};
use super::guard::HttpGuard;
use super::problem::HttpProblem;
use super::settings::HttpSettings;
use super::websocket::WebSocketDoor;
use super::{Http, routes, unread, websocket};
use crate::access::Access;
use crate::access::guesses::network;
use crate::access::places::{Bounds, Newcomer, Place, Places};
use crate::exchange::meter::measured;
use crate::exchange::receiving::Receiving;
use crate::health::Pulse;
use crate::net::descriptors;
use crate::net::port::{AcceptedConnection, Port, PortSettings};
use crate::tls::{TlsFiles, common_name};
use crate::workers::worked;

/// The most connections at the same time, including streams and MQTT over WebSocket. [`crate::access::places`] explains how
/// they are divided and who gives way.
pub(crate) const MAX_CONNECTIONS: usize = 1100;
/// The longest time for a TLS handshake.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// The longest time for the header of a request, including the pause before it.
const HEAD: Duration = Duration::from_secs(15);
/// A client that reads nothing of an answer for this long counts as gone.
const STALL: Duration = Duration::from_secs(30);
/// The largest header of a request in bytes, with room for a long topic.
const MAX_HEAD: usize = 32 << 10;
/// The time for unfinished answers during a shutdown.
const FAREWELL: Duration = Duration::from_secs(1);

/// The settings of the port; `None` if there is no HTTP.
pub(crate) fn port(settings: &HttpSettings) -> Option<PortSettings> {
    let address = settings.address?;
    let tls = settings.tls.as_ref();
    let tls = tls.map(|files| TlsFiles { cert: files.cert.clone(), key: files.key.clone(), ..TlsFiles::default() });
    let (name, address) = (format!("HTTP {address}"), address.into());
    Some(PortSettings { name, address, tls, max_connections: None, proxies: Vec::new() })
}

type LazyRouter = LazyLock<Router, Box<dyn FnOnce() -> Router + Send>>;

/// What a port serves.
pub struct Site {
    /// The paths with their handlers, made for the first request so that they do not delay the start.
    pub(crate) router: LazyRouter,
    /// Refuses requests that pages of other sites make.
    pub(crate) guard: HttpGuard,
    /// What becomes of a connection that is upgraded to WebSocket.
    pub(crate) door: WebSocketDoor,
    /// Whether the client certificates name users.
    pub(crate) use_identity: bool,
    /// Whether the page may be shown in a frame of another site.
    pub(crate) may_be_framed: bool,
    /// The access decisions for clients.
    access: Arc<Access>,
    /// The memory for large answers.
    answers: Receiving,
    /// The places for its connections.
    places: Arc<Places>,
    /// Cancelled when the gateway shuts down.
    pub(crate) cancel: CancellationToken,
}

impl Site {
    /// A site with the page, REST and everything else.
    pub fn whole(http: &Arc<Http>) -> Arc<Site> {
        let (mqtt, connections) = (http.mqtt.clone(), http.connections.clone());
        let all = http.clone();
        Arc::new(Site {
            router: LazyLock::new(Box::new(|| routes::router(all))),
            guard: http.guard.clone(),
            door: WebSocketDoor { mqtt, connections, trusted_proxies: http.trusted_proxies.clone().into() },
            use_identity: false,
            may_be_framed: !http.frame_ancestors.is_empty(),
            access: http.access.clone(),
            answers: http.answers.clone(),
            places: Arc::default(),
            cancel: http.cancel.clone(),
        })
    }

    /// A site with MQTT over WebSocket only.
    pub fn websocket(
        guard: HttpGuard,
        door: WebSocketDoor,
        use_identity: bool,
        (access, cancel): (Arc<Access>, CancellationToken),
    ) -> Arc<Site> {
        let router = LazyRouter::new(Box::new(websocket::router));
        let places = Arc::default();
        let answers = Receiving::of(answers::BUDGET);
        Arc::new(Site { router, guard, door, use_identity, may_be_framed: false, access, answers, places, cancel })
    }
}

/// Serves until the gateway shuts down, and answers `pulse` while it waits for connections.
pub(crate) async fn run(mut port: Port, site: Arc<Site>, mut pulse: Pulse) {
    loop {
        let accepted = tokio::select! {
            () = site.cancel.cancelled() => return,
            accepted = port.accept() => accepted,
            () = pulse.asked() => {
                pulse.answer();
                continue;
            }
        };
        match accepted.is_proxied() {
            // the place is taken for the client behind the proxy
            true => _ = site.door.connections.spawn(find_origin(site.clone(), accepted)),
            false => seat(&site, accepted),
        }
    }
}

async fn find_origin(site: Arc<Site>, mut accepted: AcceptedConnection) {
    match accepted.find_origin().await {
        Ok(()) => seat(&site, accepted),
        Err(error) => debug!(from = %accepted.from, "connection closed: {error}"),
    }
}

/// Serves a connection if there is a place for it.
fn seat(site: &Arc<Site>, mut accepted: AcceptedConnection) {
    if let Some(place) = place(site, accepted.from) {
        let place = Arc::new(place.at_port(accepted.place.take()));
        site.door.connections.spawn(HttpConnection { site: site.clone(), place }.serve(accepted));
    }
}

/// Serves the client on this stream of bytes, without TLS, until it ends.
pub async fn serve(site: &Arc<Site>, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, from: SocketAddr) {
    if let Some(place) = place(site, from) {
        HttpConnection { site: site.clone(), place: Arc::new(place) }.speak(stream, from, None).await;
    }
}

/// Takes a place for a connection. If there is none, that is logged.
fn place(site: &Arc<Site>, from: SocketAddr) -> Option<Place> {
    let from = from.ip().to_canonical();
    let newcomer = Newcomer { user: None, from, session: None, is_returning: false, is_unknown: true };
    let most = MAX_CONNECTIONS.min(descriptors::of_http());
    let bounds = Bounds { most, has_users: site.access.authoriser.has_any_users() };
    let place = site.places.enter(&newcomer, bounds);
    if place.is_err()
        && let Some(more_since_last) = site.access.limiter.due(network(from), "HTTP connections")
    {
        warn!(%from, most, more_since_last, "HTTP connection closed at once: there are too many");
    }
    place.ok()
}

/// The state of one connection.
struct HttpConnection {
    site: Arc<Site>,
    place: Arc<Place>,
}

impl HttpConnection {
    async fn serve(self, accepted: AcceptedConnection) {
        let AcceptedConnection { stream, from, tls, .. } = accepted;
        let Some(tls) = tls else { return self.speak(stream, from, None).await };
        let place = self.place.clone();
        let shaken = tokio::select! {
            shaken = timeout(HANDSHAKE, self.site.access.accept_tls(stream, &tls, from.ip())) => shaken,
            () = place.cut() => return,
        };
        match shaken {
            Ok(Ok(stream)) => {
                let certificates = stream.get_ref().1.peer_certificates().filter(|_| self.site.use_identity);
                let user = certificates.and_then(|chain| common_name(chain.first()?));
                self.speak(stream, from, user).await;
            }
            Ok(Err((error, _))) => debug!(%from, %error, "TLS handshake failed"),
            Err(_) => debug!(%from, "TLS handshake took too long"),
        }
    }

    async fn speak(
        self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        from: SocketAddr,
        certificate_user: Option<Box<str>>,
    ) {
        let cancel = self.site.cancel.clone();
        let (place, cut) = (self.place.clone(), self.place.ending());
        let certificate = Certificate(certificate_user);
        let service = service_fn(move |request| {
            worked();
            self.answer(request, from, certificate.clone())
        });
        let io = TokioIo::new(Impatient { stream, deadline: None, cut: Box::pin(cut) });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD)
            .max_buf_size(MAX_HEAD)
            .serve_connection(io, service)
            .with_upgrades();
        let mut connection = std::pin::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            // a connection that has become a WebSocket handles this itself
            () = place.cut() => return,
            () = cancel.cancelled() => {
                connection.as_mut().graceful_shutdown();
                timeout(FAREWELL, connection).await.unwrap_or(Ok(()))
            }
        };
        if let Err(error) = ended {
            debug!(%from, %error, "HTTP connection ended");
        }
    }

    fn answer(
        &self,
        mut request: Request<Incoming>,
        from: SocketAddr,
        certificate: Certificate,
    ) -> impl Future<Output = Result<Response<Body>, Infallible>> + use<> {
        let is_script = is_script(request.headers());
        let welcome = self.site.guard.welcome(request.headers()).cloned();
        let is_preflight = request.method() == Method::OPTIONS
            && request.headers().contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
        let may_be_framed = request.uri().path() == "/" && self.site.may_be_framed;
        let refused = if websocket::is_wanted(&request) {
            let refused = self.site.guard.check_upgrade(request.uri(), request.headers());
            *request.uri_mut() = Uri::from_static(websocket::PATHS[0]);
            refused
        } else {
            self.site.guard.check(request.uri(), request.headers())
        };
        request.extensions_mut().insert(RequestOrigin(from.ip().to_canonical()));
        request.extensions_mut().insert(certificate);
        request.extensions_mut().insert(self.site.door.clone());
        request.extensions_mut().insert(self.place.clone());
        let (asker, answers) = (Asker::default(), self.site.answers.clone());
        request.extensions_mut().insert(asker.clone());
        // the page is the same for all, and in memory once
        let is_page = request.uri().path() == "/";
        // a client that waits for "100 Continue" sends no body after any other answer
        let waits = request.headers().contains_key(header::EXPECT);
        let connections = self.site.door.connections.clone();
        let request = request.map(|body| if waits { Body::new(body) } else { unread::discarded(body, &connections) });
        let mut router = Router::clone(&self.site.router);
        async move {
            // a client may send many requests at once, which would be answered without a pause
            tokio::task::yield_now().await;
            let mut response = match refused {
                Ok(()) if welcome.is_some() && is_preflight => StatusCode::NO_CONTENT.into_response(),
                Ok(()) if is_page => router.call(request).await?,
                Ok(()) => {
                    let (response, time) = measured(router.call(request)).await;
                    asker.pays(time);
                    answers::within(&answers, &asker, response?)
                }
                Err(foreign) => HttpProblem::forbidden(foreign.to_string()).into_response(),
            };
            set_defaults(response.headers_mut());
            if is_script {
                response.headers_mut().remove(header::WWW_AUTHENTICATE);
            }
            if may_be_framed {
                // this header cannot contain a list; the page's policy has one
                response.headers_mut().remove(header::X_FRAME_OPTIONS);
            }
            if let Some(origin) = welcome {
                share(response.headers_mut(), origin, is_preflight);
            }
            Ok(response)
        }
    }
}

/// Sets what every answer has, unless the answer itself or what follows says otherwise.
fn set_defaults(headers: &mut HeaderMap) {
    for (name, value) in [
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
        (header::X_FRAME_OPTIONS, "DENY"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    // the contents may change at any moment
    headers.entry(header::CACHE_CONTROL).or_insert(HeaderValue::from_static("no-store"));
}

/// Lets a page of this origin read the answer [Fetch, 3.3]. A preflight also gets the allowed methods and headers.
fn share(headers: &mut HeaderMap, origin: HeaderValue, is_preflight: bool) {
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.append(header::VARY, HeaderValue::from_static("Origin"));
    let more: &[(HeaderName, &str)] = if is_preflight {
        &[
            (header::ACCESS_CONTROL_ALLOW_METHODS, "GET, HEAD, PUT, POST, DELETE"),
            (header::ACCESS_CONTROL_ALLOW_HEADERS, "Authorization, Content-Type, Accept, Last-Event-ID"),
            (header::ACCESS_CONTROL_MAX_AGE, "600"),
            (HeaderName::from_static("access-control-allow-private-network"), "true"),
        ]
    } else {
        &[(
            header::ACCESS_CONTROL_EXPOSE_HEADERS,
            "Pigateway-Retained, Pigateway-Qos, Pigateway-Time, WWW-Authenticate",
        )]
    };
    for (name, value) in more {
        headers.insert(name, HeaderValue::from_static(value));
    }
    headers.insert(header::ACCESS_CONTROL_ALLOW_CREDENTIALS, HeaderValue::from_static("true"));
    headers.insert(HeaderName::from_static("cross-origin-resource-policy"), HeaderValue::from_static("cross-origin"));
}

/// A connection that ends if the client does not read, or if another client gets its place.
struct Impatient<S> {
    stream: S,
    cut: Pin<Box<WaitForCancellationFutureOwned>>,
    /// Runs while there are bytes that the client does not read.
    deadline: Option<Pin<Box<Sleep>>>,
}

impl<S> Impatient<S> {
    fn judge<T>(&mut self, context: &mut Context<'_>, poll: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if poll.is_ready() {
            self.deadline = None;
            return poll;
        }
        let deadline = self.deadline.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(Instant::now() + STALL)));
        match deadline.as_mut().poll(context) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Impatient<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.cut.as_mut().poll(context).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionAborted.into()));
        }
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Impatient<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.judge(context, poll)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let poll = Pin::new(&mut self.stream).poll_flush(context);
        self.judge(context, poll)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let poll = Pin::new(&mut self.stream).poll_shutdown(context);
        self.judge(context, poll)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let poll = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.judge(context, poll)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

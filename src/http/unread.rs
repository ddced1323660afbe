//! Bodies that no handler reads.
//!
//! A request may be answered before its body has arrived, because it is too large or its client may not make it. If the
//! connection were closed then, the rest of the body would meet a closed socket, and the reset that follows would discard
//! the answer before the client has read it. So the rest of a body is read and discarded for a while.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use http_body_util::BodyExt;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use tokio::time::timeout;
use tokio_util::task::TaskTracker;

/// The longest time for the rest of a body.
const LINGER: Duration = Duration::from_secs(2);
/// The most bytes of the rest of a body.
const MOST: usize = 32 << 20;

/// A body whose rest is read when it is dropped.
pub(crate) struct Unread {
    body: Option<Incoming>,
    connections: TaskTracker,
}

/// A body whose rest is read by a task of `connections` if the handler does not read it.
pub(crate) fn discarded(body: Incoming, connections: &TaskTracker) -> Body {
    Body::new(Unread { body: Some(body), connections: connections.clone() })
}

impl HttpBody for Unread {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match &mut self.body {
            Some(body) => {
                let poll = Pin::new(body).poll_frame(context);
                if let Poll::Ready(None) = poll {
                    self.body = None; // nothing is left to read
                }
                poll
            }
            None => Poll::Ready(None),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map(HttpBody::size_hint).unwrap_or_default()
    }
}

impl Drop for Unread {
    fn drop(&mut self) {
        let Some(mut body) = self.body.take().filter(|body| !body.is_end_stream()) else { return };
        let rest = async move {
            let mut left = MOST;
            while let Some(Ok(frame)) = body.frame().await {
                left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
                if left == 0 {
                    return;
                }
            }
        };
        self.connections.spawn(async move {
            // a client that still sends has had its answer for long enough
            let _ = timeout(LINGER, rest).await;
        });
    }
}

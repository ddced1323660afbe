//! Reads the body of a request.
//!
//! A small body is read at once. The memory of a larger one is taken from the budget that MQTT's packets use, and by the
//! same rule: a client that does not continue while others wait for memory is ended ([`crate::exchange::receiving`]).

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, StatusCode, header};
use bytes::BytesMut;
use http_body_util::BodyExt;
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep_until, timeout};

use super::problem::HttpProblem;
use crate::access::places::PlaceHolder;
use crate::exchange::receiving::{FREE, Receiving, Reservation};

/// The longest time for a body.
const LONGEST: Duration = Duration::from_secs(30);
/// The interval at which a late body is checked for others that wait for its memory.
const LOOK: Duration = Duration::from_secs(1);

/// A body, with its memory until this is dropped.
pub(crate) struct ReceivedBody {
    /// The complete body as it was sent.
    pub(crate) bytes: Bytes,
    _memory: Option<Reservation>,
}

/// Reads a body of at most `most` bytes, of the announced length if there is one, and charges this user for the memory.
pub(crate) async fn receive(
    body: Body,
    (most, declared): (usize, Option<usize>),
    receiving: &Receiving,
    holder: impl Into<PlaceHolder>,
) -> Result<ReceivedBody, HttpProblem> {
    let late = |_| {
        HttpProblem::new(StatusCode::REQUEST_TIMEOUT, "the body has not arrived in time")
            .with(header::CONNECTION, "close")
    };
    timeout(LONGEST, read(body, (most, declared), receiving, holder.into())).await.map_err(late)?
}

/// Reads a JSON body.
pub(crate) async fn json<T: DeserializeOwned>(
    body: Body,
    headers: &HeaderMap,
    most: usize,
    receiving: &Receiving,
    holder: impl Into<PlaceHolder>,
) -> Result<T, HttpProblem> {
    must_be_json(headers)?;
    let declared = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    if declared.is_some_and(|length| length > most) {
        return Err(too_large().with(header::CONNECTION, "close"));
    }
    let received =
        receive(body, (most, declared), receiving, holder).await.map_err(|problem| match problem.status() {
            StatusCode::PAYLOAD_TOO_LARGE => too_large(),
            _ => problem,
        })?;
    serde_json::from_slice(&received.bytes)
        .map_err(|error| HttpProblem::bad_request(format!("the body is not what is meant here: {error}")))
}

fn too_large() -> HttpProblem {
    HttpProblem::new(StatusCode::PAYLOAD_TOO_LARGE, "the body is larger than anything that is meant here")
}

/// The content type must be JSON, because a page of another site cannot send that without asking first.
fn must_be_json(headers: &HeaderMap) -> Result<(), HttpProblem> {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap_or_default().trim();
    if kind.eq_ignore_ascii_case("application/json") {
        return Ok(());
    }
    Err(HttpProblem::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "the body must be application/json"))
}

async fn read(
    mut body: Body,
    (most, declared): (usize, Option<usize>),
    receiving: &Receiving,
    holder: PlaceHolder,
) -> Result<ReceivedBody, HttpProblem> {
    let size = declared.unwrap_or(most).min(most);
    let mut bytes = BytesMut::new();
    let mut memory: Option<Reservation> = None;
    loop {
        let late_at = memory.as_ref().and_then(Reservation::overdue_at).map(|at| at.max(Instant::now() + LOOK));
        let frame = tokio::select! {
            frame = body.frame() => frame,
            () = sleep_until(late_at.unwrap_or_else(Instant::now)), if late_at.is_some() => {
                if memory.as_ref().is_some_and(Reservation::is_overdue) {
                    let busy = "the body does not go on, and others wait for its memory";
                    return Err(HttpProblem::unavailable(busy).with(header::CONNECTION, "close"));
                }
                continue;
            }
        };
        let Some(frame) = frame else { break };
        let frame = frame.map_err(|_| HttpProblem::bad_request("the body has not arrived as a whole"))?;
        let Ok(data) = frame.into_data() else { continue };
        if bytes.len() + data.len() > most {
            let detail = "the message is larger than max_packet_size under [broker] allows";
            return Err(HttpProblem::new(StatusCode::PAYLOAD_TOO_LARGE, detail));
        }
        match &mut memory {
            Some(memory) => memory.has_moved(data.len()),
            None if bytes.len() + data.len() > FREE => {
                memory = Some(receiving.reserve(holder.clone(), size).await);
                bytes.reserve(size.saturating_sub(bytes.len()));
            }
            None => {}
        }
        bytes.extend_from_slice(&data);
    }
    Ok(ReceivedBody { bytes: bytes.freeze(), _memory: memory })
}

#[cfg(test)]
mod tests {
    use axum::body::HttpBody;
    use axum::response::IntoResponse;
    use futures_util::{StreamExt, stream};

    use super::*;
    use crate::exchange::receiving::SHARE;

    fn chunks(count: usize, size: usize, pause: Duration) -> Body {
        let chunk = move |_| async move {
            tokio::time::sleep(pause).await;
            Ok::<_, std::io::Error>(Bytes::from(vec![b'x'; size]))
        };
        Body::from_stream(stream::iter(0..count).then(chunk))
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_crawls_gives_way_to_those_who_wait() {
        let receiving = Receiving::default();
        let crawling = chunks(20, 10_000, Duration::from_secs(1));
        let read = receive(crawling, (1 << 20, None), &receiving, None).await.map(|received| received.bytes.len());
        assert_eq!(read.ok(), Some(200_000), "nobody waits");
        let mut held = receiving.ask(Some("a"), SHARE);
        assert!(held.is_granted());
        let crawling = chunks(2, 100_000, Duration::from_secs(10));
        let reading = receive(crawling, (SHARE, None), &receiving, None);
        let other = async {
            tokio::time::sleep(Duration::from_secs(11)).await;
            receiving.reserve(Some("b"), 1 << 20).await.is_granted()
        };
        let (read, other) = tokio::join!(reading, other);
        assert_eq!((read.map(drop).unwrap_err().into_response().status().as_u16(), other), (503, true));
        drop(held);
        assert_eq!(receiving.taken(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_small_asks_for_nothing() {
        let receiving = Receiving::default();
        let mut all = ["a", "b"].map(|user| receiving.ask(Some(user), SHARE));
        assert!(all.iter_mut().all(Reservation::is_granted));
        let body = chunks(1, 60_000, Duration::ZERO);
        assert!(!body.is_end_stream());
        assert!(receive(body, (1 << 20, None), &receiving, None).await.is_ok());
        let large = receive(chunks(1, 70_000, Duration::ZERO), (60_000, None), &receiving, None).await;
        assert_eq!(large.map(drop).unwrap_err().into_response().status().as_u16(), 413);
    }
}

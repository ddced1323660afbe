//! Limits the memory of answers that wait for their clients to read them.
//!
//! A client that sends requests and does not read keeps its answer in memory. The first [`FREE`] bytes of an answer are
//! free. The memory of a larger answer is taken from a budget, of which no user gets more than half
//! ([`crate::exchange::receiving`]), until the answer is written. All guests together are one user, and of its half a network
//! gets no more than what it leaves to others. No request waits for the budget: it is refused, and the client may repeat it.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::body::{Body, Bytes, HttpBody};
use axum::http::Response;
use axum::response::IntoResponse;
use http_body_util::BodyExt;

use super::problem::HttpProblem;
use crate::access::places::PlaceHolder;
use crate::exchange::ingress::Ingress;
use crate::exchange::receiving::{Receiving, Reservation};
use crate::message::Origin;

/// The bytes that all large answers together may use.
pub(crate) const BUDGET: usize = 16 << 20;
/// The bytes of each answer that do not count.
pub(crate) const FREE: usize = 16 << 10;

/// Who has sent a request, once that is known.
#[derive(Clone, Debug, Default)]
pub(crate) struct Asker(Arc<OnceLock<Known>>);

#[derive(Debug)]
struct Known {
    holder: PlaceHolder,
    /// Who is charged for the work, and where.
    payer: Option<(Ingress, Origin)>,
}

impl Asker {
    pub(crate) fn is(&self, holder: PlaceHolder, payer: Option<(Ingress, Origin)>) {
        // a connection processes one request at a time
        let _ = self.0.set(Known { holder, payer });
    }

    fn holder(&self) -> PlaceHolder {
        self.0.get().map_or(PlaceHolder::Guest(None), |known| known.holder.clone())
    }

    /// Charges the client for this processor time, so that its next request waits if it has asked too much of late.
    pub(crate) fn pays(&self, time: Duration) {
        if let Some((ingress, origin)) = self.0.get().and_then(|known| known.payer.as_ref()) {
            ingress.meter().charge_beside(*origin, time);
        }
    }
}

/// Bytes that use memory of the budget until they are written.
struct KeptBytes<T> {
    bytes: T,
    _memory: Reservation,
}

impl<T: AsRef<[u8]>> AsRef<[u8]> for KeptBytes<T> {
    fn as_ref(&self) -> &[u8] {
        self.bytes.as_ref()
    }
}

/// Memory for an answer of this size to this client; `None` if there is none at present.
pub(crate) fn ask(answers: &Receiving, holder: PlaceHolder, size: usize) -> Option<Reservation> {
    if !answers.leaves_as_much(&holder, size) {
        return None;
    }
    let mut memory = answers.ask(holder, size);
    memory.is_granted().then_some(memory)
}

/// The bytes together with their memory.
pub(crate) fn kept(bytes: impl AsRef<[u8]> + Send + 'static, memory: Reservation) -> Bytes {
    Bytes::from_owner(KeptBytes { bytes, _memory: memory })
}

/// The answer, if it is small or there is memory for it; otherwise an answer with that error.
pub(crate) fn within(answers: &Receiving, asker: &Asker, response: Response<Body>) -> Response<Body> {
    // a body without a size is a stream, which asks for memory itself
    let size = response.body().size_hint().exact().and_then(|size| usize::try_from(size).ok());
    let Some(size) = size.filter(|size| *size > FREE) else { return response };
    let Some(memory) = ask(answers, asker.holder(), size) else {
        return HttpProblem::unavailable("others have not taken their answers yet, and there is no memory for more")
            .into_response();
    };
    let mut memory = Some(memory);
    response.map(|body| {
        Body::new(body.map_frame(move |frame| {
            frame.map_data(|data| match memory.take() {
                Some(memory) => kept(data, memory),
                None => data,
            })
        }))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(size: usize) -> Response<Body> {
        Response::new(Body::from(vec![b'x'; size]))
    }

    #[tokio::test]
    async fn what_is_not_taken_is_bounded_and_one_user_leaves_others_theirs() {
        let answers = Receiving::of(BUDGET);
        let from = |holder: PlaceHolder, size| {
            let asker = Asker::default();
            asker.is(holder, None);
            within(&answers, &asker, answer(size))
        };
        let of = |user: Option<&str>, size| from(user.into(), size);
        let guests: Vec<_> = (0..100).map(|_| of(None, 1 << 20)).collect();
        let answered = |all: &[Response<Body>]| all.iter().filter(|one| one.status() == 200).count();
        assert_eq!((answered(&guests), guests[99].status().as_u16()), (8, 503));
        assert_eq!(of(None, FREE).status(), 200, "what is small is always answered");
        assert_eq!(answered(&[of(Some("ada"), 4 << 20), of(Some("bob"), 1 << 20)]), 2);
        // a body is read when it is handed on, but stays in memory until it is written
        let mut chunks = Vec::new();
        for guest in guests {
            chunks.push(guest.into_body().collect().await.unwrap().to_bytes());
        }
        assert_eq!(of(None, 1 << 20).status(), 503);
        drop(chunks);
        assert_eq!(of(None, 1 << 20).status(), 200);
        assert_eq!(answers.taken(), 0);
        // the guests of a network leave others as much as they have
        let network = |host: u8| PlaceHolder::Guest(Some([192, 0, 2, host].into()));
        let crowd: Vec<_> = (0..100).map(|_| from(network(1), 1 << 20)).collect();
        let another: Vec<_> = (0..100).map(|_| from(network(2), 1 << 20)).collect();
        assert_eq!((answered(&crowd), answered(&another)), (4, 2));
        let third: Vec<_> = (0..100).map(|_| from(network(3), FREE + 1)).collect();
        assert!(answered(&third) > 20);
        assert_eq!(from(network(4), 60 << 10).status(), 200);
        drop((crowd, another, third));
        assert_eq!(from(network(1), 7 << 20).status(), 200, "what is large can be had by whoever is alone");
    }
}

//! Answers that carry a peer's message: it counts as the caller's once the answer was handed to the caller's connection.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use axum::response::Response;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use instar_mesh::Handover;
use tokio_util::sync::CancellationToken;

/// Cancelled when the caller of a request hung up although the request goes on.
#[derive(Debug, Clone, Default)]
pub(crate) struct CallerGone(pub(crate) CancellationToken);

/// The message that an answer carries; an extension of the response.
#[derive(Debug, Clone)]
pub(crate) struct Carried(Arc<Mutex<Option<Handover>>>);

impl Carried {
    pub(crate) fn new(handover: Handover) -> Self {
        Self(Arc::new(Mutex::new(Some(handover))))
    }
}

/// Confirms what the answer carries when its body has left; an answer that nobody reads confirms nothing.
pub(crate) fn confirmed(mut response: Response) -> Response {
    let Some(Carried(carried)) = response.extensions_mut().remove::<Carried>() else { return response };
    let handover = carried.lock().unwrap_or_else(PoisonError::into_inner).take();
    response.map(|body| Body::new(Receipted { body, handover, left: false }))
}

struct Receipted {
    body: Body,
    handover: Option<Handover>,
    left: bool,
}

impl HttpBody for Receipted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        self.left |= match &polled {
            Poll::Ready(None) => true,
            Poll::Ready(Some(Ok(_))) => self.body.is_end_stream(),
            Poll::Ready(Some(Err(_))) | Poll::Pending => false,
        };
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Receipted {
    fn drop(&mut self) {
        // The server lets go of a body when it has written it, or when there is nobody left to write to.
        if let Some(handover) = self.handover.take().filter(|_| self.left) {
            handover.confirm();
        }
    }
}

//! What happens around every call: a line in the log for those that change something, and an end for those that would
//! go on for ever when the server stops.
//!
//! The services record the ids that a call is about into its span by [`sandbox`], [`container`] and [`named`].

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Instant;

use tokio::sync::watch;
use tonic::body::Body;
use tonic::codegen::{Service, http};
use tonic::server::NamedService;
use tonic::{Code, Status};
use tracing::{Instrument, Span, field};

use crate::serve::{metrics, spans};

/// Digits of an id that the log shows.
const SHORT: usize = 12;

/// The calls that change something.
const CHANGES: [&str; 14] = [
    "RunPodSandbox",
    "StopPodSandbox",
    "RemovePodSandbox",
    "UpdatePodSandboxResources",
    "CreateContainer",
    "StartContainer",
    "StopContainer",
    "RemoveContainer",
    "UpdateContainerResources",
    "ReopenContainerLog",
    "CheckpointContainer",
    "UpdateRuntimeConfig",
    "PullImage",
    "RemoveImage",
];
/// The calls whose answers end only with the client's interest.
const ENDLESS: [&str; 1] = ["GetContainerEvents"];

/// Says which sandbox the running call is about.
pub fn sandbox(id: &str) {
    Span::current().record("sandbox", field::display(id.get(..SHORT).unwrap_or(id)));
}

/// Says which container the running call is about.
pub fn container(id: &str) {
    Span::current().record("container", field::display(id.get(..SHORT).unwrap_or(id)));
}

/// Says by which name the running call's object goes: a pod's, a container's, an image's.
pub fn named(name: &str) {
    Span::current().record("name", field::display(name));
}

/// A service whose calls are logged and end with the server.
#[derive(Clone)]
pub struct Calls<S> {
    inner: S,
    stop: watch::Receiver<bool>,
}

impl<S> Calls<S> {
    /// Wraps a service; `stop` turns true when the server stops.
    pub fn new(inner: S, stop: watch::Receiver<bool>) -> Calls<S> {
        Calls { inner, stop }
    }
}

impl<S: NamedService> NamedService for Calls<S> {
    const NAME: &'static str = S::NAME;
}

impl<S> Service<http::Request<Body>> for Calls<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let rpc = request.uri().path().rsplit('/').next().unwrap_or_default().to_owned();
        let span = tracing::info_span!(
            "call",
            rpc = %rpc,
            name = field::Empty,
            sandbox = field::Empty,
            container = field::Empty,
        );
        spans::adopt(&span, &rpc, request.headers());
        let stop = self.stop.clone();
        let counted = metrics::Call::begin(&rpc);
        let inner = span.in_scope(|| self.inner.call(request));
        let call = async move {
            let begun = Instant::now();
            let response = inner.await?;
            counted.ended(tell(&rpc, begun, &response), begun.elapsed());
            Ok(match ENDLESS.contains(&rpc.as_str()) {
                true => response.map(|body| Body::new(Ending::new(body, stop))),
                false => response,
            })
        };
        Box::pin(call.instrument(span))
    }
}

/// Writes the line and tells the code. A call that failed has its status in the headers already; what comes later in trailers is success.
fn tell(rpc: &str, begun: Instant, response: &http::Response<Body>) -> Code {
    let took_ms = begun.elapsed().as_millis() as u64;
    let failed = Status::from_header_map(response.headers()).filter(|status| status.code() != Code::Ok);
    let code = failed.as_ref().map_or(Code::Ok, Status::code);
    match (CHANGES.contains(&rpc), failed) {
        (true, None) => tracing::info!(took_ms, "done"),
        (true, Some(status)) => tracing::warn!(took_ms, "failed: {:?}: {}", status.code(), status.message()),
        (false, None) => tracing::debug!(took_ms, "done"),
        (false, Some(status)) => tracing::debug!(took_ms, "failed: {:?}: {}", status.code(), status.message()),
    }
    code
}

/// An answer that ends when the server stops, with a status that asks the client to come again.
struct Ending {
    inner: Body,
    stopped: Pin<Box<dyn Future<Output = ()> + Send>>,
    over: bool,
}

impl Ending {
    fn new(inner: Body, mut stop: watch::Receiver<bool>) -> Ending {
        let stopped = async move {
            // A sender that is gone has stopped, too.
            let _ = stop.wait_for(|stopped| *stopped).await;
        };
        Ending { inner, stopped: Box::pin(stopped), over: false }
    }
}

impl hyper::body::Body for Ending {
    type Data = hyper::body::Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<hyper::body::Frame<Self::Data>, Status>>> {
        if self.over {
            return Poll::Ready(None);
        }
        if let Poll::Ready(frame) = Pin::new(&mut self.inner).poll_frame(context) {
            return Poll::Ready(frame);
        }
        std::task::ready!(self.stopped.as_mut().poll(context));
        self.over = true;
        let mut trailers = http::HeaderMap::new();
        Status::unavailable("the server stops; connect again").add_header(&mut trailers)?;
        Poll::Ready(Some(Ok(hyper::body::Frame::trailers(trailers))))
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;

    #[tokio::test]
    async fn an_endless_answer_ends_with_the_server_and_says_so() {
        let (stop, stopped) = watch::channel(false);
        let endless = http_body_util::StreamBody::new(tokio_stream::pending::<Result<_, Status>>());
        let mut body = Ending::new(Body::new(endless), stopped);
        assert!(tokio::time::timeout(std::time::Duration::from_millis(10), body.frame()).await.is_err());
        stop.send(true).unwrap();
        let frame = body.frame().await.unwrap().unwrap();
        let status = Status::from_header_map(frame.trailers_ref().unwrap()).unwrap();
        assert_eq!(status.code(), Code::Unavailable);
        assert!(body.frame().await.is_none());
    }
}

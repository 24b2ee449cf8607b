//! The stream of container events: what happens to the CRI's pods, as the engine finds it.
//!
//! As other runtimes do, a sandbox has events too, under its own id. Each event carries the pod as it was when the event
//! was found. A client that is cut off is told to list anew, which is what kubelet does whenever the stream ends.

use std::pin::Pin;
use std::task::{Context, Poll};

use coracle_engine::events::{Ended, Event, EventKind, Subscription};
use coracle_proto::cri as v1;
use tokio_stream::Stream;
use tonic::{Code, Status};

use super::{Answers, Cri, convert, fault};

impl Cri {
    pub(super) async fn get_container_events_rpc(
        &self,
        _request: v1::GetEventsRequest,
    ) -> Result<Answers<v1::ContainerEventResponse>, Status> {
        let subscription = self.events().subscribe().await.map_err(fault::engine)?;
        Ok(Box::pin(Events { subscription }))
    }
}

/// A subscription in the CRI's terms.
struct Events {
    subscription: Subscription,
}

impl Stream for Events {
    type Item = Result<v1::ContainerEventResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = std::task::ready!(self.subscription.poll_next(context));
        Poll::Ready(next.map(|next| next.map(|event| shown(&event)).map_err(ended)))
    }
}

fn shown(event: &Event) -> v1::ContainerEventResponse {
    let kind = match event.kind {
        EventKind::Created => v1::ContainerEventType::ContainerCreatedEvent,
        EventKind::Started => v1::ContainerEventType::ContainerStartedEvent,
        EventKind::Stopped => v1::ContainerEventType::ContainerStoppedEvent,
        EventKind::Deleted => v1::ContainerEventType::ContainerDeletedEvent,
    };
    v1::ContainerEventResponse {
        container_id: event.id.clone(),
        container_event_type: kind as i32,
        created_at: event.at,
        pod_sandbox_status: Some(convert::sandbox::status(&event.pod.sandbox)),
        containers_statuses: event.pod.containers.iter().map(convert::container::status).collect(),
    }
}

fn ended(why: Ended) -> Status {
    match why {
        Ended::TooSlow => fault::status(
            Code::ResourceExhausted,
            "events came faster than they were taken and some are lost; list the pods, and connect again",
        ),
        Ended::Broken => fault::status(Code::Unavailable, "the state folder cannot be watched any more; connect again"),
    }
}

//! The stream of container events.

use coracle_proto::cri as v1;
use tonic::Status;

use super::{Answers, Cri};

impl Cri {
    pub(super) async fn get_container_events_rpc(
        &self,
        _request: v1::GetEventsRequest,
    ) -> Result<Answers<v1::ContainerEventResponse>, Status> {
        Err(Status::unimplemented("GetContainerEvents is not built yet"))
    }
}

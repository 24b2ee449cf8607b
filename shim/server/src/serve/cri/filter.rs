//! Which objects a call means, and how a long list is answered.
//!
//! An id may be given by its first digits, as crictl's users do. Pods that `coracle run` made are none of a CRI client's:
//! kubelet would end them as orphans, so no call lists or finds them.

use std::collections::HashMap;

use coracle_engine::{
    ContainerFilter, ContainerState, ContainerStatus, Engine, Error, SandboxConfig, SandboxFilter, SandboxState,
};
use coracle_proto::{Message, cri as v1};
use tokio_stream::iter;
use tonic::Status;

use super::{Answers, fault};

/// The items of one answer of a list that comes as a stream, at most.
const BATCH_ITEMS: usize = 256;
/// The bytes of one such answer, about; clients refuse 16 MiB.
const BATCH_BYTES: usize = 1 << 20;

/// Splits a list into answers of bounded length.
pub fn batches<T: Message, R: Send + 'static>(items: Vec<T>, answer: impl Fn(Vec<T>) -> R) -> Answers<R> {
    let mut answers = Vec::new();
    let (mut batch, mut bytes) = (Vec::new(), 0);
    for item in items {
        let length = item.encoded_len();
        if !batch.is_empty() && (batch.len() >= BATCH_ITEMS || bytes + length > BATCH_BYTES) {
            answers.push(Ok(answer(std::mem::take(&mut batch))));
            bytes = 0;
        }
        bytes += length;
        batch.push(item);
    }
    if !batch.is_empty() {
        answers.push(Ok(answer(batch)));
    }
    Box::pin(iter(answers))
}

/// The sandbox that a call means; `None` if there is none.
pub fn sandbox(engine: &Engine, field: &str, id: &str) -> Result<Option<String>, Status> {
    Ok(found_sandbox(engine, field, id)?.map(|(id, _)| id))
}

fn found_sandbox(engine: &Engine, field: &str, id: &str) -> Result<Option<(String, SandboxConfig)>, Status> {
    if id.is_empty() {
        return Err(fault::invalid(field, "must not be empty"));
    }
    let found = engine.find_sandbox_by_id(id).and_then(|id| Ok((engine.sandbox_config(&id)?, id)));
    match found {
        Ok((config, id)) => Ok((!config.exclusive_name).then_some((id, config))),
        Err(e) if e.is_not_found() => Ok(None),
        Err(e) => Err(fault::engine(e)),
    }
}

/// As [`sandbox`]; its absence is an error.
pub fn known_sandbox(engine: &Engine, id: &str) -> Result<String, Status> {
    Ok(sandbox_and_config(engine, id)?.0)
}

/// The sandbox that a call means, and what it was asked to be; its absence is an error.
pub fn sandbox_and_config(engine: &Engine, id: &str) -> Result<(String, SandboxConfig), Status> {
    found_sandbox(engine, "pod_sandbox_id", id)?.ok_or_else(|| absent("sandbox", id))
}

/// The container that a call means; `None` if there is none.
pub fn container(engine: &Engine, id: &str) -> Result<Option<String>, Status> {
    if id.is_empty() {
        return Err(fault::invalid("container_id", "must not be empty"));
    }
    let found = engine.find_container(id).and_then(|(pod, id)| Ok((engine.sandbox_config(&pod)?, id)));
    match found {
        Ok((config, id)) => Ok((!config.exclusive_name).then_some(id)),
        Err(e) if e.is_not_found() => Ok(None),
        Err(e) => Err(fault::engine(e)),
    }
}

/// As [`container`]; its absence is an error.
pub fn known_container(engine: &Engine, id: &str) -> Result<String, Status> {
    container(engine, id)?.ok_or_else(|| absent("container", id))
}

/// The status of an id that means nothing.
pub fn absent(kind: &'static str, id: &str) -> Status {
    fault::engine(Error::NotFound { kind, name: id.to_owned(), hint: None })
}

/// The sandboxes that a filter lets through.
pub fn sandboxes(
    engine: &Engine,
    filter: Option<v1::PodSandboxFilter>,
) -> Result<Vec<coracle_engine::SandboxStatus>, Status> {
    let filter = filter.unwrap_or_default();
    let wanted = match filter.state {
        Some(value) => Some(
            v1::PodSandboxState::try_from(value.state)
                .map_err(|_| fault::invalid("filter.state", format!("{} is no state of a sandbox", value.state)))?,
        ),
        None => None,
    };
    let query = SandboxFilter {
        id: filter.id,
        labels: labels(filter.label_selector),
        local: Some(false),
        ..Default::default()
    };
    let mut list = engine.list_sandboxes(&query).map_err(fault::engine)?;
    list.retain(|s| shown_sandbox(s.state).is_some_and(|state| wanted.is_none_or(|w| w == state)));
    Ok(list)
}

/// The containers that a filter lets through.
pub fn containers(engine: &Engine, filter: Option<v1::ContainerFilter>) -> Result<Vec<ContainerStatus>, Status> {
    let filter = filter.unwrap_or_default();
    let wanted = match filter.state {
        Some(value) => Some(
            v1::ContainerState::try_from(value.state)
                .map_err(|_| fault::invalid("filter.state", format!("{} is no state of a container", value.state)))?,
        ),
        None => None,
    };
    let query = ContainerFilter {
        id: filter.id,
        sandbox_id: filter.pod_sandbox_id,
        labels: labels(filter.label_selector),
        local: Some(false),
        ..Default::default()
    };
    let mut list = engine.list_containers(&query).map_err(fault::engine)?;
    list.retain(|c| shown_container(c).is_some_and(|state| wanted.is_none_or(|w| w == state)));
    Ok(list)
}

/// A map of the wire as the engine has it.
pub fn labels(map: HashMap<String, String>) -> std::collections::BTreeMap<String, String> {
    map.into_iter().collect()
}

/// A sandbox's state in the CRI's terms; `None` for one that is still being made: it is told of when it is whole.
pub fn shown_sandbox(state: SandboxState) -> Option<v1::PodSandboxState> {
    match state {
        SandboxState::Creating => None,
        SandboxState::Ready => Some(v1::PodSandboxState::SandboxReady),
        SandboxState::Stopping | SandboxState::NotReady | SandboxState::Removing => {
            Some(v1::PodSandboxState::SandboxNotready)
        }
    }
}

/// A container's state in the CRI's terms; `None` for one that is still being made.
pub fn shown_container(status: &ContainerStatus) -> Option<v1::ContainerState> {
    match status.state {
        ContainerState::Creating => None,
        ContainerState::Created => Some(v1::ContainerState::ContainerCreated),
        ContainerState::Running => Some(v1::ContainerState::ContainerRunning),
        ContainerState::Exited | ContainerState::Removing => Some(v1::ContainerState::ContainerExited),
        ContainerState::Unknown => Some(v1::ContainerState::ContainerUnknown),
    }
}

#[cfg(test)]
mod tests {
    use tokio_stream::StreamExt;

    use super::*;

    #[tokio::test]
    async fn a_streamed_list_comes_whole_in_bounded_answers() {
        let sandbox = |id: usize, annotation: usize| v1::PodSandbox {
            id: id.to_string(),
            annotations: HashMap::from([("a".to_owned(), "x".repeat(annotation))]),
            ..Default::default()
        };
        let wrap = |pod_sandboxes| v1::StreamPodSandboxesResponse { pod_sandboxes };
        for (count, size, answers) in [(0, 0, 0), (BATCH_ITEMS, 1, 1), (BATCH_ITEMS + 1, 1, 2), (3, BATCH_BYTES, 3)] {
            let items = (0..count).map(|id| sandbox(id, size)).collect();
            let got: Vec<_> = batches(items, wrap).collect().await;
            assert_eq!(got.len(), answers, "{count} of {size} bytes");
            let ids = got.into_iter().flat_map(|answer| answer.unwrap().pod_sandboxes).map(|s| s.id);
            assert!(ids.eq((0..count).map(|id| id.to_string())));
        }
    }
}

//! Requests: which handler answers which method. A handler answers now (`Some`), or keeps the [`Call`] and answers
//! later (`None`), so that no request ever makes another one wait.

use crate::connection::Call;
use crate::failure::{Fail, Failure};
use crate::supervisor::Supervisor;
use coracle_proto::Message;
use coracle_proto::ttrpc::{Code, Request, method, service};

/// What a handler says.
pub type Outcome = Result<Option<Vec<u8>>, Failure>;
type Handler = fn(&mut Supervisor, Call, &[u8]) -> Outcome;

const TASK: &[(&str, Handler)] = &[
    (method::STATE, Supervisor::state),
    (method::CREATE, Supervisor::create),
    (method::START, Supervisor::start),
    (method::DELETE, Supervisor::delete),
    (method::PIDS, Supervisor::pids),
    (method::PAUSE, Supervisor::pause),
    (method::RESUME, Supervisor::resume),
    (method::CHECKPOINT, Supervisor::checkpoint),
    (method::KILL, Supervisor::kill),
    (method::EXEC, Supervisor::exec),
    (method::RESIZE_PTY, Supervisor::resize_pty),
    (method::CLOSE_IO, Supervisor::close_io),
    (method::UPDATE, Supervisor::update),
    (method::WAIT, Supervisor::wait),
    (method::STATS, Supervisor::stats),
    (method::CONNECT, Supervisor::connect),
    (method::SHUTDOWN, Supervisor::shutdown),
];

const SANDBOX: &[(&str, Handler)] = &[
    (method::CREATE_SANDBOX, Supervisor::create_sandbox),
    (method::START_SANDBOX, Supervisor::start_sandbox),
    (method::PLATFORM, Supervisor::platform),
    (method::STOP_SANDBOX, Supervisor::stop_sandbox),
    (method::WAIT_SANDBOX, Supervisor::wait_sandbox),
    (method::SANDBOX_STATUS, Supervisor::sandbox_status),
    (method::PING_SANDBOX, Supervisor::ping_sandbox),
    (method::SANDBOX_METRICS, Supervisor::sandbox_metrics),
    (method::SHUTDOWN_SANDBOX, Supervisor::shutdown_sandbox),
];

const CONTROL: &[(&str, Handler)] = &[
    (method::REOPEN_LOG, Supervisor::reopen_log),
    (method::INFO, Supervisor::info),
    (method::UPDATE_SANDBOX, Supervisor::update_sandbox),
    (method::CONNECT_NETWORK, Supervisor::connect_network),
];

/// The init of a virtual machine does more.
const GUEST: &[(&str, Handler)] = &[
    (method::SET_UP, Supervisor::guest_set_up),
    (method::MOUNT, Supervisor::guest_mount),
    (method::UNMOUNT, Supervisor::guest_unmount),
    (method::PUT, Supervisor::guest_put),
    (method::FETCH, Supervisor::guest_fetch),
];

/// The shims of other handlers send events.
const EVENTS: &[(&str, Handler)] = &[(method::FORWARD, Supervisor::forward_event)];

fn handler(request: &Request) -> Result<Handler, Failure> {
    let table = match request.service.as_str() {
        service::TASK_V2 | service::TASK_V3 => TASK,
        service::SANDBOX => SANDBOX,
        service::CONTROL => CONTROL,
        service::GUEST => GUEST,
        service::EVENTS => EVENTS,
        other => return Err(Code::Unimplemented.failure(format!("service {other} is not known"))),
    };
    let found = table.iter().find(|(name, _)| *name == request.method);
    found.map(|(_, handler)| *handler).ok_or_else(|| {
        Code::Unimplemented.failure(format!("method {}/{} is not supported", request.service, request.method))
    })
}

impl Supervisor {
    /// Answers a request, now or later.
    pub(crate) fn serve(&mut self, call: Call, request: Request) {
        let outcome = match call.stream % 2 {
            1 => handler(&request).and_then(|handler| handler(self, call, &request.payload)),
            _ => Err(Code::InvalidArgument.failure(format!("stream {} is not a client's: it is even", call.stream))),
        };
        self.deadlines.note(call, &request, &outcome);
        match outcome {
            Ok(None) => {}
            Ok(Some(answer)) => self.answer(call, Ok(answer)),
            Err(failure) => self.answer(call, Err(failure)),
        }
    }
}

/// The request's message.
pub fn decode<M: Message + Default>(payload: &[u8]) -> Result<M, Failure> {
    M::decode(payload).map_err(|error| Code::InvalidArgument.failure(format!("the request does not decode: {error}")))
}

/// An answer with a message.
pub fn answered(message: &impl Message) -> Outcome {
    Ok(Some(message.encode_to_vec()))
}

/// An answer with nothing in it.
pub fn done() -> Outcome {
    Ok(Some(Vec::new()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(service: &str, method: &str) -> Code {
        let request = Request { service: service.into(), method: method.into(), ..Default::default() };
        handler(&request).map_or_else(|failure| failure.code, |_| Code::Ok)
    }

    #[test]
    fn both_versions_of_the_task_service_are_served_and_nothing_unknown() {
        assert_eq!(code(service::TASK_V2, method::WAIT), Code::Ok);
        assert_eq!(code(service::TASK_V3, method::WAIT), Code::Ok);
        assert_eq!(code(service::TASK_V3, method::CHECKPOINT), Code::Ok);
        assert_eq!(code(service::TASK_V3, "Migrate"), Code::Unimplemented);
        assert_eq!(code("containerd.task.v4.Task", method::WAIT), Code::Unimplemented);
        assert_eq!(code(service::SANDBOX, method::WAIT), Code::Unimplemented);
    }
}

//! Task.Checkpoint: the state of a container in files, by CRIU, as containerd's clients and its CRI ask for it. A container
//! that ends with its checkpoint has an exit like any other.

use crate::connection::Call;
use crate::failure::{Fail, Failure};
use crate::oci::{Act, Oci};
use crate::service::{Outcome, decode};
use crate::supervisor::{Job, Supervisor};
use crate::task::State;
use coracle_proto::ttrpc::Code;
use coracle_proto::{any, runc, task};
use coracle_runtime::{CheckpointOptions, CriuOptions, Runtime};
use std::fs;
use std::path::{Path, PathBuf};

/// A checkpoint that was asked for.
pub struct Checkpoint {
    images: PathBuf,
    work: PathBuf,
    /// The work folder goes with the checkpoint.
    scratch: bool,
    options: runc::CheckpointOptions,
}

impl Checkpoint {
    fn new(request: task::CheckpointTaskRequest, bundle: &Path, criu: &runc::Options) -> Result<Checkpoint, Failure> {
        let invalid = |text: String| Code::InvalidArgument.failure(format!("checkpoint {}: {text}", request.id));
        let options = match &request.options {
            Some(packed) if !packed.type_url.is_empty() => match any::unpack::<runc::CheckpointOptions>(packed) {
                Some(options) => options.map_err(|error| invalid(format!("its options do not decode: {error}")))?,
                None => return Err(invalid(format!("options of type {} are not known", packed.type_url))),
            },
            _ => runc::CheckpointOptions::default(),
        };
        let given = [&request.path, &options.image_path, &criu.criu_image_path];
        let images = given.into_iter().find(|path| !path.is_empty()).map(PathBuf::from);
        let images = images.filter(|path| path.is_absolute());
        let images = images.ok_or_else(|| invalid("an absolute path for its images is needed".to_owned()))?;
        let given = [&options.work_path, &criu.criu_work_path].into_iter().find(|path| !path.is_empty());
        let work = given.map_or_else(|| bundle.join("criu-work"), PathBuf::from);
        Ok(Checkpoint { images, scratch: given.is_none(), work, options })
    }

    /// Makes it, of a container of our own runtime; only in a worker.
    pub fn perform(self, root: &Path, id: &str) -> Result<Vec<u8>, Failure> {
        let folder = |path: &Path| {
            let made = fs::create_dir_all(path);
            made.map_err(|error| Code::Unknown.failure(format!("checkpoint {id}: make {}: {error}", path.display())))
        };
        folder(&self.images)?;
        folder(&self.work)?;
        let options = CheckpointOptions {
            criu: CriuOptions {
                images: self.images,
                work: Some(self.work.clone()),
                tcp_established: self.options.open_tcp,
                ext_unix_sk: self.options.external_unix_sockets,
                shell_job: self.options.terminal,
                file_locks: self.options.file_locks,
                manage_cgroups: self.options.cgroups_mode,
                empty_ns: self.options.empty_namespaces,
                ..CriuOptions::default()
            },
            parent: (!self.options.parent_path.is_empty()).then(|| self.options.parent_path.into()),
            leave_running: !self.options.exit,
            ..CheckpointOptions::default()
        };
        Runtime::new(root).checkpoint(id, &options)?;
        // Of one that failed the log stays.
        if self.scratch {
            let _ = fs::remove_dir_all(&self.work);
        }
        Ok(Vec::new())
    }
}

impl Supervisor {
    /// Task.Checkpoint
    pub(crate) fn checkpoint(&mut self, call: Call, payload: &[u8]) -> Outcome {
        let request: task::CheckpointTaskRequest = decode(payload)?;
        let (id, container) = (request.id.clone(), self.container(&request.id)?);
        if !matches!(container.init.state, State::Running | State::Paused) {
            let text = format!("checkpoint {id}: the container is {}", container.init.state);
            return Err(Code::FailedPrecondition.failure(text));
        }
        if matches!(container.oci, Oci::Vm(_)) {
            let text = format!("checkpoint {id}: containers in virtual machines cannot be checkpointed");
            return Err(Code::Unimplemented.failure(text));
        }
        if !matches!(container.oci, Oci::Own(_)) {
            let text = format!("checkpoint {id}: containers of other runtimes cannot be checkpointed here");
            return Err(Code::Unimplemented.failure(text));
        }
        let checkpoint = Checkpoint::new(request, &container.bundle, &container.criu)?;
        self.act(Job::Answer { call }, &id, Act::Checkpoint(Box::new(checkpoint)))?;
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made(path: &str, options: runc::CheckpointOptions, criu: runc::Options) -> Result<Checkpoint, Failure> {
        let options = Some(any::pack(&options));
        let request = task::CheckpointTaskRequest { id: "web".into(), path: path.into(), options };
        Checkpoint::new(request, Path::new("/bundle"), &criu)
    }

    #[test]
    fn the_request_says_where_it_goes_before_the_handler_does() {
        let handler =
            || runc::Options { criu_image_path: "/h".into(), criu_work_path: "/w".into(), ..Default::default() };
        let plain = made("/c", Default::default(), Default::default()).unwrap();
        assert_eq!((plain.images, plain.work, plain.scratch), ("/c".into(), "/bundle/criu-work".into(), true));
        let by_handler = made("", Default::default(), handler()).unwrap();
        assert_eq!((by_handler.images, by_handler.work, by_handler.scratch), ("/h".into(), "/w".into(), false));
        for path in ["", "relative"] {
            let failure = made(path, Default::default(), Default::default()).err().unwrap();
            assert!(failure.message.contains("an absolute path"), "{}", failure.message);
        }
    }
}

//! Starting one container of a pod that is tended.

use std::fs;

use anyhow::{Context, Result};

use super::{Tender, Watch};
use crate::pod::keep::{Failure, Last};
use crate::pod::making::{Blocked, Making};
use crate::pod::message;
use crate::pod::observe::{History, Observed, has_run};
use crate::pod::policy::Past;
use crate::time;

impl Tender {
    /// Starts a container of a new pod. What blocks it and may pass is remembered; anything else is an error.
    pub(super) async fn start_first(&mut self, index: usize, observed: &Observed, watch: &mut dyn Watch) -> Result<()> {
        match self.start(index, observed, watch).await {
            Err(error) if error.downcast_ref::<Blocked>().is_some_and(|blocked| !blocked.lasting) => {
                self.remember(index, &error)
            }
            result => result,
        }
    }

    /// Starts a container that may have run before; a failure is remembered and counts as an end.
    pub(super) async fn start_again(&mut self, index: usize, observed: &Observed, watch: &mut dyn Watch) -> Result<()> {
        let container = self.container(index).clone();
        let seen = observed.seen(&self.reach.kept, &container, &self.tended);
        if let (Past::Ended { at, .. }, None) = (seen.past, seen.blocked) {
            let memory = self.tended.containers.entry(container.name.clone()).or_default();
            memory.backoff = memory.backoff.restarted(at, time::now());
        }
        match self.start(index, observed, watch).await {
            Ok(()) => self.save(),
            Err(error) => {
                watch.failed(&container.name, &format!("{error:#}"));
                self.remember(index, &error)
            }
        }
    }

    fn remember(&mut self, index: usize, error: &anyhow::Error) -> Result<()> {
        let name = self.container(index).name.clone();
        let failure = match error.downcast_ref::<Blocked>() {
            Some(Blocked { reason, message, retry_at, .. }) => Failure {
                at: time::now(),
                reason: (*reason).into(),
                message: message.clone(),
                retry_at: Some(*retry_at),
            },
            None => {
                let (reason, message) = (String::new(), format!("{error:#}"));
                Failure { at: time::now(), reason, message, retry_at: None }
            }
        };
        self.tended.containers.entry(name).or_default().failure = Some(failure);
        self.save()
    }

    async fn start(&mut self, index: usize, observed: &Observed, watch: &mut dyn Watch) -> Result<()> {
        let container = self.container(index).clone();
        let name = &container.name;
        let context = || format!("start container {name}");
        let nothing = History::default();
        let history = observed.history(name).unwrap_or(&nothing);
        self.keep_last(index, history);
        self.clear_up(history).await?;
        let attempt = history.next_attempt();
        let reach = self.reach.clone();
        let (engine, sandbox, kept) = (&reach.engine, reach.sandbox.as_str(), &*reach.kept);
        let app = self.app.as_ref().context("the pod is to stop")?;
        let making = Making { app, engine, sandbox, kept, container: &container, attempt };
        let mut pulls = self.tended.containers.get(name).map(|memory| memory.pulls.clone()).unwrap_or_default();
        let config = making.config(&mut pulls).await.with_context(context);
        self.tended.containers.entry(name.clone()).or_default().pulls = pulls;
        let mut config = config?;
        config.mounts.extend(message::mount(engine.paths(), sandbox, &container, attempt).with_context(context)?);
        config.stop_signal = container.lifecycle.stop_signal.clone().or(config.stop_signal);
        let (on, recorder) = (reach.on(name), &reach.recorder);
        let created = engine.create_container(sandbox, config).await;
        let id = created.inspect_err(|error| recorder.warning(on, "Failed", format!("Error: {error}")));
        let id = id.with_context(context)?;
        recorder.normal(on, "Created", format!("Created container: {name}"));
        if let Err(error) = engine.start_container(&id).await {
            recorder.warning(on, "Failed", format!("Error: {error}"));
            // What was made is worth nothing now; why the start failed is what matters.
            let _ = engine.remove_container(&id).await;
            return Err(error).with_context(context);
        }
        recorder.normal(on, "Started", format!("Started container {name}"));
        let memory = self.tended.containers.entry(name.clone()).or_default();
        memory.failure = None;
        memory.begin(&id, attempt);
        watch.started(name, attempt);
        Ok(())
    }

    /// Remembers how the incarnation before the next one ended.
    fn keep_last(&mut self, index: usize, history: &History) {
        let container = self.container(index).clone();
        let Some(status) = history.latest.as_ref().filter(|status| has_run(status)) else { return };
        let Some(exit) = &status.exit else { return };
        let message = message::of(self.reach.engine.paths(), self.pod(), &container, status);
        let last = Last {
            id: status.id.clone(),
            exit_code: exit.code,
            reason: exit.reason.clone(),
            message,
            started_at: status.started_at,
            finished_at: exit.finished_at,
        };
        self.tended.containers.entry(container.name).or_default().last_state = Some(last);
    }

    /// Removes what an earlier tender left half made, and all but the last incarnation that ran, with its logs.
    async fn clear_up(&self, history: &History) -> Result<()> {
        let half_made = history.latest.iter().filter(|status| !has_run(status));
        for status in half_made.chain(&history.earlier) {
            self.reach.engine.remove_container(&status.id).await?;
            message::forget(self.reach.engine.paths(), &self.reach.sandbox, &status.config.name, status.config.attempt);
            if let Some(path) = status.log_path.as_ref().filter(|_| has_run(status)) {
                let _ = fs::remove_file(path);
            }
        }
        Ok(())
    }
}

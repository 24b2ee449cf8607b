//! What a process that stays does once when it comes after another's death: it finishes what that one had begun.
//!
//! Nothing here is needed for correctness: a repetition of the interrupted call does the same for its own object. It is
//! for the objects that nobody asks for again, and so that a container which runs is shown as running at once.

use coracle_rootfs::GcOptions;
use tokio::task::JoinSet;

use crate::doctor::{Action, Finding};
use crate::engine::{Engine, blocking};
use crate::error::Result;
use crate::record::ContainerRecord;
use crate::status::{ContainerEvent, ContainerState};

impl Engine {
    /// Takes apart what was being made or removed, with what is left of pods that are no more, and notes which containers
    /// were started without anyone living to record it. Pods whose supervisor died are left to who owns them: what they
    /// left running is theirs to end.
    pub async fn recover(&self) -> Result<Vec<Action>> {
        self.note_started().await?;
        let dead_pod = |finding: &Finding| matches!(finding, Finding::DeadPod { .. });
        let mut actions = self.clear_where(|finding| finding.clearable() && !dead_pod(finding)).await?;
        // Unfinished files, and pulls that were cut off. Layers go with the image or container that needed them last.
        let store = self.store.clone();
        blocking(move || Ok(store.gc(&GcOptions::default())?)).await?;
        actions.extend(self.collect_network().await);
        Ok(actions)
    }

    /// Asks all supervisors at once, so that one who hangs costs its own deadline and nobody else's.
    async fn note_started(&self) -> Result<()> {
        let mut asked = JoinSet::new();
        for sandbox in self.sandbox_ids()? {
            for id in self.container_ids(&sandbox)? {
                let Ok(record) = self.container_record(&sandbox, &id) else { continue };
                if record.state == ContainerState::Created && record.started_at != 0 {
                    let engine = self.clone();
                    asked.spawn(async move { engine.note_one(record).await });
                }
            }
        }
        asked.join_all().await;
        Ok(())
    }

    /// What cannot be found out now is found out by a repeated start.
    async fn note_one(&self, seen: ContainerRecord) {
        let _turn = self.turn(&seen.id).await;
        let Ok(Some(pid)) = self.running_pid(&seen.sandbox_id, &seen.id).await else { return };
        let Ok(mut record) = self.container_record(&seen.sandbox_id, &seen.id) else { return };
        if record.state == ContainerState::Created
            && let Some(state) = record.state.next(ContainerEvent::Started)
        {
            (record.state, record.pid) = (state, i32::try_from(pid).ok());
            let _ = self.write_container(&record);
        }
    }
}

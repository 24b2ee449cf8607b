//! One at a time for one object: calls that change a sandbox or a container take turns by its id.
//!
//! Turns are for the tasks of one process; between processes the locks of [`crate::lock`] and the records' states decide.
//! A stop takes no turn on a container: it must get through to one whose start hangs.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{Mutex as Queue, OwnedMutexGuard};

/// Who waits and works, by id.
#[derive(Debug, Default)]
pub(crate) struct Turns {
    queues: Mutex<HashMap<String, Weak<Queue<()>>>>,
}

impl Turns {
    /// Waits for the turn; dropping it lets the next one go on.
    pub(crate) async fn take(&self, id: &str) -> OwnedMutexGuard<()> {
        let queue = {
            let mut queues = self.queues.lock().unwrap_or_else(PoisonError::into_inner);
            match queues.get(id).and_then(Weak::upgrade) {
                Some(queue) => queue,
                None => {
                    // Those that nobody holds any more go now: the list is as long as there is work.
                    queues.retain(|_, queue| queue.strong_count() > 0);
                    let queue = Arc::new(Queue::new(()));
                    queues.insert(id.to_owned(), Arc::downgrade(&queue));
                    queue
                }
            }
        };
        queue.lock_owned().await
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn one_id_is_one_queue_and_others_do_not_wait() {
        let turns = Turns::default();
        let first = turns.take("a").await;
        let soon = Duration::from_millis(20);
        assert!(tokio::time::timeout(soon, turns.take("a")).await.is_err());
        drop(turns.take("b").await);
        drop(first);
        drop(turns.take("a").await);
        drop(turns.take("c").await);
        assert_eq!(turns.queues.lock().unwrap().len(), 1, "what is over is forgotten");
    }
}

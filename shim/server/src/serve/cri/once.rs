//! Calls that make something: each goes on although its client has gone, and a client that asks again for the same gets
//! the result of the call that is under way.
//!
//! kubelet gives up waiting after some minutes and asks again with the same name and attempt, while the first call still
//! works. Were the work dropped with its client, half of a pod would be left; were the second one refused, the pod would
//! never come up.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;
use tonic::{Code, Status};
use tracing::Instrument;

use super::fault;

/// What a piece of work came to; `None` while it runs.
type Outcome<T> = watch::Receiver<Option<Result<T, Status>>>;

/// Work under way, by what it makes.
pub struct Once<T> {
    running: Arc<Mutex<HashMap<String, Outcome<T>>>>,
}

impl<T> Default for Once<T> {
    fn default() -> Self {
        Once { running: Arc::default() }
    }
}

impl<T: Clone + Send + Sync + 'static> Once<T> {
    /// The result of the work under `key`: of that which runs, else of this.
    pub async fn run<F>(&self, key: String, work: F) -> Result<T, Status>
    where
        F: Future<Output = Result<T, Status>> + Send + 'static,
    {
        let mut outcome = self.join_or_start(key, work);
        let result = match outcome.wait_for(Option::is_some).await {
            Ok(result) => result.clone(),
            // Its task ended without a word: it panicked, or the server ends.
            Err(_) => None,
        };
        result.unwrap_or_else(|| Err(fault::status(Code::Internal, "the call broke off (see the server's log)")))
    }

    fn join_or_start<F>(&self, key: String, work: F) -> Outcome<T>
    where
        F: Future<Output = Result<T, Status>> + Send + 'static,
    {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        // One whose sender is gone has panicked, and is nobody's to wait for.
        if let Some(outcome) = running.get(&key).filter(|outcome| outcome.has_changed().is_ok()) {
            return outcome.clone();
        }
        let (tell, outcome) = watch::channel(None);
        running.insert(key.clone(), outcome.clone());
        let list = self.running.clone();
        let task = async move {
            let result = work.await;
            // Off the list first: who comes later looks at what was made.
            list.lock().unwrap_or_else(PoisonError::into_inner).remove(&key);
            let _ = tell.send(Some(result));
        };
        tokio::spawn(task.in_current_span());
        outcome
    }
}

/// Does a piece of work to its end, whether or not its client waits for it.
pub async fn to_the_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, Status>> + Send + 'static,
) -> Result<T, Status> {
    match tokio::spawn(work.in_current_span()).await {
        Ok(result) => result,
        Err(e) => Err(fault::status(Code::Internal, format!("the call broke off: {e}"))),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn one_who_asks_again_gets_the_result_of_the_first_call_whose_client_is_gone() {
        let once = Arc::new(Once::<u32>::default());
        let started = Arc::new(AtomicUsize::new(0));
        let (go, wait) = oneshot::channel::<()>();
        let count = started.clone();
        let first = once.run("pod".into(), async move {
            count.fetch_add(1, Ordering::SeqCst);
            let _ = wait.await;
            Ok(7)
        });
        // The client gives up.
        assert!(tokio::time::timeout(Duration::from_millis(20), first).await.is_err());
        let count = started.clone();
        let again = once.clone();
        let second = tokio::spawn(async move {
            again
                .run("pod".into(), async move {
                    count.fetch_add(1, Ordering::SeqCst);
                    Ok(8)
                })
                .await
        });
        tokio::task::yield_now().await;
        go.send(()).unwrap();
        assert_eq!(second.await.unwrap().unwrap(), 7);
        assert_eq!(started.load(Ordering::SeqCst), 1);
        // What is over is not remembered.
        assert_eq!(once.run("pod".into(), async { Ok(9) }).await.unwrap(), 9);
        assert!(once.running.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn work_that_panicked_is_an_error_and_keeps_nobody_waiting() {
        let once = Once::<u32>::default();
        let broken = once.run("x".into(), async { panic!("on purpose") }).await;
        assert_eq!(broken.unwrap_err().code(), Code::Internal);
        assert_eq!(once.run("x".into(), async { Ok(1) }).await.unwrap(), 1);
        assert_eq!(to_the_end(async { Ok(1) }).await.unwrap(), 1);
    }
}

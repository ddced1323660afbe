//! Named tasks that run as long as the gateway.
//!
//! A task that ends on its own is a fault, whatever it returned. The first such [`Exit`] is kept with the task's name and
//! the cause, and it ends the process, so that the gateway never runs with a part missing. An orderly shutdown cancels one
//! token that all tasks watch, and waits for them until a common deadline. Tasks that have not ended by then are named.

use std::any::Any;
use std::collections::BTreeMap;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Why a task ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    /// It returned although it should run until the shutdown.
    Returned,
    Failed(String),
    Panicked(String),
}

/// A task that ended, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exit {
    pub(crate) name: Arc<str>,
    pub(crate) cause: Cause,
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.cause {
            Cause::Returned => write!(f, "{} ended unexpectedly", self.name),
            Cause::Failed(error) => write!(f, "{} failed: {error}", self.name),
            Cause::Panicked(message) => write!(f, "{} panicked: {message}", self.name),
        }
    }
}

impl std::error::Error for Exit {}

/// The result of a shutdown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Shutdown {
    /// The names of the tasks that still ran at the deadline.
    pub(crate) still_running: Vec<Arc<str>>,
    /// The tasks that ended with an error or a panic.
    pub(crate) failed: Vec<Exit>,
}

impl Shutdown {
    /// Whether all tasks ended in time and without an error.
    #[cfg(test)]
    pub(crate) fn is_clean(&self) -> bool {
        self.still_running.is_empty() && self.failed.is_empty()
    }
}

#[derive(Debug, Default)]
struct SupervisorState {
    next: u64,
    running: BTreeMap<u64, Arc<str>>,
    first: Option<Exit>,
    failed: Vec<Exit>,
}

/// Starts tasks and threads and records which of them run. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Supervisor {
    token: CancellationToken,
    state: Arc<watch::Sender<SupervisorState>>,
}

impl Default for Supervisor {
    fn default() -> Self {
        Supervisor { token: CancellationToken::new(), state: Arc::new(watch::Sender::default()) }
    }
}

impl Supervisor {
    /// The token that is cancelled when the gateway shuts down.
    pub(crate) fn token(&self) -> CancellationToken {
        self.token.clone()
    }

    /// Runs a task on the current runtime. The task must end when the token is cancelled, and not earlier.
    pub(crate) fn spawn<F, E>(&self, name: impl Into<Arc<str>>, future: F)
    where
        F: Future<Output = Result<(), E>> + Send + 'static,
        E: fmt::Display + Send + 'static,
    {
        self.run(name.into(), Box::pin(async move { future.await.map_err(|error| error.to_string()) }));
    }

    /// Like [`Supervisor::spawn`], for a task that cannot fail.
    pub(crate) fn spawn_endless<F>(&self, name: impl Into<Arc<str>>, future: F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let endless = async move {
            future.await;
            Ok(())
        };
        self.run(name.into(), Box::pin(endless));
    }

    /// Runs a task in a box, so that the runtime's code for a task is in the program once and not for each of some dozens of
    /// types, which every start would read.
    fn run(&self, name: Arc<str>, future: Pin<Box<dyn Future<Output = Result<(), String>> + Send>>) {
        let (supervisor, id) = (self.clone(), self.started(name));
        let task = tokio::spawn(future);
        // a task of its own sees how the other ends, panics included
        tokio::spawn(async move {
            let cause = match task.await {
                Ok(Ok(())) => Cause::Returned,
                Ok(Err(error)) => Cause::Failed(error),
                Err(error) => match error.try_into_panic() {
                    Ok(panic) => Cause::Panicked(panic_message(&*panic)),
                    // only the end of the runtime aborts a task
                    Err(_) => Cause::Returned,
                },
            };
            supervisor.ended(id, cause);
        });
    }

    /// Waits for the first task that ends before the shutdown. Safe to cancel.
    pub(crate) async fn first_exit(&self) -> Exit {
        let mut state = self.state.subscribe();
        loop {
            if let Ok(state) = state.wait_for(|state| state.first.is_some()).await
                && let Some(exit) = &state.first
            {
                return exit.clone();
            }
        }
    }

    /// Cancels the token and waits until all tasks have ended, but no longer than `deadline`.
    pub(crate) async fn shutdown(&self, deadline: Duration) -> Shutdown {
        self.token.cancel();
        let mut changes = self.state.subscribe();
        let all_ended = changes.wait_for(|state| state.running.is_empty());
        // the report names the tasks that are late
        let _ = tokio::time::timeout(deadline, all_ended).await;
        let state = self.state.borrow();
        Shutdown { still_running: state.running.values().cloned().collect(), failed: state.failed.clone() }
    }

    fn started(&self, name: Arc<str>) -> u64 {
        let mut id = 0;
        self.state.send_modify(|state| {
            id = state.next;
            state.next += 1;
            state.running.insert(id, name);
        });
        id
    }

    fn ended(&self, id: u64, cause: Cause) {
        let expected = self.token.is_cancelled();
        self.state.send_modify(|state| {
            let Some(name) = state.running.remove(&id) else { return };
            let exit = Exit { name, cause };
            if !expected {
                state.first.get_or_insert(exit);
            } else if exit.cause != Cause::Returned {
                state.failed.push(exit);
            }
        });
    }
}

/// What a panic said.
fn panic_message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "no message".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exit(name: &str, cause: Cause) -> Exit {
        Exit { name: name.into(), cause }
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_unexpected_exit_wins() {
        let supervisor = Supervisor::default();
        let token = supervisor.token();
        supervisor.spawn_endless("patient", async move { token.cancelled().await });
        supervisor.spawn("second", async {
            tokio::time::sleep(Duration::from_secs(2)).await;
            Ok::<(), String>(())
        });
        supervisor.spawn("first", async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            Err("no more sockets".to_owned())
        });
        let first = supervisor.first_exit().await;
        assert_eq!(first.to_string(), "first failed: no more sockets");
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(supervisor.first_exit().await, first);
        assert!(supervisor.shutdown(Duration::from_secs(1)).await.is_clean());
    }

    #[tokio::test]
    async fn panics_of_tasks_and_threads_are_exits() {
        let supervisor = Supervisor::default();
        supervisor.spawn("task", async {
            if true {
                panic!("at {}", 7);
            }
            Ok::<(), String>(())
        });
        assert_eq!(supervisor.first_exit().await, exit("task", Cause::Panicked("at 7".into())));

        let supervisor = Supervisor::default();
        supervisor.spawn_endless("gpio", async { panic!("out of pins") });
        let exit = supervisor.first_exit().await;
        assert_eq!(exit.to_string(), "gpio panicked: out of pins");
    }

    #[tokio::test]
    async fn returning_is_an_unexpected_exit_too() {
        let supervisor = Supervisor::default();
        supervisor.spawn_endless("router", async {});
        assert_eq!(supervisor.first_exit().await.to_string(), "router ended unexpectedly");
    }

    #[tokio::test(start_paused = true)]
    async fn an_orderly_shutdown_names_who_is_late_or_fails() {
        let supervisor = Supervisor::default();
        for (name, delay) in [("quick", 1), ("slow", 60)] {
            let token = supervisor.token();
            supervisor.spawn_endless(name, async move {
                token.cancelled().await;
                tokio::time::sleep(Duration::from_secs(delay)).await;
            });
        }
        let token = supervisor.token();
        supervisor.spawn("torn", async move {
            token.cancelled().await;
            Err("disk full")
        });
        let before = tokio::time::Instant::now();
        let shutdown = supervisor.shutdown(Duration::from_secs(4)).await;
        assert_eq!(before.elapsed(), Duration::from_secs(4));
        assert_eq!(shutdown.still_running, ["slow".into()]);
        assert_eq!(shutdown.failed, [exit("torn", Cause::Failed("disk full".into()))]);
        let nothing_unexpected = tokio::time::timeout(Duration::from_secs(1), supervisor.first_exit()).await;
        assert!(nothing_unexpected.is_err());
    }
}

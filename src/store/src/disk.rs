//! The thread that writes the engine and the snapshots, so that neither holds up transactions.
//!
//! While it works nothing else writes the engine: a snapshot sees exactly the state of the batch before it,
//! and newer changes wait in memory. The engine is open only while there is work and a little longer: sled
//! takes 20 MB and more for itself, and an idle node has no use for it.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;

use crate::engine::{Engine, write_overlay};
use crate::error::Error;
use crate::recover::{self, Paths, open_closed_engine, reopen_engine};
use crate::snapshot;
use crate::state::{Meta, Overlay, State, show_all};
use crate::stats::Counters;
use crate::types::{Config, Observer};
use crate::wal::Wal;

/// How long the engine stays open after its last use.
const LINGER: Duration = Duration::from_secs(3);

/// Write these changes to the engine, durably, and then perhaps a snapshot.
pub(crate) struct Flush {
    pub(crate) overlay: Arc<Overlay>,
    pub(crate) meta: Meta,
    pub(crate) snapshot: bool,
}

pub(crate) enum Job {
    Flush(Flush),
    /// Replace engine and log by the received snapshot with this index and term.
    Install(u64, u64),
}

/// What became of a job.
pub(crate) enum Done {
    Flushed {
        result: Result<(), Error>,
        /// If a snapshot was asked for: its size, and the index down to which the log must be kept.
        snapshot: Option<Result<(u64, u64), Error>>,
    },
    /// The state that took the place of the old one; the observer has seen it.
    Installed(Result<State, Error>),
}

pub(crate) struct Disk {
    jobs: Option<Sender<Job>>,
    thread: Option<JoinHandle<()>>,
}

impl Disk {
    /// `flushed` is what the engine holds; it is closed. `done` is called on the thread after each job.
    pub(crate) fn start(
        config: Config,
        paths: Paths,
        flushed: Meta,
        wal: Arc<Mutex<Wal>>,
        observer: Arc<dyn Observer>,
        counters: Arc<Counters>,
        done: impl Fn(Done) + Send + 'static,
    ) -> Result<Self, Error> {
        let (sender, jobs) = channel();
        let mut worker =
            Worker { config, paths, engine: None, failed: false, flushed, wal, observer, counters };
        let thread = std::thread::Builder::new()
            .name("kedge-store-disk".into())
            .spawn(move || worker.run(&jobs, &done))
            .map_err(Error::Thread)?;
        Ok(Self { jobs: Some(sender), thread: Some(thread) })
    }

    /// One at a time: only after the last one is done.
    pub(crate) fn submit(&self, job: Job) -> bool {
        self.jobs.as_ref().is_some_and(|jobs| jobs.send(job).is_ok())
    }

    /// Finish the job under way and end the thread.
    pub(crate) fn stop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Worker {
    config: Config,
    paths: Paths,
    /// `None` when it is not in use, and after a failure.
    engine: Option<Box<dyn Engine>>,
    failed: bool,
    flushed: Meta,
    wal: Arc<Mutex<Wal>>,
    observer: Arc<dyn Observer>,
    counters: Arc<Counters>,
}

impl Worker {
    fn run(&mut self, jobs: &Receiver<Job>, done: &impl Fn(Done)) {
        loop {
            let next = match self.engine {
                Some(_) => jobs.recv_timeout(LINGER),
                None => jobs.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            let job = match next {
                Ok(job) => job,
                Err(RecvTimeoutError::Timeout) => {
                    self.engine = None;
                    continue;
                }
                Err(RecvTimeoutError::Disconnected) => return,
            };
            match job {
                Job::Flush(job) => self.handle_flush(job, done),
                Job::Install(index, term) => {
                    let installed = catch_unwind(AssertUnwindSafe(|| self.install(index, term)));
                    done(Done::Installed(installed.unwrap_or_else(|_| Err(self.panicked()))));
                }
            }
        }
    }

    fn panicked(&self) -> Error {
        Error::Engine { path: self.paths.engine.clone(), what: "it panicked".into() }
    }

    fn handle_flush(&mut self, job: Flush, done: &impl Fn(Done)) {
        // sled may panic where it should return an error.
        let result = catch_unwind(AssertUnwindSafe(|| self.flush(&job)));
        let result = result.unwrap_or_else(|_| Err(self.panicked()));
        let snapshot = match (&result, &self.engine) {
            (Ok(()), Some(engine)) if job.snapshot => {
                Some(snapshot::write(&self.paths.snapshots, engine.as_ref(), &job.meta))
            }
            _ => None,
        };
        self.failed = result.is_err();
        if self.failed {
            self.engine = None;
        }
        if let Some(Ok((bytes, _))) = &snapshot {
            self.counters.snapshots.fetch_add(1, Relaxed);
            self.counters.bytes_written.fetch_add(*bytes, Relaxed);
        }
        drop(job);
        done(Done::Flushed { result, snapshot });
    }

    fn install(&mut self, index: u64, term: u64) -> Result<State, Error> {
        self.engine = None;
        self.failed = false;
        let (engine, state) = recover::install(&self.config, &self.paths, &mut self.wal.lock(), index, term)?;
        show_all(&state, engine.as_ref(), self.observer.as_ref())?;
        self.flushed = state.meta.clone();
        self.engine = Some(engine);
        Ok(state)
    }

    fn flush(&mut self, job: &Flush) -> Result<(), Error> {
        let engine = match &mut self.engine {
            Some(engine) => engine,
            none => {
                let healthy = if self.failed {
                    None
                } else {
                    open_closed_engine(&self.config, &self.paths, &self.flushed)
                };
                none.insert(match healthy {
                    Some(engine) => engine,
                    None => reopen_engine(&self.config, &self.paths, &self.flushed)?,
                })
            }
        };
        let bytes = write_overlay(engine.as_mut(), &job.overlay, &job.meta)?;
        self.counters.bytes_written.fetch_add(bytes, Relaxed);
        self.counters.engine_flushes.fetch_add(1, Relaxed);
        self.flushed = job.meta.clone();
        Ok(())
    }
}

//! The thread that writes the log when there are other members, so that heartbeats and elections never wait
//! for the disk. One append at a time: what comes meanwhile waits and becomes the next one.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use kedge_base::Chain;
use parking_lot::Mutex;

use crate::core::Append;
use crate::error::Error;
use crate::wal::Wal;

/// What became of an append.
pub(crate) struct Appended {
    pub(crate) number: u64,
    /// The bytes of its frame.
    pub(crate) result: Result<u64, Error>,
    pub(crate) took: Duration,
}

enum Work {
    Append(Append),
    /// Remove the segments up to this index.
    Cut(u64),
}

pub(crate) struct Flusher {
    wal: Arc<Mutex<Wal>>,
    work: Option<Sender<Work>>,
    thread: Option<JoinHandle<()>>,
    busy: bool,
}

impl Flusher {
    pub(crate) fn start(
        wal: Arc<Mutex<Wal>>,
        done: impl Fn(Appended) + Send + 'static,
    ) -> Result<Self, Error> {
        let (sender, work) = channel();
        let log = wal.clone();
        let thread = std::thread::Builder::new()
            .name("kedge-store-log".into())
            .spawn(move || run(&log, &work, &done))
            .map_err(Error::Thread)?;
        Ok(Self { wal, work: Some(sender), thread: Some(thread), busy: false })
    }

    pub(crate) fn is_busy(&self) -> bool {
        self.busy
    }

    /// Only when it is not busy.
    pub(crate) fn submit(&mut self, append: Append) {
        self.busy = true;
        if let Some(work) = &self.work {
            let _ = work.send(Work::Append(append));
        }
    }

    /// The append under way has been reported.
    pub(crate) fn done(&mut self) {
        self.busy = false;
    }

    /// Appends on the caller's own thread.
    pub(crate) fn append_here(&self, append: &Append) -> Appended {
        let started = Instant::now();
        let result = self.wal.lock().append(append.hard_state.as_ref(), &append.entries);
        Appended { number: append.number, result, took: started.elapsed() }
    }

    /// The log itself; locked while an append is written.
    pub(crate) fn wal(&self) -> &Mutex<Wal> {
        &self.wal
    }

    pub(crate) fn cut(&self, index: u64) {
        if let Some(work) = &self.work {
            let _ = work.send(Work::Cut(index));
        }
    }

    pub(crate) fn stop(&mut self) {
        self.work = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn run(wal: &Mutex<Wal>, work: &Receiver<Work>, done: &impl Fn(Appended)) {
    for work in work {
        match work {
            Work::Append(append) => {
                let started = Instant::now();
                let result = wal.lock().append(append.hard_state.as_ref(), &append.entries);
                done(Appended { number: append.number, result, took: started.elapsed() });
            }
            Work::Cut(index) => {
                if let Err(error) = wal.lock().cut(index) {
                    tracing::warn!(error = %Chain(&error), "old log segments cannot be removed");
                }
            }
        }
    }
}

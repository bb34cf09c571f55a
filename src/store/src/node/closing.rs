//! The end: hand the lead over, finish what was taken on, stop the other threads.

use std::sync::mpsc::Receiver;
use std::time::Instant;

use tokio::sync::oneshot;

use super::{Closing, HANDOVER, Msg, Node};
use crate::error::Error;

impl Node {
    pub(super) fn begin_close(&mut self, reply: oneshot::Sender<Result<(), Error>>) {
        if self.closing.is_some() {
            return;
        }
        let mut until = Instant::now();
        if self.failed.is_none() && self.transport.is_some() && self.core.transfer() {
            until += HANDOVER;
        }
        self.closing = Some(Closing { reply, until });
    }

    /// Whether nothing is left to wait for.
    pub(super) fn may_close(&self) -> bool {
        let Some(closing) = &self.closing else { return false };
        let handed_over = !self.core.is_leader() && !self.core.has_pending() && self.core.leader().is_some();
        self.failed.is_some() || Instant::now() >= closing.until || handed_over
    }

    /// Finish what was taken on, write the engine, stop the other threads.
    pub(super) fn close(mut self, messages: &Receiver<Msg>) {
        for message in messages.try_iter() {
            match message {
                Msg::Propose(_) | Msg::Disk(_) | Msg::Appended(_) => self.handle(message),
                _ => {}
            }
        }
        self.await_threads(messages);
        if self.core.is_alone() {
            while !self.queue.is_empty() && self.failed.is_none() {
                // Lazy ones do not wait any longer.
                self.queue.iter_mut().for_each(|proposal| proposal.lazy = false);
                self.urgent = self.queue.len();
                if let Err(error) = self.propose().and_then(|()| self.drive()) {
                    self.fail(&error);
                }
            }
        }
        self.await_threads(messages);
        self.refuse_all();
        if self.failed.is_none() && !self.core.state.overlay().is_empty() {
            self.flush_if_due(true);
            self.await_threads(messages);
        }
        self.stop();
        if let Some(closing) = self.closing.take() {
            // The folder is free when the caller hears of it.
            drop(self);
            let _ = closing.reply.send(Ok(()));
        }
    }

    pub(super) fn abandon(&mut self) {
        self.stop();
    }

    fn stop(&mut self) {
        if let Some(transport) = &mut self.transport {
            transport.stop();
        }
        self.flusher.stop();
        self.disk.stop();
    }

    fn await_threads(&mut self, messages: &Receiver<Msg>) {
        while self.flushing.is_some() || self.installing || self.flusher.is_busy() {
            match messages.recv() {
                Ok(message @ (Msg::Disk(_) | Msg::Appended(_))) => self.handle(message),
                Ok(_) => {}
                Err(_) => return,
            }
        }
    }
}

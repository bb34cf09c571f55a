//! A change of the whole cluster: asked of the running control-plane node, which does it with all the others.
//! The command waits and shows how far it is.

use std::time::{Duration, Instant};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::config::Config;
use crate::control::{self, CallError};
use crate::failure::Failure;
use crate::output::Step;

const SOON: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_millis(300);

/// How far the change behind `path` is, if the node can say.
pub(super) fn ask<S: DeserializeOwned>(config: &Config, path: &str) -> Result<S, CallError> {
    control::call(&config.status_socket(), "GET", path, &(), SOON)
}

/// What is wished for, and the words about it.
pub(super) struct Change<'a, W> {
    /// Of the node's socket: a wish is posted there, and its state read.
    pub(super) path: &'static str,
    pub(super) wish: &'a W,
    /// While it goes on: "encrypting".
    pub(super) doing: &'a str,
    /// When it is refused: "replace the authority".
    pub(super) action: &'static str,
    /// The command that shows how far it is.
    pub(super) shown_by: &'static str,
    /// How long it is waited for, in seconds.
    pub(super) timeout: u64,
}

impl<W: Serialize> Change<'_, W> {
    /// Asks for it and waits until `is_done`; `progress` says what is missing until then.
    ///
    /// # Errors
    /// It is refused, or goes on when the time is over.
    pub(super) fn run<S: DeserializeOwned>(
        &self,
        config: &Config,
        is_done: impl Fn(&S) -> bool,
        progress: impl Fn(&S) -> String,
    ) -> Result<S, Failure> {
        let until = Instant::now() + Duration::from_secs(self.timeout);
        let mut step = Step::begin(self.doing);
        let asked = control::call(&config.status_socket(), "POST", self.path, self.wish, SOON);
        let mut state: S = match asked {
            Ok(state) => state,
            Err(error) => {
                step.abandon();
                return Err(Failure::Failed(anyhow::Error::from(error).context(self.action)));
            }
        };
        while !is_done(&state) {
            if Instant::now() >= until {
                step.abandon();
                return Err(Failure::Failed(anyhow::anyhow!(
                    "it is not done after {} s ({}); it goes on by itself: {} shows how far it is",
                    self.timeout,
                    progress(&state),
                    self.shown_by
                )));
            }
            step.update(&progress(&state));
            std::thread::sleep(LOOK_AGAIN);
            // The node may be starting again meanwhile; it goes on then.
            if let Ok(now) = ask(config, self.path) {
                state = now;
            }
        }
        step.abandon();
        Ok(state)
    }
}

//! The only place that writes to the terminal; a closed pipe (`kedge status | head -1`) is no error.

use std::io::Write as _;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// One line on standard output.
pub(crate) fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{text}");
}

/// Text on standard output as it is.
pub(crate) fn write(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = out.write_all(text.as_bytes());
    let _ = out.flush();
}

/// One line on standard error.
pub(crate) fn complain(text: &str) {
    let mut err = std::io::stderr().lock();
    let _ = writeln!(err, "{text}");
}

/// A step that takes a while: a spinner on a terminal, plain lines elsewhere.
pub(crate) struct Step {
    bar: ProgressBar,
    terminal: bool,
    last: String,
}

impl Step {
    /// Begin a step.
    pub(crate) fn begin(message: &str) -> Self {
        let bar = ProgressBar::new_spinner();
        let terminal = !bar.is_hidden();
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} ({elapsed})") {
            bar.set_style(style);
        }
        let mut step = Self { bar, terminal, last: String::new() };
        if terminal {
            step.bar.enable_steady_tick(Duration::from_millis(100));
        }
        step.update(message);
        step
    }

    /// Say what is going on now; the same text twice is shown once.
    pub(crate) fn update(&mut self, message: &str) {
        if self.last == message {
            return;
        }
        message.clone_into(&mut self.last);
        if self.terminal {
            self.bar.set_message(message.to_owned());
        } else {
            complain(message);
        }
    }

    /// End the step with a line that stays.
    pub(crate) fn done(self, message: &str) {
        self.bar.finish_and_clear();
        say(message);
    }

    /// End the step and leave nothing: an error follows.
    pub(crate) fn abandon(self) {
        self.bar.finish_and_clear();
    }
}

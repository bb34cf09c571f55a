//! The only place that writes to the terminal; a closed pipe (`kedge status | head -1`) is no error.
//!
//! Data goes to standard output, and only data survives `--quiet`; errors always show. Progress goes to
//! standard error: a spinner on a terminal, plain lines elsewhere. Colour follows NO_COLOR and CLICOLOR.

use std::io::{IsTerminal as _, Write as _};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// A process has one terminal, and `--quiet` is a property of it, not of each call's arguments.
static QUIET: AtomicBool = AtomicBool::new(false);

/// Nothing but data and errors from now on.
pub(crate) fn be_quiet() {
    QUIET.store(true, Ordering::Relaxed);
}

fn quiet() -> bool {
    QUIET.load(Ordering::Relaxed)
}

/// One line on standard output.
pub(crate) fn say(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{text}");
}

/// One line on standard output that only confirms what was done.
pub(crate) fn confirm(text: &str) {
    if !quiet() {
        say(text);
    }
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

/// One line on standard error that is no error.
pub(crate) fn note(text: &str) {
    if !quiet() {
        complain(text);
    }
}

/// A meaning that may have a colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hue {
    Good,
    Doubtful,
    Bad,
}

/// `text` in colour when standard output shows colours.
pub(crate) fn paint(hue: Hue, text: &str) -> String {
    let variable = |name: &str| std::env::var(name).ok();
    if !colours(&variable, std::io::stdout().is_terminal()) {
        return text.to_owned();
    }
    let code = match hue {
        Hue::Good => 32,
        Hue::Doubtful => 33,
        Hue::Bad => 31,
    };
    format!("\x1b[{code}m{text}\x1b[0m")
}

/// <https://no-color.org> first, then <https://bixense.com/clicolors>: forced, or a terminal that can.
fn colours(variable: &dyn Fn(&str) -> Option<String>, terminal: bool) -> bool {
    if variable("NO_COLOR").is_some_and(|value| !value.is_empty()) {
        return false;
    }
    if variable("CLICOLOR_FORCE").is_some_and(|value| !value.is_empty() && value != "0") {
        return true;
    }
    terminal && variable("CLICOLOR").as_deref() != Some("0") && variable("TERM").as_deref() != Some("dumb")
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
        if quiet() {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
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
            note(message);
        }
    }

    /// The same for what is over at once as a rule: seen on a terminal only.
    pub(crate) fn glance(&mut self, message: &str) {
        if self.terminal {
            self.update(message);
        }
    }

    /// End the step with a line that stays.
    pub(crate) fn done(self, message: &str) {
        self.bar.finish_and_clear();
        confirm(message);
    }

    /// End the step and leave nothing: an error follows.
    pub(crate) fn abandon(self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colour_by_the_rules() {
        let cases: [(&[(&str, &str)], bool, bool); 8] = [
            (&[], true, true),
            (&[], false, false),
            (&[("NO_COLOR", "1")], true, false),
            (&[("NO_COLOR", "")], true, true),
            (&[("NO_COLOR", "1"), ("CLICOLOR_FORCE", "1")], true, false),
            (&[("CLICOLOR_FORCE", "1")], false, true),
            (&[("CLICOLOR", "0")], true, false),
            (&[("TERM", "dumb")], true, false),
        ];
        for (given, terminal, expected) in cases {
            let variable =
                |name: &str| given.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned());
            assert_eq!(colours(&variable, terminal), expected, "{given:?} {terminal}");
        }
    }
}

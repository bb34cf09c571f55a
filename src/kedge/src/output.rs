//! The only place that writes to the terminal; a closed pipe (`kedge status | head -1`) is no error.
//!
//! Data goes to standard output, and only data survives `--quiet`; errors always show. Progress is a spinner on
//! standard error when that is a terminal; elsewhere there is none. Colour follows NO_COLOR and CLICOLOR.
//!
//! A command that does something, called with `--output json` or yaml, says on standard output only one
//! object at its end: `result` and what belongs to it ([`report`]), or `error` and `remedy` ([`fail`]). What it
//! would say to people goes to standard error then.

use std::io::{IsTerminal as _, Write as _};
use std::sync::OnceLock;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Map, Value};

use crate::cli::Format;

/// For whom a command speaks: what its command line says.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Voice {
    /// Nothing but data and errors.
    pub(crate) quiet: bool,
    /// The result is an object in this format; text for people is none of its data.
    pub(crate) report: Option<Format>,
    /// Errors are objects in this format, also of a command that only shows something.
    pub(crate) failures: Option<Format>,
}

/// A process has one terminal and one command line; who parses that says it, once.
static VOICE: OnceLock<Voice> = OnceLock::new();

pub(crate) fn speak_as(voice: Voice) {
    let _ = VOICE.set(voice);
}

fn voice() -> Voice {
    VOICE.get().copied().unwrap_or_default()
}

/// What was done: `{"result": result, ...fields}`, once and last. For people other lines say it.
pub(crate) fn report(result: &str, fields: &impl serde::Serialize) {
    let Some(format) = voice().report else { return };
    let mut object = Map::from_iter([("result".to_owned(), Value::from(result))]);
    if let Ok(Value::Object(fields)) = serde_json::to_value(fields) {
        object.extend(fields);
    }
    data(&formatted(format, &Value::Object(object)));
}

/// Why it was not: a line for people, or `{"error": ..., "remedy": ...}`.
pub(crate) fn fail(text: &str, remedy: Option<&str>) {
    match voice().failures {
        None => complain(&format!("error: {text}")),
        Some(format) => data(&formatted(format, &failure(text, remedy))),
    }
}

/// People read the remedy behind the error; programs get each by its own name.
fn failure(text: &str, remedy: Option<&str>) -> Value {
    let error = match remedy {
        Some(remedy) => text.replacen(&format!("; {remedy}"), "", 1),
        None => text.to_owned(),
    };
    serde_json::json!({ "error": error, "remedy": remedy })
}

fn formatted(format: Format, value: &Value) -> String {
    let text = match format {
        Format::Yaml => serde_saphyr::to_string(value).ok(),
        Format::Json | Format::Short => serde_json::to_string_pretty(value).ok(),
    };
    text.unwrap_or_else(|| value.to_string()).trim_end().to_owned()
}

/// One line on standard output, whoever it is for.
fn data(text: &str) {
    let mut out = std::io::stdout().lock();
    let _ = writeln!(out, "{text}");
}

/// One line on standard output.
pub(crate) fn say(text: &str) {
    if voice().report.is_some() { note(text) } else { data(text) }
}

/// One line on standard output that only confirms what was done.
pub(crate) fn confirm(text: &str) {
    if !voice().quiet {
        say(text);
    }
}

/// Text on standard output as it is.
pub(crate) fn write(text: &str) {
    if voice().report.is_some() {
        note(text.trim_end());
        return;
    }
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
    if !voice().quiet {
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

/// A step that takes a while: a spinner on a terminal, nothing elsewhere.
pub(crate) struct Step {
    bar: ProgressBar,
    last: String,
}

impl Step {
    /// Begin a step.
    pub(crate) fn begin(message: &str) -> Self {
        let bar = ProgressBar::new_spinner();
        if voice().quiet {
            bar.set_draw_target(ProgressDrawTarget::hidden());
        }
        if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} ({elapsed})") {
            bar.set_style(style);
        }
        let mut step = Self { bar, last: String::new() };
        step.update(message);
        if !step.bar.is_hidden() {
            step.bar.enable_steady_tick(Duration::from_millis(100));
        }
        step
    }

    /// Say what is going on now; the same text twice is shown once.
    pub(crate) fn update(&mut self, message: &str) {
        if self.last == message {
            return;
        }
        message.clone_into(&mut self.last);
        self.bar.set_message(message.to_owned());
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
    fn an_error_is_told_apart_from_its_remedy() {
        for (text, remedy, error) in [
            ("no such addon; there are: none", None, "no such addon; there are: none"),
            ("port 6443 is in use; stop that program", Some("stop that program"), "port 6443 is in use"),
            ("enable x: a; b; run y: not found", Some("b; run y"), "enable x: a: not found"),
            ("not ready:\n  remedy: do this", Some("do this"), "not ready:\n  remedy: do this"),
        ] {
            assert_eq!(failure(text, remedy), serde_json::json!({ "error": error, "remedy": remedy }));
        }
    }

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

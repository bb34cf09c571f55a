//! What is wrong with the settings, and what to write instead.

use std::fmt;

/// One thing that is wrong with the settings.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Fault {
    /// With the place of the setting.
    pub(super) what: String,
    /// What to write instead, where one thing can be said.
    pub(super) remedy: Option<String>,
}

impl Fault {
    pub(super) fn new(what: impl fmt::Display, remedy: impl fmt::Display) -> Self {
        Self { what: what.to_string(), remedy: Some(remedy.to_string()) }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        self.remedy.iter().try_for_each(|remedy| write!(f, "; {remedy}"))
    }
}

/// Everything that is wrong with the settings.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Faults(pub(super) Vec<Fault>);

impl Faults {
    /// One line for each of which is known what to write instead.
    pub(crate) fn remedy(&self) -> Option<String> {
        let remedies: Vec<&str> = self.0.iter().filter_map(|fault| fault.remedy.as_deref()).collect();
        (!remedies.is_empty()).then(|| remedies.join("\n"))
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.as_slice() {
            [only] => only.fmt(f),
            all => {
                write!(f, "{} settings are wrong:", all.len())?;
                all.iter().try_for_each(|fault| write!(f, "\n  {fault}"))
            }
        }
    }
}

impl std::error::Error for Faults {}

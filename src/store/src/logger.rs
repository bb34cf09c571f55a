//! Forwards what raft logs through slog to tracing.

use std::fmt::{self, Write};

use slog::{Drain, KV, Level, OwnedKVList, Record, Serializer};

struct Forward;

struct Fields(String);

impl Serializer for Fields {
    fn emit_arguments(&mut self, key: slog::Key, value: &fmt::Arguments<'_>) -> slog::Result {
        write!(self.0, " {key}={value}").map_err(slog::Error::from)
    }
}

impl Drain for Forward {
    type Ok = ();
    type Err = slog::Never;

    fn log(&self, record: &Record<'_>, _context: &OwnedKVList) -> Result<(), slog::Never> {
        // Raft's "info" is about each step of an election: detail for us.
        macro_rules! forward {
            ($level:ident) => {
                if tracing::enabled!(target: "kedge_store::raft", tracing::Level::$level) {
                    let mut fields = Fields(String::new());
                    let _ = record.kv().serialize(record, &mut fields);
                    tracing::event!(target: "kedge_store::raft", tracing::Level::$level, "{}{}", record.msg(), fields.0);
                }
            };
        }
        match record.level() {
            Level::Critical | Level::Error => forward!(ERROR),
            Level::Warning => forward!(WARN),
            Level::Info | Level::Debug => forward!(DEBUG),
            Level::Trace => forward!(TRACE),
        }
        Ok(())
    }
}

/// The logger for `RawNode`.
pub(crate) fn logger() -> slog::Logger {
    slog::Logger::root(Forward, slog::o!())
}

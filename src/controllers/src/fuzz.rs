//! What fuzz/ calls: texts and bytes that controllers take out of objects.

pub use crate::certificates::fuzz::certificate_request;
pub use crate::cron_job::fuzz::schedule;
pub use crate::job::fuzz::indexes;

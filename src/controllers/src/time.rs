//! Points in time as objects carry them.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// Now, in whole seconds: that is what `metav1.Time` keeps on the wire.
pub(crate) fn now() -> Time {
    let now = Timestamp::now();
    Time(Timestamp::from_second(now.as_second()).unwrap_or(now))
}

/// How long ago `then` was; zero when it lies ahead.
pub(crate) fn elapsed(then: Timestamp, now: Timestamp) -> Duration {
    Duration::try_from(now.duration_since(then)).unwrap_or_default()
}

/// How long until `then`; zero when it has passed.
pub(crate) fn until(then: Timestamp, now: Timestamp) -> Duration {
    elapsed(now, then)
}

/// `seconds` after `then`, held within the calendar.
pub(crate) fn plus(then: Timestamp, seconds: i64) -> Timestamp {
    then.checked_add(SignedDuration::from_secs(seconds)).unwrap_or(if seconds < 0 {
        Timestamp::MIN
    } else {
        Timestamp::MAX
    })
}

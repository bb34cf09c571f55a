//! How long a Job waits before it replaces failed pods (upstream controller/job/backoff_utils.go).

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use crate::{pods, time};

const FIRST: Duration = Duration::from_secs(10);
const LONGEST: Duration = Duration::from_secs(600);

/// Failures since the last success.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) failures: u32,
    pub(super) last: Option<Timestamp>,
}

/// When the pod ended, as well as one can tell.
pub(super) fn finished_at(pod: &Pod, now: Timestamp) -> Timestamp {
    let status = pod.status.as_ref();
    let containers = status.and_then(|status| status.container_statuses.as_deref()).unwrap_or_default();
    let ended = containers
        .iter()
        .filter_map(|container| Some(container.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref()?.0))
        .max();
    let unready = || pods::condition(pod, "Ready")?.last_transition_time.as_ref().map(|time| time.0);
    let deleted = || pod.metadata.deletion_timestamp.as_ref().map(|time| time.0);
    ended.or_else(unready).or_else(deleted).unwrap_or(now)
}

impl Record {
    /// With the pods that have ended since.
    pub(super) fn with(self, succeeded: &[&Pod], failed: &[&Pod], now: Timestamp) -> Self {
        let success = succeeded.iter().map(|pod| finished_at(pod, now)).max();
        let mut record = if success.is_some() { Self::default() } else { self };
        for at in failed.iter().map(|pod| finished_at(pod, now)) {
            if success.is_none_or(|success| at > success) {
                record.failures += 1;
                record.last = record.last.max(Some(at));
            }
        }
        record
    }

    pub(super) fn time_left(self, now: Timestamp) -> Duration {
        let Some(last) = self.last.filter(|_| self.failures > 0) else { return Duration::ZERO };
        wait(self.failures).saturating_sub(time::elapsed(last, now))
    }
}

fn wait(failures: u32) -> Duration {
    FIRST.saturating_mul(1 << (failures.max(1) - 1).min(10)).min(LONGEST)
}

/// The wait of one index after its pod's `failures`th failure at `at`.
pub(super) fn index_time_left(failures: u32, at: Timestamp, now: Timestamp) -> Duration {
    wait(failures).saturating_sub(time::elapsed(at, now))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pods::tests::at;
    use serde_json::json;

    fn ended(second: i64) -> Pod {
        serde_json::from_value(json!({ "status": { "containerStatuses": [{ "name": "c", "image": "", "imageID": "",
            "ready": false, "restartCount": 0, "state": { "terminated": { "exitCode": 1, "finishedAt": at(second).to_string() } } }] } }))
        .expect("a pod")
    }

    #[test]
    fn waits_double_and_a_success_ends_them() {
        let now = at(100);
        let (one, two, late) = (ended(90), ended(95), ended(99));
        for (before, succeeded, failed, failures, left) in [
            (Record::default(), vec![], vec![], 0, 0),
            (Record::default(), vec![], vec![&one], 1, 0),
            (Record::default(), vec![], vec![&two, &one], 2, 15),
            (Record { failures: 2, last: Some(at(50)) }, vec![], vec![&two], 3, 35),
            (Record { failures: 9, last: Some(at(50)) }, vec![], vec![&two], 10, 595),
            (Record { failures: 2, last: Some(at(50)) }, vec![&two], vec![&one], 0, 0),
            (Record { failures: 2, last: Some(at(50)) }, vec![&two], vec![&one, &late], 1, 9),
        ] {
            let record = before.with(&succeeded, &failed, now);
            assert_eq!((record.failures, record.time_left(now).as_secs()), (failures, left));
        }
    }
}

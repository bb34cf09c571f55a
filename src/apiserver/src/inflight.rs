//! Bounds how many requests are worked on at once (apiserver `filters/maxinflight.go`): reads and
//! writes apart, long-running requests and the system's own people not counted. What is too much is
//! told to come back; nothing queues.

use kedge_api::status::Status;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::authn::{MASTERS, User};
use crate::request::RequestInfo;

/// Upstream's `--max-requests-inflight` and `--max-mutating-requests-inflight`.
const READS: usize = 400;
const WRITES: usize = 200;

pub(crate) struct Limits {
    reads: Semaphore,
    writes: Semaphore,
}

impl Default for Limits {
    fn default() -> Self {
        Self { reads: Semaphore::new(READS), writes: Semaphore::new(WRITES) }
    }
}

impl Limits {
    /// Room for one request, given back when the permit is dropped; `None` for one that is not counted.
    pub(crate) fn enter(
        &self,
        user: &User,
        info: &RequestInfo,
    ) -> Result<Option<SemaphorePermit<'_>>, Status> {
        // Kubelets are as many as there are nodes, and what they say keeps the cluster alive.
        if info.is_long_running() || user.is_in(MASTERS) || user.node().is_some() {
            return Ok(None);
        }
        let room = match info.verb {
            "get" | "list" | "head" => &self.reads,
            _ => &self.writes,
        };
        room.try_acquire()
            .map(Some)
            .map_err(|_| Status::too_many_requests("Too many requests, please try again later.", 1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(verb: &'static str, subresource: &str) -> RequestInfo {
        RequestInfo { verb, subresource: subresource.to_owned(), ..RequestInfo::default() }
    }

    #[test]
    fn only_ordinary_requests_are_counted() {
        let limits = Limits { reads: Semaphore::new(1), writes: Semaphore::new(0) };
        let ann = User::new("ann", []);
        let enter = |user: &User, verb, subresource: &str| {
            limits.enter(user, &info(verb, subresource)).map(|permit| permit.is_some())
        };
        assert_eq!(enter(&ann, "get", ""), Ok(true));
        let held = limits.enter(&ann, &info("list", "")).expect("room");
        let refused = enter(&ann, "get", "").expect_err("full");
        assert_eq!(
            (refused.code, refused.details.map(|details| details.retry_after_seconds)),
            (429, Some(1))
        );
        assert_eq!(enter(&ann, "watch", ""), Ok(false));
        assert_eq!(enter(&ann, "create", "exec"), Ok(false));
        assert_eq!(enter(&ann, "create", "").expect_err("full").code, 429);
        assert_eq!(enter(&User::component("scheduler"), "create", ""), Ok(false));
        assert_eq!(enter(&User::new("system:node:a", ["system:nodes".to_owned()]), "update", ""), Ok(false));
        drop(held);
        assert_eq!(enter(&ann, "get", ""), Ok(true));
    }
}

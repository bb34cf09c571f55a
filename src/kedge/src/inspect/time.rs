//! This machine's clock: certificates, tokens and leases depend on it. Whether the nodes agree is told by
//! `cluster::nodes`.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::{Context, Found, ok, warn};
use crate::process;

/// No build of Kedge is older (2026-01-01): a clock before it is wrong.
const OLDEST: Duration = Duration::from_secs(1_767_225_600);
const SERVICES: [&str; 5] = ["systemd-timesyncd", "chronyd", "ntpd", "openntpd", "ntpd-rs"];

pub(super) fn check(context: &Context<'_>) -> Vec<Found> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let floor = fs::read_to_string(context.config.pki_dir().join("time-floor"))
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .map_or(Duration::ZERO, Duration::from_secs);
    vec![judge(now, floor, kept())]
}

/// Does a program set the clock by the network?
fn kept() -> bool {
    Path::new("/run/systemd/timesync/synchronized").exists()
        || process::table().values().any(|entry| {
            let program = entry.command.split(' ').next().unwrap_or_default();
            program.rsplit('/').next().is_some_and(|name| SERVICES.contains(&name))
        })
}

fn judge(now: Duration, floor: Duration, kept: bool) -> Found {
    let shown = |time: Duration| {
        let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
        jiff::Timestamp::from_second(seconds).unwrap_or_default().strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
    };
    let remedy = "set the clock (timedatectl set-ntp true, or apt-get install -y systemd-timesyncd); a board \
                  without a battery needs this at every boot";
    if now < floor.max(OLDEST) {
        let text = format!(
            "the clock says {}, which is before {}, the last time that was seen; kedge goes on from that time",
            shown(now),
            shown(floor.max(OLDEST))
        );
        return warn(text, remedy);
    }
    let text = format!("the clock says {}", shown(now));
    if kept { ok(text) } else { warn(format!("{text}, and no time service keeps it right"), remedy) }
}

#[cfg(test)]
mod tests {
    use super::super::Verdict;
    use super::*;

    #[test]
    fn a_clock_behind_the_floor_is_wrong() {
        let later = OLDEST + Duration::from_secs(86_400);
        for (now, floor, kept, expected, part) in [
            (later, OLDEST, true, Verdict::Ok, "2026-01-02"),
            (later, OLDEST, false, Verdict::Warn, "no time service"),
            (OLDEST, later, true, Verdict::Warn, "last time that was seen"),
            (Duration::ZERO, Duration::ZERO, true, Verdict::Warn, "1970-01-01"),
        ] {
            let found = judge(now, floor, kept);
            assert_eq!(found.0, expected, "{found:?}");
            assert!(found.1.contains(part), "{part:?} is not in {found:?}");
        }
    }
}

//! A group of three whose leader is killed again and again, while clients write at all three: how long until
//! the next write is acknowledged. The clients' history is proved linearizable at the end.

use std::fmt;
use std::time::Duration;

use kedge_tests::step;
use kedge_tests::trio::Trio;

use crate::table::{Table, percentile};

const KILLS: usize = 20;

/// Of several kills, in ascending order.
pub(crate) struct Failovers(pub(crate) Vec<Duration>);

impl fmt::Display for Failovers {
    fn fmt(&self, text: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [middle, worst] = [0.5, 1.0].map(|part| percentile(&self.0, part).as_secs_f64());
        write!(text, "{middle:.2} s; {worst:.2} s (median and worst of {})", self.0.len())
    }
}

pub(crate) fn measure(table: &mut Table) -> Failovers {
    let mut trio = Trio::start();
    step("the leader killed");
    let load = trio.load("killed");
    let took = trio.leader_killed(&load, KILLS);
    load.finish();
    let what = "three nodes, leader killed until the next acknowledged write, median of 20";
    table.seconds(what, percentile(&took, 0.5), 0.7);
    Failovers(took)
}

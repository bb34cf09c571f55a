//! Messages about flows, for fuzz/.

use super::conntrack;
use crate::netlink::Message;

pub(crate) fn message(message: &Message<'_>) {
    let _ = conntrack::Flow::parse(message);
    let _ = conntrack::deletion(message);
}

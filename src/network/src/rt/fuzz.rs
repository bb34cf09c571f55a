//! Messages about interfaces, addresses, routes and neighbours, for fuzz/.

use super::{links, neighbours, routes, watch};
use crate::netlink::Message;

pub(crate) fn message(message: &Message<'_>) {
    let _ = watch::event(message);
    let _ = links::link(message);
    let _ = links::address(message);
    let _ = links::default_route(message);
    let _ = neighbours::read_neighbour(message);
    let _ = neighbours::read_fdb(message);
    let _ = routes::read_address(message);
    let _ = routes::read_route(message);
    let _ = routes::read_way(message);
}

//! Which address a node announces when the user names none.

use std::net::IpAddr;
use std::time::Duration;

use kedge_base::Order as _;

use crate::Error;
use crate::rt::{Address, DefaultRoute, Event, Link, Rt, RtWatcher};

/// An address that comes back within this time was never away: DHCP clients take it off and put it on again.
const SETTLE: Duration = Duration::from_secs(2);

/// The address of an IP family: the one of the default route's interface (the lowest metric first). Without a
/// default route, as on an isolated network, the first global address of an interface that is up.
///
/// # Errors
/// [`Error::NoAddress`] with the remedy when there is none; a netlink failure.
pub fn default_address_of(is_ipv4: bool) -> Result<IpAddr, Error> {
    let read = || -> std::io::Result<_> {
        let links = Rt::open()?;
        Ok((links.links()?, links.addresses()?, links.default_routes()?))
    };
    let (links, mut addresses, mut routes) =
        read().map_err(|source| Error::netlink("read network interfaces", source))?;
    addresses.retain(|address| address.address.is_ipv4() == is_ipv4);
    routes.retain(|route| route.is_ipv4 == is_ipv4);
    choose(&links, &addresses, &routes).ok_or(Error::NoAddress)
}

/// Waits until this machine no longer has the address `own` and has another one of its family instead, and
/// gives that. A further address, a VPN or a cable that was pulled is no reason: the node stays what it is.
///
/// # Errors
/// When the kernel's notifications cannot be had.
pub async fn until_moved(own: IpAddr) -> Result<IpAddr, Error> {
    let failed = |source| Error::netlink("watch the addresses of this machine", source);
    let watcher = RtWatcher::open().map_err(failed)?;
    let moved = || -> std::io::Result<Option<IpAddr>> {
        let has = Rt::open()?.addresses()?.iter().any(|address| address.address == own);
        Ok(if has { None } else { default_address_of(own.is_ipv4()).ok() })
    };
    loop {
        if moved().map_err(failed)?.is_some() {
            tokio::time::sleep(SETTLE).await;
            if let Some(address) = moved().map_err(failed)? {
                return Ok(address);
            }
        }
        let concerns = |event: &Event| matches!(event, Event::Address(_) | Event::Route(_) | Event::Lost);
        watcher.until(concerns).await.map_err(failed)?;
    }
}

fn choose(links: &[Link], addresses: &[Address], routes: &[DefaultRoute]) -> Option<IpAddr> {
    let mut routes: Vec<&DefaultRoute> = routes.iter().collect();
    routes.order_by_key(|route| (!route.is_ipv4, route.metric));
    for route in routes {
        let of_route = addresses
            .iter()
            .find(|address| address.link == route.link && address.address.is_ipv4() == route.is_ipv4)
            .map(|address| address.address);
        let address = route.source.or(of_route);
        if address.is_some() {
            return address;
        }
    }
    // A bridge may be a container network's: it comes last, though a LAN may hang on it.
    let rank = |address: &Address| {
        let link = links.iter().find(|link| link.index == address.link)?;
        let is_usable = link.is_up && !link.is_loopback && link.kind != "vxlan";
        is_usable.then_some((link.kind == "bridge", !address.address.is_ipv4(), link.index))
    };
    addresses
        .iter()
        .filter_map(|address| Some((rank(address)?, address.address)))
        .min()
        .map(|(_, address)| address)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(index: u32, kind: &str) -> Link {
        Link { index, name: format!("if{index}"), is_up: true, kind: kind.into(), ..Link::default() }
    }

    fn address(link: u32, text: &str) -> Address {
        Address { link, address: text.parse().unwrap() }
    }

    fn route(link: u32, is_ipv4: bool, metric: u32) -> DefaultRoute {
        DefaultRoute { link, is_ipv4, metric, source: None }
    }

    #[test]
    fn the_address_is_the_one_others_reach() {
        let links = [
            Link { is_loopback: true, ..link(1, "") },
            link(2, ""),
            link(3, "bridge"),
            link(4, "veth"),
            Link { is_up: false, ..link(5, "") },
        ];
        let all = [
            address(3, "10.244.0.1"),
            address(2, "2001:db8::2"),
            address(2, "192.0.2.2"),
            address(4, "192.0.2.4"),
            address(5, "192.0.2.5"),
        ];
        let source = DefaultRoute { source: Some("192.0.2.9".parse().unwrap()), ..route(2, true, 0) };
        let cases: [(&str, &[Address], Vec<DefaultRoute>, Option<&str>); 7] = [
            ("default route", &all, vec![route(4, true, 0)], Some("192.0.2.4")),
            ("lowest metric", &all, vec![route(4, true, 200), route(2, true, 100)], Some("192.0.2.2")),
            ("IPv4 first", &all, vec![route(2, false, 0), route(4, true, 100)], Some("192.0.2.4")),
            ("prescribed source", &all, vec![source], Some("192.0.2.9")),
            ("no default route", &all, vec![], Some("192.0.2.2")),
            ("only a bridge", &all[..1], vec![], Some("10.244.0.1")),
            ("only one that is down", &all[4..], vec![], None),
        ];
        for (name, addresses, routes, expected) in cases {
            let found = choose(&links, addresses, &routes).map(|address| address.to_string());
            assert_eq!(found.as_deref(), expected, "{name}");
        }
    }
}

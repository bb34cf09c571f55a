use super::super::lease::Vtep;
use super::*;

const DEVICE: u32 = 9;
const WIRE: u32 = 2;

fn own() -> Own {
    Own {
        name: "node1".into(),
        networks: vec!["10.244.0.0/16".parse().unwrap(), "fd00::/48".parse().unwrap()],
        subnets: vec!["10.244.1.0/24".parse().unwrap()],
        device_v4: Some(DEVICE),
        device_v6: None,
        direct_routing: false,
    }
}

fn lease(backend: &str, subnet: &str, public: &str, mac: u8) -> Lease {
    let vtep = (backend == VXLAN).then_some(Vtep { vni: 1, mac: Mac([2, 0, 0, 0, 0, mac]) });
    let share = Share { subnet: subnet.parse().unwrap(), public: public.parse().unwrap(), vtep };
    Lease { backend: backend.into(), shares: vec![share] }
}

fn leases(list: &[(&str, Lease)]) -> BTreeMap<String, Lease> {
    list.iter().map(|(name, lease)| ((*name).to_owned(), lease.clone())).collect()
}

/// 192.0.2.0/24 is the node's own segment, 198.51.100.0/24 is behind a router, the rest is nowhere.
fn way(address: IpAddr) -> Option<Way> {
    match address.to_string().split('.').next() {
        Some("192") => Some(Way { link: WIRE, via: None }),
        Some("198") => Some(Way { link: WIRE, via: Some([192, 0, 2, 254].into()) }),
        _ => None,
    }
}

fn wanted(own: &Own, list: &[(&str, Lease)]) -> Wanted {
    Wanted::new(own, &leases(list), &way)
}

fn kernel(route: &Route, protocol: u8) -> KernelRoute {
    KernelRoute {
        to: route.to,
        via: Some(route.via),
        link: route.link,
        onlink: route.onlink,
        metric: 0,
        protocol,
    }
}

/// What the kernel has after all that is wanted was done.
fn done(wanted: &Wanted) -> Actual {
    Actual {
        routes: wanted.routes.values().map(|route| kernel(route, ROUTE_PROTOCOL)).collect(),
        neighbours: wanted
            .neighbours
            .iter()
            .map(|((link, address), mac)| Neighbour { link: *link, address: *address, mac: *mac })
            .collect(),
        fdb: wanted.fdb.iter().map(|((link, mac), to)| Fdb { link: *link, mac: *mac, to: *to }).collect(),
    }
}

#[test]
fn a_vxlan_node_gets_route_neighbour_and_forwarding_entry() {
    let peer = lease(VXLAN, "10.244.2.0/24", "198.51.100.2", 7);
    let wanted = wanted(&own(), &[("node1", lease(VXLAN, "10.244.1.0/24", "192.0.2.1", 1)), ("node2", peer)]);
    assert_eq!(wanted.problems, [""; 0]);
    let to: IpNet = "10.244.2.0/24".parse().unwrap();
    let gateway: IpAddr = [10, 244, 2, 0].into();
    assert_eq!(wanted.routes[&to], Route { to, via: gateway, link: DEVICE, onlink: true });
    assert_eq!(wanted.neighbours[&(DEVICE, gateway)], Mac([2, 0, 0, 0, 0, 7]));
    assert_eq!(wanted.fdb[&(DEVICE, Mac([2, 0, 0, 0, 0, 7]))], IpAddr::from([198, 51, 100, 2]));
    assert_eq!((wanted.routes.len(), wanted.neighbours.len(), wanted.fdb.len()), (1, 1, 1));
}

#[test]
fn which_way_a_node_is_reached() {
    let direct = |own: Own| Own { direct_routing: true, ..own };
    let plain = |own: Own| Own { device_v4: None, ..own };
    let near = |backend: &str| lease(backend, "10.244.2.0/24", "192.0.2.2", 7);
    let far = |backend: &str| lease(backend, "10.244.2.0/24", "198.51.100.2", 7);
    for (name, own, peer, expected) in [
        ("vxlan", own(), near(VXLAN), Ok(DEVICE)),
        ("direct routing near", direct(own()), near(VXLAN), Ok(WIRE)),
        ("direct routing far", direct(own()), far(VXLAN), Ok(DEVICE)),
        ("both host-gw", plain(own()), near(HOST_GW), Ok(WIRE)),
        ("the other cannot do vxlan", own(), near(HOST_GW), Ok(WIRE)),
        ("we cannot do vxlan", plain(own()), near(VXLAN), Ok(WIRE)),
        ("host-gw over a router", plain(own()), far(HOST_GW), Err("behind 192.0.2.254")),
        (
            "host-gw to nowhere",
            plain(own()),
            lease(HOST_GW, "10.244.2.0/24", "203.0.113.2", 7),
            Err("no route"),
        ),
        ("another backend", own(), near("wireguard"), Err("wireguard")),
        ("outside the network", own(), lease(VXLAN, "10.9.2.0/24", "192.0.2.2", 7), Err("outside")),
        ("everything", own(), lease(VXLAN, "0.0.0.0/0", "192.0.2.2", 7), Err("outside")),
        ("our own range", own(), lease(VXLAN, "10.244.1.128/25", "192.0.2.2", 7), Err("also this node's")),
    ] {
        let wanted = wanted(&own, &[("node2", peer)]);
        match expected {
            Ok(link) => {
                assert_eq!(wanted.problems, [""; 0], "{name}");
                assert_eq!(
                    wanted.routes.values().map(|route| route.link).collect::<Vec<_>>(),
                    [link],
                    "{name}"
                );
                assert_eq!(wanted.fdb.len(), usize::from(link == DEVICE), "{name}");
            }
            Err(problem) => {
                assert!(wanted.routes.is_empty() && wanted.fdb.is_empty(), "{name}");
                assert!(wanted.problems[0].contains(problem), "{name}: {:?}", wanted.problems);
            }
        }
    }
}

#[test]
fn two_nodes_never_fight_for_one_entry() {
    let same_range = wanted(
        &own(),
        &[
            ("node2", lease(VXLAN, "10.244.2.0/24", "192.0.2.2", 2)),
            ("node3", lease(VXLAN, "10.244.2.0/25", "192.0.2.3", 3)),
        ],
    );
    assert_eq!((same_range.routes.len(), same_range.problems.len()), (1, 1));
    let same_mac = wanted(
        &own(),
        &[
            ("node2", lease(VXLAN, "10.244.2.0/24", "192.0.2.2", 2)),
            ("node3", lease(VXLAN, "10.244.3.0/24", "192.0.2.3", 2)),
        ],
    );
    assert_eq!((same_mac.fdb.len(), same_mac.routes.len(), same_mac.problems.len()), (1, 1, 1));
}

#[test]
fn only_differences_are_changed() {
    let own = own();
    let two = [
        ("node2", lease(VXLAN, "10.244.2.0/24", "192.0.2.2", 2)),
        ("node3", lease(VXLAN, "10.244.3.0/24", "192.0.2.3", 3)),
    ];
    let before = wanted(&own, &two);
    let first = Changes::new(&own, &before, &Actual::default());
    assert_eq!((first.set_routes.len(), first.set_neighbours.len(), first.set_fdb.len()), (2, 2, 2));
    assert_eq!(first.count(), 6);
    assert_eq!(Changes::new(&own, &before, &done(&before)), Changes::default(), "nothing to do");

    let after = wanted(&own, &two[..1]);
    let gone = Changes::new(&own, &after, &done(&before));
    assert_eq!((gone.delete_routes.len(), gone.delete_neighbours.len(), gone.delete_fdb.len()), (1, 1, 1));
    assert_eq!(gone.count(), 3);

    let moved = wanted(&own, &[two[0].clone(), ("node3", lease(VXLAN, "10.244.3.0/24", "192.0.2.33", 3))]);
    let changes = Changes::new(&own, &moved, &done(&before));
    assert_eq!(changes.set_fdb.len() + changes.delete_fdb.len(), changes.count());
    assert_eq!(changes.set_fdb[0].to, IpAddr::from([192, 0, 2, 33]));
    assert_eq!(changes.delete_fdb[0].to, IpAddr::from([192, 0, 2, 3]));
}

#[test]
fn what_others_made_stays() {
    let own = own();
    let wanted = wanted(&own, &[("node2", lease(VXLAN, "10.244.2.0/24", "192.0.2.2", 2))]);
    let foreign = |to: &str, link, protocol| KernelRoute {
        to: to.parse().unwrap(),
        via: Some([192, 0, 2, 9].into()),
        link,
        onlink: false,
        metric: 0,
        protocol,
    };
    let mut actual = done(&wanted);
    actual.routes.extend([foreign("10.0.0.0/8", WIRE, 3), foreign("10.244.1.0/24", DEVICE, 2)]);
    actual.neighbours.push(Neighbour { link: WIRE, address: [192, 0, 2, 9].into(), mac: Mac([2; 6]) });
    actual.fdb.push(Fdb { link: 77, mac: Mac([2; 6]), to: [192, 0, 2, 9].into() });
    assert_eq!(Changes::new(&own, &wanted, &actual), Changes::default());

    // On our device, or with our number, is ours.
    actual
        .routes
        .extend([foreign("10.244.7.0/24", DEVICE, 3), foreign("10.244.8.0/24", WIRE, ROUTE_PROTOCOL)]);
    assert_eq!(Changes::new(&own, &wanted, &actual).delete_routes.len(), 2);
}

#[test]
fn a_route_that_changes_its_way_is_replaced_not_deleted() {
    let vxlan = own();
    let direct = Own { direct_routing: true, ..own() };
    let peer = [("node2", lease(VXLAN, "10.244.2.0/24", "192.0.2.2", 2))];
    let changes = Changes::new(&direct, &wanted(&direct, &peer), &done(&wanted(&vxlan, &peer)));
    assert_eq!(changes.set_routes.len(), 1);
    assert_eq!(changes.delete_routes, [], "pods stay reachable");
    assert_eq!((changes.delete_fdb.len(), changes.delete_neighbours.len()), (1, 1));
}

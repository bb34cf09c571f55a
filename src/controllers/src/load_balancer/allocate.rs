//! Which addresses of the pool a Service gets: a pure function.

use std::collections::BTreeMap;
use std::net::IpAddr;

use kedge_base::AddressRange;

/// Who has an address that is not free.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Owner {
    pub(super) name: String,
    /// Comes before the Service that asks, should both have it.
    pub(super) is_first: bool,
}

/// What a Service asks for.
#[derive(Debug, Clone, Default)]
pub(super) struct Wish {
    /// Its IP families, whether each is IPv4.
    pub(super) families: Vec<bool>,
    /// Every family is needed; else one is enough.
    pub(super) needs_all: bool,
    /// The addresses that it names.
    pub(super) named: Vec<IpAddr>,
    /// What it has now: kept when it may be.
    pub(super) current: Vec<IpAddr>,
}

/// One address for each of its families, or why not.
pub(super) fn allocate(
    pool: &[AddressRange],
    taken: &BTreeMap<IpAddr, Owner>,
    wish: &Wish,
) -> Result<Vec<IpAddr>, String> {
    let family = |is_ipv4: bool| if is_ipv4 { "IPv4" } else { "IPv6" };
    if let Some(odd) = wish.named.iter().find(|address| !wish.families.contains(&address.is_ipv4())) {
        return Err(format!("the Service has no {} address, and {odd} was asked for", family(odd.is_ipv4())));
    }
    let mut given = Vec::new();
    let mut missing = Vec::new();
    for &is_ipv4 in &wish.families {
        let of_family = |address: &&IpAddr| address.is_ipv4() == is_ipv4;
        if let Some(named) = wish.named.iter().find(of_family) {
            given.push(check(pool, taken, *named)?);
            continue;
        }
        let kept = wish.current.iter().find(of_family).copied().filter(|address| {
            is_in(pool, *address) && taken.get(address).is_none_or(|owner| !owner.is_first)
        });
        let free = || {
            let ranges = pool.iter().filter(|range| range.is_ipv4() == is_ipv4);
            ranges.flat_map(AddressRange::addresses).find(|address| !taken.contains_key(address))
        };
        match kept.or_else(free) {
            Some(address) => given.push(address),
            None if pool.iter().any(|range| range.is_ipv4() == is_ipv4) => {
                return Err(format!(
                    "no {} address of the pool is free; give the addon load-balancer more addresses",
                    family(is_ipv4)
                ));
            }
            None => missing.push(family(is_ipv4)),
        }
    }
    if !missing.is_empty() && (given.is_empty() || wish.needs_all) {
        let missing = missing.join(" and no ");
        return Err(format!("the pool has no {missing} addresses; give the addon load-balancer some"));
    }
    Ok(given)
}

fn is_in(pool: &[AddressRange], address: IpAddr) -> bool {
    pool.iter().any(|range| range.contains(address))
}

fn check(pool: &[AddressRange], taken: &BTreeMap<IpAddr, Owner>, named: IpAddr) -> Result<IpAddr, String> {
    if !is_in(pool, named) {
        let pool: Vec<String> = pool.iter().map(ToString::to_string).collect();
        return Err(format!("{named} was asked for and is not in the pool ({})", pool.join(", ")));
    }
    match taken.get(&named) {
        Some(owner) => Err(format!("{named} was asked for and belongs to {}", owner.name)),
        None => Ok(named),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ips(list: &[&str]) -> Vec<IpAddr> {
        list.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn others(list: &[(&str, bool)]) -> BTreeMap<IpAddr, Owner> {
        let owner = |is_first: bool| Owner { name: "ns/other".into(), is_first };
        list.iter().map(|(text, is_first)| (text.parse().unwrap(), owner(*is_first))).collect()
    }

    #[test]
    fn wishes_are_met_or_refused_with_the_reason() {
        let both = "192.0.2.1-192.0.2.2,2001:db8::10/127";
        type Case<'a> = (
            &'a str,
            &'a [bool],
            bool,
            &'a [&'a str],
            &'a [&'a str],
            &'a [(&'a str, bool)],
            Result<&'a [&'a str], &'a str>,
        );
        let cases: &[Case<'_>] = &[
            (both, &[true], false, &[], &[], &[], Ok(&["192.0.2.1"])),
            (both, &[true, false], true, &[], &[], &[], Ok(&["192.0.2.1", "2001:db8::10"])),
            (both, &[false, true], true, &[], &[], &[], Ok(&["2001:db8::10", "192.0.2.1"])),
            (both, &[true], false, &[], &[], &[("192.0.2.1", false)], Ok(&["192.0.2.2"])),
            (both, &[true], false, &[], &["192.0.2.2"], &[], Ok(&["192.0.2.2"])),
            (both, &[true], false, &[], &["192.0.2.9"], &[], Ok(&["192.0.2.1"])),
            // Two have the same: the first one keeps it.
            (both, &[true], false, &[], &["192.0.2.1"], &[("192.0.2.1", false)], Ok(&["192.0.2.1"])),
            (both, &[true], false, &[], &["192.0.2.1"], &[("192.0.2.1", true)], Ok(&["192.0.2.2"])),
            (both, &[true], false, &["192.0.2.2"], &["192.0.2.1"], &[], Ok(&["192.0.2.2"])),
            (both, &[true, false], false, &["2001:db8::11"], &[], &[], Ok(&["192.0.2.1", "2001:db8::11"])),
            (
                both,
                &[true],
                false,
                &["192.0.2.7"],
                &[],
                &[],
                Err("192.0.2.7 was asked for and is not in the pool"),
            ),
            (both, &[true], false, &["192.0.2.2"], &[], &[("192.0.2.2", false)], Err("belongs to ns/other")),
            (both, &[true], false, &["2001:db8::10"], &[], &[], Err("no IPv6 address, and 2001:db8::10")),
            (
                both,
                &[true],
                false,
                &[],
                &[],
                &[("192.0.2.1", false), ("192.0.2.2", false)],
                Err("no IPv4 address of the pool is free"),
            ),
            ("192.0.2.1", &[true, false], false, &[], &[], &[], Ok(&["192.0.2.1"])),
            ("192.0.2.1", &[true, false], true, &[], &[], &[], Err("the pool has no IPv6 addresses")),
            ("192.0.2.1", &[false], false, &[], &[], &[], Err("the pool has no IPv6 addresses")),
        ];
        for (pool, families, needs_all, named, current, taken, expected) in cases {
            let pool = AddressRange::parse_list(pool).unwrap();
            let (named, current) = (ips(named), ips(current));
            let wish = Wish { families: families.to_vec(), needs_all: *needs_all, named, current };
            match (allocate(&pool, &others(taken), &wish), expected) {
                (Ok(given), Ok(expected)) => assert_eq!(given, ips(expected), "{wish:?}"),
                (Err(text), Err(words)) => assert!(text.contains(words), "{text}"),
                (result, _) => panic!("{wish:?}: {result:?}"),
            }
        }
    }

    /// Services come, go and ask in any order, with any part of the truth forgotten in between (a restart
    /// forgets nothing, for what counts is in their statuses): no address is ever given twice, and who has one
    /// keeps it.
    #[test]
    fn no_address_is_given_twice_and_all_are_kept() {
        let pool = AddressRange::parse_list("192.0.2.10-192.0.2.17,2001:db8::/125").unwrap();
        let mut random = 0x9e37_79b9_7f4a_7c15_u64;
        let mut next = |below: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random % below
        };
        let mut given: BTreeMap<u64, Vec<IpAddr>> = BTreeMap::new();
        for step in 0..20_000 {
            let service = next(12);
            if next(4) == 0 {
                given.remove(&service);
                continue;
            }
            let taken =
                given.iter().filter(|(other, _)| **other != service).flat_map(|(other, addresses)| {
                    let owner = Owner { name: other.to_string(), is_first: *other < service };
                    addresses.iter().map(move |address| (*address, owner.clone()))
                });
            let taken: BTreeMap<IpAddr, Owner> = taken.collect();
            let current = given.get(&service).cloned().unwrap_or_default();
            let families = [vec![true], vec![false], vec![true, false]][(service % 3) as usize].clone();
            let wish = Wish { families, needs_all: true, named: Vec::new(), current: current.clone() };
            match allocate(&pool, &taken, &wish) {
                Ok(addresses) => {
                    assert!(
                        current.is_empty() || current == addresses,
                        "step {step}: {current:?} {addresses:?}"
                    );
                    assert!(addresses.iter().all(|address| !taken.contains_key(address)), "step {step}");
                    given.insert(service, addresses);
                }
                Err(text) => {
                    assert!(current.is_empty(), "step {step}: {text}");
                    assert!(taken.len() >= 8, "step {step}: {text}");
                }
            }
        }
    }
}

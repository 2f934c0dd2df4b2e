//! Questions about addresses and ranges that several rules ask.

use std::net::IpAddr;

use ipnet::IpNet;
use vrouter_common::{addr::Ip, service};

/// Whether both are IPv4 or both IPv6.
pub fn same_family(a: IpAddr, b: IpAddr) -> bool {
    a.is_ipv4() == b.is_ipv4()
}

/// What an address of a subnet is that nobody on it may have. Every node takes the metadata service's for its own,
/// whether or not it answers there: which nodes do is not known here.
pub fn unusable(cidr: IpNet, address: IpAddr) -> Option<&'static str> {
    if Ip::from(address) == service::METADATA_IP_V4 {
        return Some("metadata service's address, and not one");
    }
    // RFC 3021: a /31 has neither.
    if !cidr.addr().is_ipv4() || cidr.prefix_len() > 30 {
        return None;
    }
    if address == cidr.network() {
        Some("network address")
    } else if address == cidr.broadcast() {
        Some("broadcast address")
    } else {
        None
    }
}

/// Ranges, each with something it stands for, in which an address is found by halving.
#[derive(Default)]
pub struct RangeIndex {
    /// By first address.
    ranges: Vec<(IpNet, usize)>,
    /// What stands for a range that overlaps another, and for that other, which came first.
    pub overlaps: Vec<(usize, usize)>,
}

/// Some ranges of the index overlap, so that nobody can tell which one an address is in.
pub struct Overlapping;

impl RangeIndex {
    pub fn of(ranges: impl IntoIterator<Item = (IpNet, usize)>) -> Self {
        let ranges: Vec<_> = ranges.into_iter().collect();
        let mut order: Vec<usize> = (0..ranges.len()).collect();
        order.sort_by_key(|i| (ranges[*i].0.network(), ranges[*i].0.prefix_len(), *i));
        let mut overlaps = Vec::new();
        // Ranges nest or are disjoint, so each needs comparing only with the widest one still open.
        let mut widest: Option<usize> = None;
        for i in order.iter().copied() {
            match widest {
                Some(outer) if ranges[outer].0.contains(&ranges[i].0) => {
                    overlaps.push((ranges[i.max(outer)].1, ranges[i.min(outer)].1));
                }
                _ => widest = Some(i),
            }
        }
        Self { ranges: order.into_iter().map(|i| ranges[i]).collect(), overlaps }
    }

    /// What stands for the range that holds the address.
    pub fn find(&self, address: IpAddr) -> Result<Option<(IpNet, usize)>, Overlapping> {
        if !self.overlaps.is_empty() {
            return Err(Overlapping);
        }
        let after = self.ranges.partition_point(|(cidr, _)| cidr.network() <= address);
        let before = after.checked_sub(1).and_then(|i| self.ranges.get(i)).copied();
        Ok(before.filter(|(cidr, _)| cidr.contains(&address)))
    }

    /// What the ranges stand for, in order.
    pub fn places(&self) -> impl Iterator<Item = usize> {
        self.ranges.iter().map(|(_, place)| *place)
    }

    /// The ranges in order.
    pub fn cidrs(&self) -> impl Iterator<Item = &IpNet> {
        self.ranges.iter().map(|(cidr, _)| cidr)
    }
}

/// The ranges as a hint, not more than fit a line.
pub fn listing<'a>(ranges: impl IntoIterator<Item = &'a IpNet>) -> String {
    const LISTED: usize = 4;
    let mut ranges = ranges.into_iter();
    let listed: Vec<String> = ranges.by_ref().take(LISTED).map(ToString::to_string).collect();
    let more = if ranges.next().is_some() { " or others" } else { "" };
    format!("{}{more}", listed.join(" or "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn index(ranges: &[&str]) -> RangeIndex {
        let ranges = ranges.iter().enumerate();
        RangeIndex::of(ranges.filter_map(|(i, text)| Some((text.parse().ok()?, i))))
    }

    #[test]
    fn overlaps_are_found_once_each() {
        let index = index(&["10.0.1.0/24", "10.0.0.0/16", "fd00::/64", "10.1.0.0/24", "10.0.1.0/24"]);
        assert_eq!(index.overlaps, [(1, 0), (4, 1)]);
        assert!(index.find(IpAddr::from([10, 1, 0, 1])).is_err());
    }

    #[test]
    fn an_address_is_found_in_its_range_only() {
        let index = index(&["10.0.2.0/24", "10.0.0.0/24", "fd00::/64"]);
        for (address, place) in [
            ("9.255.255.255", None),
            ("10.0.0.0", Some(1)),
            ("10.0.0.255", Some(1)),
            ("10.0.1.0", None),
            ("10.0.2.7", Some(0)),
            ("10.0.3.0", None),
            ("fcff::1", None),
            ("fd00::1", Some(2)),
            ("fd00:0:0:1::", None),
        ] {
            let found = address.parse().ok().and_then(|address| index.find(address).ok());
            assert_eq!(found.map(|found| found.map(|(_, place)| place)), Some(place), "{address}");
        }
    }

    #[test]
    fn a_point_to_point_subnet_is_usable_to_its_ends() {
        let Ok(net) = "10.0.0.0/31".parse() else { unreachable!() };
        assert_eq!(unusable(net, IpAddr::from([10, 0, 0, 0])), None);
        let Ok(net) = "10.0.0.0/30".parse() else { unreachable!() };
        assert_eq!(unusable(net, IpAddr::from([10, 0, 0, 3])), Some("broadcast address"));
    }
}

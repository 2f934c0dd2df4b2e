//! Questions about addresses and ranges that several rules ask.

use std::net::IpAddr;

use ipnet::IpNet;

/// Whether both are IPv4 or both IPv6.
pub fn same_family(a: IpAddr, b: IpAddr) -> bool {
    a.is_ipv4() == b.is_ipv4()
}

/// Whether `address` is one of the two of an IPv4 subnet that no host may have.
pub fn edge(cidr: IpNet, address: IpAddr) -> Option<&'static str> {
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

/// Each range that overlaps an earlier one of the sorted order, with that one: positions in `ranges`.
///
/// Ranges either nest or are disjoint, so that each needs comparing only with the widest one open.
pub fn overlaps(ranges: &[IpNet]) -> Vec<(usize, usize)> {
    let mut order: Vec<usize> = (0..ranges.len()).collect();
    order.sort_by_key(|i| (ranges[*i].network(), ranges[*i].prefix_len(), *i));
    let mut found = Vec::new();
    let mut widest: Option<usize> = None;
    for i in order {
        match widest {
            Some(outer) if ranges[outer].contains(&ranges[i]) => {
                found.push((i.max(outer), i.min(outer)));
            }
            _ => widest = Some(i),
        }
    }
    found
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

    #[test]
    fn overlaps_are_found_once_each() {
        let ranges: Vec<IpNet> = ["10.0.1.0/24", "10.0.0.0/16", "fd00::/64", "10.1.0.0/24", "10.0.1.0/24"]
            .iter()
            .filter_map(|text| text.parse().ok())
            .collect();
        assert_eq!(overlaps(&ranges), [(1, 0), (4, 1)]);
    }

    #[test]
    fn a_point_to_point_subnet_has_no_edges() {
        let Ok(net) = "10.0.0.0/31".parse() else { unreachable!() };
        assert_eq!(edge(net, IpAddr::from([10, 0, 0, 0])), None);
        let Ok(net) = "10.0.0.0/30".parse() else { unreachable!() };
        assert_eq!(edge(net, IpAddr::from([10, 0, 0, 3])), Some("broadcast address"));
    }
}

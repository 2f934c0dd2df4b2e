//! Routers: interfaces, gateway, static routes.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};

use crate::topology::model::{
    Network, RouteTarget, Router, RouterGateway, RouterInterface, StaticRoute, Vrrp,
};
use crate::topology::object::Object;
use crate::topology::problem::Problems;
use crate::topology::scalar::{self, Fault};
use crate::topology::yaml::{Node, NodeKind};

pub const FIELDS: &[&str] = &["name", "interfaces", "gateway", "routes"];
const INTERFACE_FIELDS: &[&str] = &["subnet", "address"];
const GATEWAY_FIELDS: &[&str] = &["network", "address", "snat", "snat_ports", "vrrp"];
const VRRP_FIELDS: &[&str] = &["vrid", "interval_ms", "preempt"];
/// Below are the ports of well-known services (RFC 6335).
const SNAT_PORTS: (u16, u16) = (1024, 65535);
const ROUTE_FIELDS: &[&str] = &["destination", "nexthop", "nexthops"];

/// The gateway address of every subnet, for interfaces that state none.
pub struct Gateways(HashMap<String, Option<IpAddr>>);

impl Gateways {
    pub fn of(networks: &[Network]) -> Self {
        let mut gateways = HashMap::new();
        for subnet in networks.iter().flat_map(|network| &network.subnets) {
            // Of two subnets with one name the first counts.
            gateways.entry(subnet.name.clone()).or_insert(subnet.gateway);
        }
        Self(gateways)
    }

    /// Where no subnet is known.
    pub fn unknown() -> Self {
        Self(HashMap::new())
    }

    /// Puts them in where a router that was read without them needs them.
    pub fn fill_in(&self, router: &mut Router, problems: &mut Problems) {
        let name = &router.name;
        for interface in router.interfaces.iter_mut().filter(|interface| interface.address.is_unspecified()) {
            match self.0.get(&interface.subnet) {
                Some(Some(gateway)) => interface.address = *gateway,
                Some(None) => {
                    let (message, remedy) = without_gateway(&interface.subnet);
                    problems.push(interface.line, format!("router {name}"), message, remedy);
                }
                // Validation says that there is no such subnet.
                None => {}
            }
        }
    }
}

/// What is wrong with an interface that states no address, on a subnet that has none for it.
fn without_gateway(subnet: &str) -> (String, String) {
    (
        format!("the interface on subnet {subnet} has no address: the subnet has no gateway"),
        format!("write `{{ subnet: {subnet}, address: … }}`, or give the subnet a gateway"),
    )
}

pub fn router(object: &mut Object<'_, '_>, gateways: &Gateways) -> Option<Router> {
    let name = object.required("name", scalar::name);
    let items = object.items("interfaces").iter().enumerate();
    let interfaces: Vec<_> = items.filter_map(|(i, node)| interface(object, gateways, i, node)).collect();
    let gateway = object.child("gateway", GATEWAY_FIELDS, gateway);
    let routes = object.children("routes", ROUTE_FIELDS, route);
    Some(Router { name: name?, interfaces, gateway, routes, line: object.node.line })
}

/// Reads `web4` or `{ subnet: web4, address: 10.0.1.254 }`.
fn interface(
    object: &mut Object<'_, '_>,
    gateways: &Gateways,
    index: usize,
    node: &Node,
) -> Option<RouterInterface> {
    let line = node.line;
    let key = format!("interfaces[{index}]");
    let (subnet, address) = if let NodeKind::Mapping(_) = node.kind {
        let label = format!("{} {key}", object.label());
        let mut child = Object::open(node, label, INTERFACE_FIELDS, object.problems())?;
        let subnet = child.required("subnet", scalar::name);
        let address = child.optional("address", scalar::host);
        if !child.is_sound() {
            return None;
        }
        (subnet?, address)
    } else {
        match scalar::name(node) {
            Ok(subnet) => (subnet, None),
            Err(fault) => {
                object.fault(node, &key, fault);
                return None;
            }
        }
    };
    let address = match (address, gateways.0.get(&subnet)) {
        (Some(address), _) => address,
        (None, Some(Some(gateway))) => *gateway,
        (None, Some(None)) => {
            let (message, remedy) = without_gateway(&subnet);
            object.problem(line, message, remedy);
            return None;
        }
        // The subnet does not exist or is broken: validation says so, and the address goes nowhere.
        (None, None) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
    };
    Some(RouterInterface { subnet, address, line })
}

fn gateway(object: &mut Object<'_, '_>) -> Option<RouterGateway> {
    let network = object.required("network", scalar::name);
    let addresses = gateway_addresses(object);
    let snat = object.optional("snat", scalar::boolean).unwrap_or(true);
    let snat_ports = object.optional("snat_ports", snat_range).unwrap_or(SNAT_PORTS);
    let vrrp = object.child("vrrp", VRRP_FIELDS, vrrp).unwrap_or_default();
    let line = object.node.line;
    Some(RouterGateway { network: network?, addresses: addresses?, snat, snat_ports, vrrp, line })
}

fn vrrp(object: &mut Object<'_, '_>) -> Option<Vrrp> {
    let default = Vrrp::default();
    let vrid = object.optional("vrid", scalar::number::<1, 255>).and_then(|vrid| u8::try_from(vrid).ok());
    let interval_ms = object.optional("interval_ms", announcement_interval).unwrap_or(default.interval_ms);
    let preempt = object.optional("preempt", scalar::boolean).unwrap_or(default.preempt);
    Some(Vrrp { vrid, interval_ms, preempt })
}

/// RFC 5798 counts hundredths of a second, in 12 bits.
fn announcement_interval(node: &Node) -> Result<u32, Fault> {
    let interval = scalar::number::<10, 40_950>(node)?;
    if interval % 10 != 0 {
        return Err(Fault::new(
            format!("{interval} is no multiple of 10, and VRRP counts hundredths of a second"),
            format!("write {}", interval / 10 * 10 + 10),
        ));
    }
    Ok(interval)
}

/// Reads `203.0.113.10` or `[203.0.113.10, "2001:db8::10"]`.
fn gateway_addresses(object: &mut Object<'_, '_>) -> Option<Vec<IpAddr>> {
    let Some(node @ Node { kind: NodeKind::Sequence(items), .. }) = object.value("address") else {
        return object.required("address", scalar::host).map(|address| vec![address]);
    };
    if items.is_empty() {
        object.fault(node, "address", Fault::new("is an empty list", "write at least one address"));
        return None;
    }
    let addresses = object.list("address", scalar::host);
    for ipv6 in [false, true] {
        let second = addresses.iter().enumerate().filter(|(_, address)| address.is_ipv6() == ipv6).nth(1);
        // With an item that could not be read, positions say nothing.
        if let Some((i, address)) = second
            && addresses.len() == items.len()
        {
            let family = if ipv6 { "IPv6" } else { "IPv4" };
            object.problem(
                items[i].line,
                format!("{address} is a second {family} gateway address"),
                "keep one address of each family; floating ips give ports further ones",
            );
            return None;
        }
    }
    Some(addresses)
}

fn snat_range(node: &Node) -> Result<(u16, u16), Fault> {
    let range = scalar::port_range(node)?;
    if range.0 == 0 {
        return Err(Fault::new("starts at 0, which is no port", "start at 1 or above, like 1024-65535"));
    }
    Ok(range)
}

fn route(object: &mut Object<'_, '_>) -> Option<StaticRoute> {
    let destination = object.required("destination", scalar::range);
    let target = match (object.value("nexthop"), object.value("nexthops")) {
        (Some(_), Some(second)) => {
            object.problem(second.line, "nexthop and nexthops are both given", "keep one of them");
            None
        }
        (None, Some(_)) => targets(object, "nexthops"),
        (Some(Node { kind: NodeKind::Sequence(_), .. }), None) => targets(object, "nexthop"),
        _ => object.required("nexthop", target),
    };
    Some(StaticRoute { destination: destination?, target: target?, line: object.node.line })
}

fn target(node: &Node) -> Result<RouteTarget, Fault> {
    match scalar::text(node)? {
        "blackhole" => Ok(RouteTarget::Blackhole),
        "unreachable" => Ok(RouteTarget::Unreachable),
        text if text.bytes().all(|byte| byte.is_ascii_alphabetic()) => Err(Fault::new(
            format!("{} is not a kind of route", scalar::quote(text)),
            "write an address, a list of addresses, `blackhole` or `unreachable`",
        )),
        _ => scalar::host(node).map(|address| RouteTarget::Nexthops(vec![address])),
    }
}

fn targets(object: &mut Object<'_, '_>, key: &str) -> Option<RouteTarget> {
    let node = object.value(key)?;
    if matches!(&node.kind, NodeKind::Sequence(items) if items.is_empty()) {
        object.fault(node, key, Fault::new("is an empty list", "write at least one address, or `blackhole`"));
    }
    Some(RouteTarget::Nexthops(object.list(key, scalar::host)))
}

//! Routers: interfaces, gateway, static routes.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};

use crate::topology::model::{Network, RouteTarget, Router, RouterGateway, RouterInterface, StaticRoute};
use crate::topology::object::Object;
use crate::topology::scalar::{self, Fault};
use crate::topology::yaml::{Node, NodeKind};

pub const FIELDS: &[&str] = &["name", "interfaces", "gateway", "routes"];
const INTERFACE_FIELDS: &[&str] = &["subnet", "address"];
const GATEWAY_FIELDS: &[&str] = &["network", "address", "snat"];
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
            object.problem(
                line,
                format!("the interface on subnet {subnet} has no address: the subnet has no gateway"),
                format!("write `{{ subnet: {subnet}, address: … }}`, or give the subnet a gateway"),
            );
            return None;
        }
        // The subnet does not exist or is broken: validation says so, and the address goes nowhere.
        (None, None) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
    };
    Some(RouterInterface { subnet, address, line })
}

fn gateway(object: &mut Object<'_, '_>) -> Option<RouterGateway> {
    let network = object.required("network", scalar::name);
    let address = object.required("address", scalar::host);
    let snat = object.optional("snat", scalar::boolean).unwrap_or(true);
    Some(RouterGateway { network: network?, address: address?, snat, line: object.node.line })
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

//! Ports, floating IPs and nodes.

use super::dhcp;
use crate::topology::model::{AllowedAddressPair, DEFAULT_GROUP, FloatingIp, Node, Port, PortForwarding};
use crate::topology::object::Object;
use crate::topology::scalar;

pub const PORT_FIELDS: &[&str] = &[
    "name",
    "network",
    "mac",
    "fixed_ips",
    "security_groups",
    "port_security",
    "allowed_address_pairs",
    "node",
    "interface",
    "hook",
    "dhcp_options",
    "device_id",
    "project",
];
pub const FLOATING_IP_FIELDS: &[&str] = &["address", "port", "fixed_ip", "load_balancer", "port_forwardings"];
pub const NODE_FIELDS: &[&str] = &["name", "vtep", "gateway", "external_networks"];
const PAIR_FIELDS: &[&str] = &["ip", "mac"];
const FORWARDING_FIELDS: &[&str] = &["protocol", "external_port", "port", "internal_port"];

pub fn port(object: &mut Object<'_, '_>) -> Option<Port> {
    let name = object.required("name", scalar::name);
    let network = object.required("network", scalar::name);
    let mac = object.required("mac", scalar::mac);
    let fixed_ips = object.list("fixed_ips", scalar::host);
    let port_security = object.optional("port_security", scalar::boolean).unwrap_or(true);
    let security_groups = match object.value("security_groups") {
        None if port_security => vec![DEFAULT_GROUP.to_owned()],
        _ => object.list("security_groups", scalar::name),
    };
    let allowed_address_pairs = object.children("allowed_address_pairs", PAIR_FIELDS, pair);
    let node = object.optional("node", scalar::name);
    let interface = object.optional("interface", scalar::interface_name);
    let hook = object.optional("hook", scalar::hook).unwrap_or_default();
    let dhcp_options = dhcp::options(object, None);
    let device_id = object.optional("device_id", scalar::name);
    let project = object.optional("project", scalar::name);
    object.about("node", check_binding);
    Some(Port {
        name: name?,
        network: network?,
        mac: mac?,
        fixed_ips,
        security_groups,
        port_security,
        allowed_address_pairs,
        node,
        interface,
        hook,
        dhcp_options,
        device_id,
        project,
        line: object.node.line,
    })
}

fn check_binding(object: &mut Object<'_, '_>) {
    match (object.value("node"), object.value("interface")) {
        (Some(given), None) => {
            let remedy = "add `interface: …`, the kernel interface on that node, or leave the node out";
            object.problem(given.line, "node is given without interface", remedy);
        }
        (None, Some(given)) => {
            let remedy = "add `node: …`, where the interface is, or leave the interface out";
            object.problem(given.line, "interface is given without node", remedy);
        }
        _ => {}
    }
}

fn pair(object: &mut Object<'_, '_>) -> Option<AllowedAddressPair> {
    let ip = object.required("ip", scalar::range);
    let mac = object.optional("mac", scalar::mac);
    Some(AllowedAddressPair { ip: ip?, mac, line: object.node.line })
}

pub fn floating_ip(object: &mut Object<'_, '_>) -> Option<FloatingIp> {
    let address = object.required("address", scalar::host);
    let port = object.optional("port", scalar::name);
    let fixed_ip = object.optional("fixed_ip", scalar::host);
    let port_forwardings = object.children("port_forwardings", FORWARDING_FIELDS, forwarding);
    if object.value("port").is_some()
        && let Some(forwardings) = object.value("port_forwardings")
    {
        object.problem(
            forwardings.line,
            "port and port_forwardings are both given",
            "keep `port` to give it the whole address, or `port_forwardings` to share it",
        );
    }
    if let (Some(given), None) = (object.value("fixed_ip"), object.value("port")) {
        let remedy = "add `port: …`, whose address it is, or leave fixed_ip out";
        object.problem(given.line, "fixed_ip is given without port", remedy);
    }
    let load_balancer = object.optional("load_balancer", scalar::name);
    let others = ["port", "port_forwardings"].into_iter().find(|key| object.value(key).is_some());
    if let (Some(given), Some(other)) = (object.value("load_balancer"), others) {
        let remedy = "keep one of them: an address leads to one thing";
        object.problem(given.line, format!("load_balancer and {other} are both given"), remedy);
    }
    Some(FloatingIp {
        address: address?,
        port,
        fixed_ip,
        load_balancer,
        port_forwardings,
        line: object.node.line,
    })
}

fn forwarding(object: &mut Object<'_, '_>) -> Option<PortForwarding> {
    let protocol = object.required("protocol", scalar::forwarded_protocol);
    let external_port = object.required("external_port", scalar::number16::<1, 65535>);
    let port = object.required("port", scalar::name);
    let internal_port = object.required("internal_port", scalar::number16::<1, 65535>);
    Some(PortForwarding {
        protocol: protocol?,
        external_port: external_port?,
        port: port?,
        internal_port: internal_port?,
        line: object.node.line,
    })
}

pub fn node(object: &mut Object<'_, '_>) -> Option<Node> {
    let name = object.required("name", scalar::name);
    let vtep = object.required("vtep", scalar::host4);
    let gateway = object.optional("gateway", scalar::boolean).unwrap_or_default();
    let external_networks =
        object.value("external_networks").is_some().then(|| object.list("external_networks", scalar::name));
    Some(Node { name: name?, vtep: vtep?, gateway, external_networks, line: object.node.line })
}

//! Networks and their subnets.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{Kind, dhcp, label};
use crate::topology::identity::derive_vni;
use crate::topology::model::{DNS_MAX, Network, Subnet};
use crate::topology::object::Object;
use crate::topology::ranges::{same_family, unusable};
use crate::topology::scalar;

pub const FIELDS: &[&str] = &["name", "vni", "mtu", "external", "routed", "subnets"];
pub const SUBNET_FIELDS: &[&str] =
    &["name", "cidr", "gateway", "dns", "dhcp", "lease_time", "host_routes", "dhcp_options", "ipv6_mode"];

/// The smallest MTU a link may have: RFC 791 for IPv4, RFC 8200 for IPv6.
const MIN_MTU: u32 = 68;
const MIN_MTU_IPV6: u16 = 1280;

/// Reads a network, and whether its VNI is derived.
pub fn network(object: &mut Object<'_, '_>) -> Option<(Network, bool)> {
    let name = object.required("name", scalar::name);
    let vni = object.optional("vni", scalar::number::<1, 0xff_ffff>);
    let mtu = object.optional("mtu", scalar::number16::<MIN_MTU, 65535>);
    let external = object.optional("external", scalar::boolean).unwrap_or_default();
    let routed = object.optional("routed", scalar::boolean).unwrap_or_default();
    if routed && !external {
        object.about("routed", |object| {
            object.problem(
                object.line("routed"),
                "is routed, and not external",
                "add `external: true`: between workloads every network is routed by its routers",
            );
        });
    }
    let subnets = object.children("subnets", SUBNET_FIELDS, |child| {
        let place = child.label().to_owned();
        child.relabel(label(child.node, Kind::Subnet, || place));
        let subnet = subnet(child);
        if external {
            dhcp::refuse_outside(child);
        }
        subnet
    });
    if let Some(mtu) = mtu
        && mtu < MIN_MTU_IPV6
        && let Some(subnet) = subnets.iter().find(|subnet| subnet.cidr.addr().is_ipv6())
    {
        let message = format!("mtu {mtu} is too small for the IPv6 subnet {}", subnet.name);
        object.about("mtu", |object| {
            object.problem(object.line("mtu"), message, format!("write at least {MIN_MTU_IPV6}"));
        });
    }
    let name = name?;
    let derived = vni.is_none();
    let vni = vni.unwrap_or_else(|| derive_vni(&name));
    Some((Network { name, vni, mtu, external, routed, subnets, line: object.node.line }, derived))
}

fn subnet(object: &mut Object<'_, '_>) -> Option<Subnet> {
    let name = object.required("name", scalar::name);
    let cidr = object.required("cidr", scalar::subnet_range);
    let gateway = object.optional("gateway", scalar::host);
    let dns = object.list("dns", scalar::host);
    let (name, cidr) = (name?, cidr?);
    if let Some(gateway) = gateway {
        check_gateway(object, cidr, gateway);
    }
    for (server, node) in dns.iter().zip(object.items("dns")) {
        if !same_family(*server, cidr.addr()) {
            let message = format!("the DNS server {server} is not of the family of {cidr}");
            object.about("dns", |object| {
                object.problem(node.line, message, "move it to a subnet of its own family");
            });
        }
    }
    if dns.len() > DNS_MAX {
        let message = format!("{} DNS servers are more than workloads are told", dns.len());
        object.about("dns", |object| {
            let remedy = format!("write at most {DNS_MAX}: hosts ask the first three or so");
            object.problem(object.line("dns"), message, remedy);
        });
    }
    let dhcp::Fields { dhcp, lease_time, host_routes, dhcp_options, ipv6_mode } = dhcp::subnet(object, cidr);
    let line = object.node.line;
    Some(Subnet { name, cidr, gateway, dns, dhcp, lease_time, host_routes, dhcp_options, ipv6_mode, line })
}

fn check_gateway(object: &mut Object<'_, '_>, cidr: IpNet, gateway: IpAddr) {
    let line = object.line("gateway");
    if !cidr.contains(&gateway) {
        object.problem(
            line,
            format!("the gateway {gateway} is outside {cidr}"),
            format!("use an address of {cidr}"),
        );
    } else if let Some(what) = unusable(cidr, gateway) {
        object.problem(
            line,
            format!("the gateway {gateway} is the {what} of {cidr}"),
            format!("use another address of {cidr}"),
        );
    }
}

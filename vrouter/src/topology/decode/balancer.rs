//! Load balancers and pools.

use std::collections::HashSet;

use super::health;
use crate::topology::model::{Listener, LoadBalancer, Member, Pool};
use crate::topology::object::Object;
use crate::topology::scalar::{self, Fault, quote};
use crate::topology::yaml::Node;

pub const FIELDS: &[&str] = &["name", "network", "vip_addresses", "admin_state_up", "listeners"];
const LISTENER_FIELDS: &[&str] = &["name", "protocol", "protocol_port", "default_pool", "admin_state_up"];
pub const POOL_FIELDS: &[&str] = &["name", "session_persistence", "members", "health_monitor"];
const MEMBER_FIELDS: &[&str] = &["name", "address", "protocol_port", "weight", "admin_state_up"];

/// More could not be told apart in a slot.
const MEMBERS_MAX: usize = 1024;

pub fn load_balancer(object: &mut Object<'_, '_>) -> Option<LoadBalancer> {
    let name = object.required("name", scalar::name);
    let network = object.required("network", scalar::name);
    if object.value("vip_addresses").is_none() {
        let remedy = "add `vip_addresses: [ … ]`, at most one of each family";
        object.problem(object.node.line, "vip_addresses is missing", remedy);
    }
    let vip_addresses = object.list("vip_addresses", scalar::host);
    for (i, item) in object.items("vip_addresses").iter().enumerate() {
        let family = |at: usize| vip_addresses.get(at).map(std::net::IpAddr::is_ipv6);
        if i > 0 && (0..i).any(|before| family(before) == family(i)) {
            let remedy = "keep one of each family; make another load balancer for another address";
            object.problem(item.line, "two vip_addresses are of one family", remedy);
        }
    }
    let admin_state_up = object.optional("admin_state_up", scalar::boolean).unwrap_or(true);
    let listeners = object.children("listeners", LISTENER_FIELDS, listener);
    let mut names = HashSet::new();
    let mut ports = HashSet::new();
    for listener in &listeners {
        if !names.insert(&listener.name) {
            let message = format!("two listeners are called {}", listener.name);
            object.problem(listener.line, message, "give one of them another name");
        }
        if !ports.insert((listener.protocol, listener.protocol_port)) {
            let protocol = if listener.protocol == 6 { "tcp" } else { "udp" };
            let message = format!(
                "listener {}: {protocol} port {} is another listener's already",
                listener.name, listener.protocol_port
            );
            object.problem(listener.line, message, "use another protocol_port, or another load balancer");
        }
    }
    let line = object.node.line;
    Some(LoadBalancer { name: name?, network: network?, vip_addresses, admin_state_up, listeners, line })
}

fn listener(object: &mut Object<'_, '_>) -> Option<Listener> {
    let name = object.required("name", scalar::name);
    let protocol = object.required("protocol", scalar::forwarded_protocol);
    let protocol_port = object.required("protocol_port", scalar::number16::<1, 65535>);
    let default_pool = object.required("default_pool", scalar::name);
    let admin_state_up = object.optional("admin_state_up", scalar::boolean).unwrap_or(true);
    Some(Listener {
        name: name?,
        protocol: protocol?,
        protocol_port: protocol_port?,
        default_pool: default_pool?,
        admin_state_up,
        line: object.node.line,
    })
}

pub fn pool(object: &mut Object<'_, '_>) -> Option<Pool> {
    let name = object.required("name", scalar::name);
    let source_ip = object.optional("session_persistence", source_ip).unwrap_or_default();
    let members = object.children("members", MEMBER_FIELDS, member);
    let mut names = HashSet::new();
    let mut places = HashSet::new();
    for member in &members {
        if !names.insert(&member.name) {
            let message = format!("two members are called {}", member.name);
            object.problem(member.line, message, "give one of them another name");
        }
        if !places.insert((member.address, member.protocol_port)) {
            let message = format!(
                "member {}: {} port {} is another member's already",
                member.name, member.address, member.protocol_port
            );
            object.problem(member.line, message, "keep one, and give it the weight of both");
        }
    }
    if members.len() > MEMBERS_MAX {
        let message = format!("{} members are more than a pool can have", members.len());
        object.problem(object.node.line, message, format!("keep {MEMBERS_MAX}, or make another pool"));
    }
    for (family, ipv6) in [("IPv4", false), ("IPv6", true)] {
        // Who takes all of them down means it.
        let is_up = |member: &&Member| member.admin_state_up && member.address.is_ipv6() == ipv6;
        let mut up = members.iter().filter(is_up).peekable();
        if up.peek().is_some() && up.all(|member| member.weight == 0) {
            object.problem(
                object.node.line,
                format!("every {family} member with admin_state_up has weight 0, so that nobody is served"),
                "give one a weight of 1 or more; to refuse everybody, write `admin_state_up: false` for the listener",
            );
        }
    }
    let health_monitor = object.child("health_monitor", health::FIELDS, health::health_monitor);
    Some(Pool { name: name?, source_ip, members, health_monitor, line: object.node.line })
}

fn member(object: &mut Object<'_, '_>) -> Option<Member> {
    let name = object.required("name", scalar::name);
    let address = object.required("address", scalar::host);
    let protocol_port = object.required("protocol_port", scalar::number16::<1, 65535>);
    let weight = object.optional("weight", scalar::number16::<0, 256>).unwrap_or(1);
    let admin_state_up = object.optional("admin_state_up", scalar::boolean).unwrap_or(true);
    Some(Member {
        name: name?,
        address: address?,
        protocol_port: protocol_port?,
        weight,
        admin_state_up,
        line: object.node.line,
    })
}

/// `source_ip`, as Octavia's session persistence of that type.
fn source_ip(node: &Node) -> Result<bool, Fault> {
    match scalar::text(node)? {
        "source_ip" | "SOURCE_IP" => Ok(true),
        "none" => Ok(false),
        other => Err(Fault::new(
            format!("{} is no session persistence", quote(other)),
            "write `source_ip`, or leave it out; cookies are for balancers that read HTTP",
        )),
    }
}

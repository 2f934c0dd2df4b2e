//! The members of pools whose health this node finds out: those behind its own ports.

use std::net::IpAddr;

use super::Compiler;
use crate::topology::{derive_router_mac, model::HealthMonitor, monitored};

/// A member behind a port of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MonitoredMember {
    pub pool: String,
    pub member: String,
    /// The port's interface, and its number as long as it exists.
    pub interface: String,
    pub ifindex: Option<u32>,
    /// The router's leg on the member's network, which asks.
    pub source: IpAddr,
    pub source_mac: [u8; 6],
    pub address: IpAddr,
    pub mac: [u8; 6],
    /// What is asked, unless it is pinged.
    pub protocol_port: u16,
    pub monitor: HealthMonitor,
}

impl Compiler<'_> {
    /// Finds them, before the ports, which are to have their answers handed to the agent.
    pub(super) fn monitored(&mut self) {
        let (topology, node) = (self.topology, &self.around.node);
        for it in monitored(topology, |_| true, |port| port.node.as_ref() == Some(node)) {
            let Some(interface) = &it.port.interface else { continue };
            let ipv6 = it.member.address.is_ipv6();
            let leg = it.router.interfaces.iter().find(|leg| {
                let subnet = self.subnets.get(leg.subnet.as_str());
                leg.address.is_ipv6() == ipv6
                    && subnet.is_some_and(|(network, cidr)| {
                        network.name == it.port.network && cidr.contains(&it.member.address)
                    })
            });
            let Some(leg) = leg else { continue };
            let ifindex = self.around.interfaces.get(interface).map(|interface| interface.index);
            self.asked.insert(interface);
            self.out.monitored.push(MonitoredMember {
                pool: it.pool.name.clone(),
                member: it.member.name.clone(),
                interface: interface.clone(),
                ifindex,
                source: leg.address,
                source_mac: derive_router_mac(&it.router.name, &it.port.network).0,
                address: it.member.address,
                mac: it.port.mac.0,
                protocol_port: it.monitor.monitor_port.unwrap_or(it.member.protocol_port),
                // Wherever in the document: an edit elsewhere must not begin its checks anew.
                monitor: HealthMonitor { line: 0, ..it.monitor.clone() },
            });
        }
    }
}

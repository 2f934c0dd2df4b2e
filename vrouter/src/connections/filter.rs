//! Which connections a command means.

use std::{net::IpAddr, path::Path};

use anyhow::{Result, bail};
use ipnet::IpNet;
use vrouter_common::{
    flow::{EXIT_PORT, FLOW_NAT, FROM_PORT, FlowKey},
    tables::{NAME_NETWORK, NAME_PORT, NAME_ROUTER},
};

use super::{
    legs::{Flows, Leg},
    names::{Names, PortTraces},
    row::{has_ports, protocol},
    state::{Standing, State},
};

/// Flags that choose connections; all given ones must hold.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct FilterArgs {
    /// Connections of a port, at either end
    #[arg(long, value_name = "NAME")]
    pub port: Option<String>,
    /// Connections that come in or leave on a network
    #[arg(long, value_name = "NAME")]
    pub network: Option<String>,
    /// Connections with an address, or one of a range, before or after translation
    #[arg(long, value_name = "ADDRESS|CIDR", value_parser = parse_range)]
    pub address: Option<IpNet>,
    /// Connections with a TCP, UDP or SCTP port, before or after translation
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub l4port: Option<u16>,
    /// Connections of a protocol, by name or number
    #[arg(long, value_name = "PROTOCOL", value_parser = parse_protocol)]
    pub proto: Option<u8>,
    /// Connections in a state, as it is printed
    #[arg(long, value_name = "STATE", value_parser = parse_state)]
    pub state: Option<State>,
    /// Connections that pass a router
    #[arg(long, value_name = "NAME")]
    pub router: Option<String>,
    /// Connections whose addresses or ports are translated
    #[arg(long)]
    pub nat: bool,
    /// Remembered decisions, too: flows of which no connection is known
    #[arg(long)]
    pub all: bool,
}

/// The same with numbers instead of names.
#[derive(Debug)]
pub struct Filter {
    port: Option<PortTraces>,
    network: Option<u32>,
    address: Option<IpNet>,
    l4port: Option<u16>,
    proto: Option<u8>,
    state: Option<State>,
    router: Option<u32>,
    nat: bool,
    all: bool,
}

impl FilterArgs {
    /// Whether nothing is chosen.
    pub fn is_empty(&self) -> bool {
        let Self { port, network, address, l4port, proto, state, router, nat, all: _ } = self;
        port.is_none()
            && network.is_none()
            && address.is_none()
            && l4port.is_none()
            && proto.is_none()
            && state.is_none()
            && router.is_none()
            && !nat
    }

    /// Looks the names up.
    pub fn resolve(&self, names: &Names, maps: &Path) -> Result<Filter> {
        self.resolve_with(names, |port| names.traces_of_port(maps, port))
    }

    /// Looks the names up, and what a port leaves in flow entries wherever the caller has it.
    pub fn resolve_with(
        &self,
        names: &Names,
        traces: impl FnOnce(u32) -> Result<PortTraces>,
    ) -> Result<Filter> {
        let number = |kind: u32, what: &str, name: &Option<String>| -> Result<Option<u32>> {
            let Some(name) = name else { return Ok(None) };
            match names.identities.number(kind, name) {
                Some(number) => Ok(Some(number)),
                None => bail!(
                    "there is no {what} {name} in the topology in force; `vrouter map-dump NAMES` lists what there is"
                ),
            }
        };
        let port = match number(NAME_PORT, "port", &self.port)? {
            Some(port) => Some(traces(port)?),
            None => None,
        };
        Ok(Filter {
            port,
            network: number(NAME_NETWORK, "network", &self.network)?,
            router: number(NAME_ROUTER, "router", &self.router)?,
            address: self.address,
            l4port: self.l4port,
            proto: self.proto,
            state: self.state,
            nat: self.nat,
            all: self.all || self.state == Some(State::Stateless),
        })
    }
}

impl Filter {
    /// Whether it is meant.
    pub fn matches(&self, flows: &Flows, standing: &Standing, names: &Names) -> bool {
        let Self { port, network, address, l4port, proto, state, router, nat, all } = self;
        let first = flows.first();
        let original = flows.original_key();
        let reply = if flows.is_tracked() { flows.reply_key() } else { original };
        let keys = [original, reply];
        (flows.is_tracked() || *all)
            && proto.is_none_or(|proto| original.proto == proto)
            && state.is_none_or(|state| standing.state == state)
            && (!nat || first.flow.flags & FLOW_NAT != 0)
            && l4port.is_none_or(|port| {
                keys.iter().any(|key| {
                    has_ports(key) && [key.sport, key.dport].map(|port| port.get()).contains(&port)
                })
            })
            && address.is_none_or(|range| {
                keys.iter()
                    .any(|key| [key.src, key.dst].map(IpAddr::from).iter().any(|ip| range.contains(ip)))
            })
            && network.is_none_or(|network| {
                flows.legs().any(|leg| [leg.flow.network, leg.flow.network_out].contains(&network))
            })
            && router.is_none_or(|router| {
                flows.legs().any(|leg| names.routers(&leg.flow).any(|passed| passed == router))
            })
            && port.as_ref().is_none_or(|traces| flows.legs().any(|leg| ends_at(leg, traces)))
    }
}

fn ends_at(leg: &Leg, traces: &PortTraces) -> bool {
    let PortTraces { interfaces, addresses } = traces;
    let Leg { key: FlowKey { src, from, zone, .. }, flow, .. } = leg;
    *from == FROM_PORT && interfaces.contains(zone)
        || flow.exit == EXIT_PORT && interfaces.contains(&flow.target)
        || addresses.contains(&(flow.network, *src))
        || addresses.contains(&(flow.network_out, flow.dst))
}

pub(crate) fn parse_range(text: &str) -> Result<IpNet, String> {
    if let Ok(range) = text.parse::<IpNet>() {
        return Ok(range.trunc());
    }
    text.parse::<IpAddr>()
        .map(IpNet::from)
        .map_err(|_| format!("{text:?} is neither an address nor a range, as in 10.0.1.0/24 or fd00::/64"))
}

pub(crate) fn parse_protocol(text: &str) -> Result<u8, String> {
    let by_name =
        || (0..=u8::MAX).find(|&number| protocol(number).is_some_and(|name| name.eq_ignore_ascii_case(text)));
    text.parse().ok().or_else(by_name).ok_or_else(|| {
        let known: Vec<_> = (0..=u8::MAX).filter_map(protocol).collect();
        format!("{text:?} is no protocol: give its number, or one of {}", known.join(", "))
    })
}

fn parse_state(text: &str) -> Result<State, String> {
    State::ALL.into_iter().find(|state| state.name().eq_ignore_ascii_case(text)).ok_or_else(|| {
        let known: Vec<_> = State::ALL.iter().map(|state| state.name()).collect();
        format!("{text:?} is no state; there are: {}", known.join(", "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_meant_is_refused_with_what_can() {
        for (result, complaint) in [
            (parse_range("10.0.1").map(drop), "neither an address nor a range"),
            (parse_range("10.0.1.0/33").map(drop), "neither an address nor a range"),
            (parse_protocol("tpc").map(drop), "one of icmp, tcp"),
            (parse_protocol("256").map(drop), "no protocol"),
            (parse_state("OPEN").map(drop), "ESTABLISHED"),
        ] {
            let error = result.expect_err(complaint);
            assert!(error.contains(complaint), "{error}");
        }
        assert_eq!(parse_protocol("ICMPv6"), Ok(58));
        assert_eq!(parse_protocol("89"), Ok(89));
        assert_eq!(parse_state("established"), Ok(State::Established));
        assert_eq!(parse_range("10.0.1.7/24"), Ok("10.0.1.0/24".parse().expect("a range")));
        assert_eq!(parse_range("fd00::1"), Ok("fd00::1/128".parse().expect("a range")));
    }

    #[test]
    fn an_empty_filter_is_one_that_chooses_nothing() {
        assert!(FilterArgs { all: true, ..FilterArgs::default() }.is_empty(), "all alone does not choose");
        assert!(!FilterArgs { nat: true, ..FilterArgs::default() }.is_empty());
    }
}

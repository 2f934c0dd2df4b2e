//! Which records a command means. The kernel leaves out most of the others; the rest is left out here.

use std::{net::IpAddr, path::Path};

use anyhow::{Result, bail};
use ipnet::IpNet;
use vrouter_common::{
    addr::{Be16, Ip},
    flow::FlowKey,
    monitor::*,
    reason::DropReason,
    tables::NAME_PORT,
};

use super::told::Told;
use crate::connections::{
    Names,
    filter::{parse_protocol, parse_range},
    row::has_ports,
};

/// Bytes of a packet in which its ports are, also of one in a tunnel.
const HEADERS: u32 = 128;

/// Flags that choose records: of kinds, any; of the others, all given ones must hold.
#[derive(clap::Args, Clone, Debug)]
pub struct FilterArgs {
    /// Dropped packets
    #[arg(long)]
    pub drops: bool,
    /// Flows that begin, and flows that are forgotten
    #[arg(long)]
    pub flows: bool,
    /// Flows that are translated
    #[arg(long)]
    pub nat: bool,
    /// What security groups have allowed (the first packet of a flow) and refused
    #[arg(long)]
    pub policy: bool,
    /// Of a port, at either end
    #[arg(long, value_name = "NAME")]
    pub port: Option<String>,
    /// With an address, or one of a range, before or after translation
    #[arg(long, value_name = "ADDRESS|CIDR", value_parser = parse_range)]
    pub address: Option<IpNet>,
    /// With a TCP, UDP or SCTP port, before or after translation
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub l4port: Option<u16>,
    /// Of a protocol, by name or number
    #[arg(long, value_name = "PROTOCOL", value_parser = parse_protocol)]
    pub proto: Option<u8>,
    /// Dropped for this reason (several: separated by commas)
    #[arg(long, value_name = "REASON", value_parser = parse_reason, value_delimiter = ',')]
    pub reason: Vec<DropReason>,
    /// One of so many, on each CPU
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    pub sample: u32,
    /// Bytes of each packet to keep (0 to 256)
    #[arg(long, value_name = "BYTES", default_value_t = 128,
          value_parser = clap::value_parser!(u32).range(0..=MONITOR_CAPTURE_MAX as i64))]
    pub capture: u32,
}

/// What is meant, for the kernel and for user space.
#[derive(Debug)]
pub struct Filter {
    /// For the kernel.
    pub set: MonitorSet,
    port: Option<String>,
    address: Option<IpNet>,
    l4port: Option<u16>,
    proto: Option<u8>,
    capture: u32,
}

impl FilterArgs {
    /// Looks the names up.
    pub fn resolve(&self, names: &Names, maps: &Path) -> Result<Filter> {
        let mut set = self.set();
        if let Some(address) = &self.address {
            set.ranges[0] = range(address);
            set.range_count = 1;
        } else if let Some(name) = &self.port {
            let Some(number) = names.identities.number(NAME_PORT, name) else {
                bail!(
                    "there is no port {name} in the topology in force; `vrouter map-dump NAMES` lists what there is"
                );
            };
            let traces = names.traces_of_port(maps, number)?;
            // More of either than the kernel can be told: all of it is looked at here.
            if traces.addresses.len() <= MONITOR_RANGES && traces.interfaces.len() <= 1 {
                set.ifindex = traces.interfaces.first().copied().unwrap_or(0);
                set.range_count = traces.addresses.len() as u32;
                for (range, (_, ip)) in set.ranges.iter_mut().zip(&traces.addresses) {
                    *range = MonitorRange { ip: *ip, mask: Ip([u32::MAX; 4]) };
                }
            }
        }
        let (port, address) = (self.port.clone(), self.address);
        let Self { l4port, proto, capture, .. } = *self;
        Ok(Filter { set, port, address, l4port, proto, capture })
    }

    fn set(&self) -> MonitorSet {
        let mut kinds = 0;
        for (given, kind) in [
            (self.drops || !self.reason.is_empty(), MONITOR_DROP),
            (self.flows, MONITOR_NEW | MONITOR_CLOSED),
            (self.nat, MONITOR_NAT),
            (self.policy, MONITOR_POLICY),
        ] {
            if given {
                kinds |= kind;
            }
        }
        let mut reasons = [0; 4];
        for &reason in &self.reason {
            reasons[reason as usize / 64] |= 1 << (reason as usize % 64);
        }
        // Of what the data path has not read, the packet itself says whether it is meant.
        let by_packet =
            self.port.is_some() || self.address.is_some() || self.l4port.is_some() || self.proto.is_some();
        MonitorSet {
            reasons: if self.reason.is_empty() { [u64::MAX; 4] } else { reasons },
            kinds: if kinds == 0 { u32::MAX } else { kinds },
            sample: self.sample,
            capture: if by_packet { self.capture.max(HEADERS) } else { self.capture },
            proto: self.proto.map_or(MONITOR_ANY, u32::from),
            l4port: Be16::new(self.l4port.unwrap_or(0)),
            ..MonitorSet::default()
        }
    }
}

impl Filter {
    /// What is to be kept of a packet's beginning.
    pub fn keep<'a>(&self, packet: &'a [u8]) -> &'a [u8] {
        packet.get(..self.capture as usize).unwrap_or(packet)
    }

    /// Whether a record is meant: `keys` are its addresses and ports before and after translation.
    pub fn matches(&self, told: &Told, keys: &[FlowKey]) -> bool {
        let Self { set: _, port, address, l4port, proto, capture: _ } = self;
        let is_port =
            |name: &String| [&told.from, &told.to].iter().any(|end| end.port.as_ref() == Some(name));
        port.as_ref().is_none_or(is_port)
            && proto.is_none_or(|proto| keys.iter().any(|key| key.proto == proto && !told.is_arp()))
            && address.is_none_or(|range| {
                let mut ips = keys.iter().flat_map(|key| [key.src, key.dst]);
                ips.any(|ip| range.contains(&IpAddr::from(ip)))
            })
            && l4port.is_none_or(|port| {
                let mut ported = keys.iter().filter(|key| has_ports(key));
                ported.any(|key| [key.sport.get(), key.dport.get()].contains(&port))
            })
    }
}

/// A range as the kernel compares it.
fn range(range: &IpNet) -> MonitorRange {
    let (ip, mask) = (Ip::from(range.network()), Ip::from(range.netmask()));
    // An IPv4 address is the end of four words.
    let Ip([_, _, _, last]) = mask;
    let mask = if range.network().is_ipv4() { Ip([u32::MAX, u32::MAX, u32::MAX, last]) } else { mask };
    MonitorRange { ip, mask }
}

fn parse_reason(text: &str) -> Result<DropReason, String> {
    DropReason::ALL.iter().copied().find(|reason| reason.name().eq_ignore_ascii_case(text)).ok_or_else(|| {
        let known: Vec<_> = DropReason::ALL.iter().map(|reason| reason.name()).collect();
        format!("{text:?} is no reason to drop; there are: {}", known.join(", "))
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Command {
        #[command(flatten)]
        filter: FilterArgs,
    }

    fn args(line: &str) -> Result<FilterArgs, String> {
        let words = std::iter::once("monitor").chain(line.split_whitespace());
        Command::try_parse_from(words).map(|command| command.filter).map_err(|error| error.to_string())
    }

    #[test]
    fn ranges_are_compared_as_packets_have_them() {
        let ip = |text: &str| Ip::from(text.parse::<IpAddr>().expect("an address"));
        for (net, inside, outside) in [
            ("10.0.1.0/24", "10.0.1.255", "10.0.2.0"),
            ("10.0.1.7/32", "10.0.1.7", "10.0.1.6"),
            ("0.0.0.0/0", "203.0.113.1", "fd00::1"),
            ("fd00:1::/64", "fd00:1::b", "fd00:2::b"),
        ] {
            let range = range(&parse_range(net).expect("a range"));
            assert!(range.contains(&ip(inside)), "{inside} in {net}");
            assert!(!range.contains(&ip(outside)), "{outside} not in {net}");
        }
    }

    #[test]
    fn no_kind_given_means_all_and_a_reason_means_drops() {
        assert_eq!(args("").expect("nothing").set().kinds, u32::MAX);
        assert_eq!(
            args("--flows --nat").expect("flags").set().kinds,
            MONITOR_NEW | MONITOR_CLOSED | MONITOR_NAT
        );
        let set = args("--reason spoofed_ip,NO_ROUTE").expect("reasons").set();
        assert_eq!(set.kinds, MONITOR_DROP);
        let is_set =
            |reason: DropReason| set.reasons[reason as usize / 64] >> (reason as usize % 64) & 1 == 1;
        let chosen: Vec<_> = DropReason::ALL.iter().filter(|&&reason| is_set(reason)).collect();
        assert_eq!(chosen, [&DropReason::SpoofedIp, &DropReason::NoRoute]);
    }

    #[test]
    fn a_filter_by_what_packets_say_has_their_headers_read() {
        for (line, asked) in [
            ("--capture 0", 0),
            ("--drops --capture 20", 20),
            ("--capture 0 --address 10.0.1.0/24", HEADERS),
            ("--capture 20 --l4port 53", HEADERS),
            ("--capture 20 --proto udp", HEADERS),
            ("--capture 20 --port vm1", HEADERS),
            ("--capture 200 --proto udp", 200),
        ] {
            assert_eq!(args(line).expect(line).set().capture, asked, "{line}");
        }
        let args = args("--capture 20 --proto udp").expect("flags");
        let names = Names::default();
        let filter = args.resolve(&names, Path::new("/nowhere")).expect("no names");
        assert_eq!(filter.keep(&[7; 128]), [7; 20]);
        assert_eq!(filter.keep(&[7; 14]), [7; 14]);
    }

    #[test]
    fn what_cannot_be_meant_is_refused_with_what_can() {
        for (line, complaint) in [
            ("--reason bad_luck", "policy_ingress"),
            ("--sample 0", "1.."),
            ("--capture 257", "0..=256"),
            ("--proto tpc", "icmp, tcp"),
            ("--address 10.0.1", "neither an address nor a range"),
        ] {
            let error = args(line).expect_err(line);
            assert!(error.contains(complaint), "{line}: {error}");
        }
    }
}

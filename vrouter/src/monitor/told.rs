//! A record in the topology's names, for people and for programs.

use std::{
    collections::{BTreeSet, HashMap},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use anyhow::Result;
use serde::Serialize;
use vrouter_common::{
    addr::Ip,
    flow::{FROM_NETWORK, FROM_PORT, Flow, FlowKey},
    monitor::*,
    reason::DropReason,
    tables::*,
};

use super::packet::{self, Outer};
use crate::{
    banks,
    connections::{
        Names,
        names::End,
        row::{Tuple, protocol},
    },
    kernel::Map,
};

/// Networks looked through for who has an address.
const NETWORKS: usize = 64;

/// Something that happened, in the topology's names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Told {
    pub time: String,
    /// `dropped`, `new` or `closed`.
    pub what: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<String>,
    /// The packet as it came in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub original: Option<Tuple>,
    /// As it leaves, if that is another.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub translated: Option<Tuple>,
    pub from: End,
    pub to: End,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub router: Option<String>,
    /// The rule that allowed it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// The interface it came in by.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// `tc` or `xdp`.
    pub hook: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub length: Option<u32>,
    /// The beginning of the packet, in hexadecimal digits.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub packet: String,
    /// What a flow that is forgotten has carried.
    #[serde(flatten)]
    pub carried: Option<Carried>,
}

/// What a flow has carried.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Carried {
    pub original_packets: u64,
    pub original_bytes: u64,
    pub reply_packets: u64,
    pub reply_bytes: u64,
    pub seconds: u64,
}

/// Puts names to records.
pub struct Teller {
    maps: PathBuf,
    banks: banks::Maps,
    addresses: Map<AddressKey, Station>,
    epoch: u32,
    names: Names,
    ticks_per_second: u32,
    interfaces: HashMap<u32, String>,
}

impl Teller {
    /// Reads the names.
    pub fn open(maps: &Path, ticks_per_second: u32) -> Result<Self> {
        let banks = banks::Maps::open(maps)?;
        Ok(Self {
            epoch: banks.commit()?.epoch,
            banks,
            addresses: Map::open(maps, "ADDRESSES")?,
            names: Names::read(maps)?,
            ticks_per_second: ticks_per_second.max(1),
            interfaces: HashMap::new(),
            maps: maps.to_owned(),
        })
    }

    /// The names as they were last read.
    pub fn names(&self) -> &Names {
        &self.names
    }

    /// Reads them again if there are others.
    pub fn refresh(&mut self) -> Result<()> {
        let epoch = self.banks.commit()?.epoch;
        if epoch != self.epoch {
            self.names = Names::read(&self.maps)?;
            self.interfaces.clear();
            self.epoch = epoch;
        }
        Ok(())
    }

    /// A record in names, and its addresses and ports before and after translation. What is known of the packet may
    /// be in `frame` alone; whether it is kept is another matter ([`Told::set_packet`]).
    pub fn tell(&mut self, record: &MonitorRecord, frame: &[u8], time: SystemTime) -> (Told, Vec<FlowKey>) {
        let record = &placed(&self.names, record, frame);
        let known = u32::from(record.known);
        let said = (known < MONITOR_KNOWN_PACKET)
            .then(|| packet::read(frame.get(record.at as usize..).unwrap_or_default()))
            .flatten();
        let arp = said.as_ref().is_some_and(|said| said.arp);
        let key = match (&said, known >= MONITOR_KNOWN_PACKET) {
            (_, true) => Some(record.key),
            (Some(said), false) => Some(FlowKey { zone: record.key.zone, from: record.key.from, ..said.key }),
            (None, false) => None,
        };
        let translated = key.filter(|_| known == MONITOR_KNOWN_DECISION).map(|key| FlowKey {
            src: record.src,
            dst: record.dst,
            sport: record.sport,
            dport: record.dport,
            ..key
        });
        let reason = DropReason::ALL.iter().copied().find(|&reason| reason as u8 == record.reason);
        let what = match record.kinds {
            kinds if kinds & MONITOR_DROP != 0 => "dropped",
            kinds if kinds & MONITOR_CLOSED != 0 => "closed",
            _ => "new",
        };
        let carried = (what == "closed").then(|| Carried {
            original_packets: record.packets,
            original_bytes: record.bytes,
            reply_packets: record.reply_packets,
            reply_bytes: record.reply_bytes,
            seconds: u64::from(record.ticks / self.ticks_per_second),
        });
        let (from, to) = self.ends(record, key.as_ref(), translated.as_ref());
        let told = Told {
            time: humantime::format_rfc3339_micros(time).to_string(),
            what,
            reason: reason.map(DropReason::name),
            description: reason.map(|reason| reason.describe().trim()),
            protocol: key.map(|key| match protocol(key.proto) {
                _ if arp => "arp".to_owned(),
                Some(name) => name.to_owned(),
                None => key.proto.to_string(),
            }),
            original: key.map(|key| Tuple::new(&key)),
            translated: translated.filter(|it| Some(it) != key.as_ref()).map(|it| Tuple::new(&it)),
            from,
            to,
            router: self.names.name(NAME_ROUTER, record.router),
            rule: self.names.name(NAME_RULE, record.rule),
            interface: (record.ifindex != 0).then(|| self.interface(record.ifindex)),
            hook: if record.xdp != 0 { "xdp" } else { "tc" },
            length: (record.len != 0).then_some(record.len),
            packet: String::new(),
            carried,
        };
        (told, key.into_iter().chain(translated).collect())
    }

    /// Whom a packet is from, and to.
    fn ends(
        &self,
        record: &MonitorRecord,
        key: Option<&FlowKey>,
        translated: Option<&FlowKey>,
    ) -> (End, End) {
        let names = &self.names;
        let network = match key {
            _ if record.network != 0 => record.network,
            _ if u32::from(record.known) < MONITOR_KNOWN_PLACE => self.network_of_interface(record.ifindex),
            Some(key) if key.from == FROM_PORT => self.network_of_interface(key.zone),
            _ => names.vnis.get(&record.key.zone).copied().unwrap_or(0),
        };
        let flow = Flow {
            network,
            in_vtep: record.vtep,
            network_out: if record.network_out != 0 { record.network_out } else { network },
            exit: record.exit,
            target: record.target,
            ..Flow::default()
        };
        let mut from = if u32::from(record.known) >= MONITOR_KNOWN_PLACE {
            names.source(&record.key, &flow)
        } else if names.bindings.contains_key(&record.ifindex) {
            names.source(&FlowKey { zone: record.ifindex, from: FROM_PORT, ..FlowKey::default() }, &flow)
        } else {
            End::default()
        };
        let mut to = names.destination(&flow);
        if from.port.is_none()
            && let Some(key) = key
        {
            from.port = self.owner(network, &key.src).map(|(_, port)| port);
        }
        if to.port.is_none()
            && let Some(key) = translated.or(key)
            && let Some((network, port)) =
                self.owner(flow.network_out, &key.dst).or_else(|| self.owner_beyond(network, &key.dst))
        {
            to.network = names.name(NAME_NETWORK, network);
            to.port = Some(port);
        }
        (from, to)
    }

    fn network_of_interface(&self, ifindex: u32) -> u32 {
        self.names.bindings.get(&ifindex).map_or(0, |binding| binding.network)
    }

    /// The network and name of the port that has an address.
    fn owner(&self, network: u32, ip: &Ip) -> Option<(u32, String)> {
        if network == 0 {
            return None;
        }
        let bank = self.banks.commit().ok()?.bank();
        let key = AddressKey { network: Scoped::new(bank, network), ip: *ip };
        let station = self.addresses.lookup(&key).ok()??;
        let port = self.names.name(NAME_PORT, station.owner)?;
        (station.kind == STATION_PORT).then_some((network, port))
    }

    /// The same on the networks that routers join to one.
    fn owner_beyond(&self, network: u32, ip: &Ip) -> Option<(u32, String)> {
        let legs = &self.names.legs;
        let routers: BTreeSet<u32> =
            legs.keys().filter(|(_, on)| *on == network).map(|&(router, _)| router).collect();
        let joined: BTreeSet<u32> =
            legs.keys().filter(|(router, _)| routers.contains(router)).map(|&(_, on)| on).collect();
        joined.into_iter().take(NETWORKS).find_map(|network| self.owner(network, ip))
    }

    fn interface(&mut self, ifindex: u32) -> String {
        let name = || {
            nix::net::if_::if_indextoname(ifindex)
                .map_or_else(|_| format!("ifindex {ifindex}"), |name| name.to_string_lossy().into_owned())
        };
        self.interfaces.entry(ifindex).or_insert_with(name).clone()
    }
}

/// What came in by the underlay and was dropped before anything was read of it: where it is from, and where in it its
/// own frame is.
fn placed(names: &Names, record: &MonitorRecord, frame: &[u8]) -> MonitorRecord {
    let is_unread = u32::from(record.known) == MONITOR_KNOWN_NOTHING;
    // What a workload sends to that port is its own.
    let is_from_port = names.bindings.contains_key(&record.ifindex);
    let outer = if is_unread && !is_from_port { packet::outer(frame) } else { None };
    let Some(Outer { vtep, vni, at }) = outer else { return *record };
    let mut record = MonitorRecord { vtep, at, known: MONITOR_KNOWN_PLACE as u8, ..*record };
    (record.key.from, record.key.zone) = (FROM_NETWORK, vni);
    record
}

impl Told {
    /// Whether the packet is ARP.
    pub fn is_arp(&self) -> bool {
        self.protocol.as_deref() == Some("arp")
    }

    /// Has it carry the beginning of its packet.
    pub fn set_packet(&mut self, packet: &[u8]) {
        self.packet = packet.iter().map(|byte| format!("{byte:02x}")).collect();
    }

    /// From whom to whom, as far as is known.
    pub fn way(&self) -> String {
        let [from, to] = [&self.from, &self.to].map(|end| match end.for_people() {
            unknown if unknown.is_empty() => "?".to_owned(),
            known => known,
        });
        format!("{from} -> {to}")
    }

    /// The interface, or better the port behind it.
    pub fn place(&self) -> String {
        let port = self.from.port.clone().filter(|_| self.from.node.is_none());
        port.or_else(|| self.interface.clone()).unwrap_or_else(|| "unknown".to_owned())
    }

    /// What became of it, in one sentence.
    pub fn outcome(&self) -> String {
        match (self.reason, self.description, &self.carried) {
            (Some(reason), Some(description), _) => format!("{}: {reason}: {description}", self.what),
            (_, _, Some(carried)) => format!(
                "{}: {}/{} packets, {}/{} bytes, {}",
                self.what,
                carried.original_packets,
                carried.reply_packets,
                carried.original_bytes,
                carried.reply_bytes,
                humantime::format_duration(Duration::from_secs(carried.seconds)),
            ),
            _ => {
                let rule = self.rule.as_ref().map(|rule| format!(" rule {rule}"));
                let router = self.router.as_ref().map(|router| format!(" router {router}"));
                let details = [rule, router].into_iter().flatten().collect::<String>();
                format!("{}{}{details}", self.what, if details.is_empty() { "" } else { ":" })
            }
        }
    }

    /// A line for people.
    pub fn line(&self) -> String {
        let mut line = format!("{}  {}", self.time, self.protocol.as_deref().unwrap_or("?"));
        if let Some(original) = &self.original {
            line += &format!(" {}", original.for_people());
        }
        if let Some(translated) = &self.translated {
            line += &format!(" as {} > {}", translated.source(), translated.destination());
        }
        format!("{line}  {}  {}", self.way(), self.outcome())
    }
}

#[cfg(test)]
mod tests {
    use vrouter_common::addr::Be32;

    use super::*;

    #[test]
    fn what_another_node_sent_is_read_within_its_tunnel() {
        let mut frame = Vec::new();
        etherparse::PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
            .ipv4([192, 0, 2, 1], [192, 0, 2, 2], 64)
            .udp(50_000, 4789)
            .write(&mut frame, &[8, 0, 0, 0, 0, 0x1b, 0x58, 0, 9, 9])
            .expect("memory");
        let names = Names { bindings: HashMap::from([(7, Binding::default())]), ..Names::default() };
        let on = |ifindex| MonitorRecord { ifindex, kinds: MONITOR_DROP, ..MonitorRecord::default() };
        let uplink = placed(&names, &on(3), &frame);
        assert_eq!((u32::from(uplink.known), uplink.at), (MONITOR_KNOWN_PLACE, 50));
        assert_eq!((uplink.key.from, uplink.key.zone), (FROM_NETWORK, 7000));
        assert_eq!(uplink.vtep, Be32::new(0xc000_0201));
        assert_eq!(placed(&names, &on(7), &frame), on(7), "a workload's own");
        let known = MonitorRecord { known: MONITOR_KNOWN_PLACE as u8, ..on(3) };
        assert_eq!(placed(&names, &known, &frame), known);
        assert_eq!(placed(&names, &on(3), &frame[..40]), on(3));
    }
}

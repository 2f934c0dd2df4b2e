//! Who claims an address that the topology leaves open: of an allowed address pair, or of a port that is bound
//! nowhere (behaviour L4). ARP and ND of such addresses are flooded, so every node that has the network, or a
//! router to it, hears the claim.
//!
//! Reads: stations. Writes: what was learned. Drops: nothing. Whether a port may claim what it claims was
//! checked where it came in ([`crate::admit`]).

use crate::{
    addr::Ip,
    parse::Headers,
    plan::{Ingress, Plan},
    tables::*,
};

/// Notes that `ip` is at `mac` on `network`, where the packet came from.
#[inline(always)]
pub fn claim<T: Tables>(tables: &T, ingress: &Ingress, network: u32, ip: Ip, mac: [u8; 6], plan: &mut Plan) {
    if ip.is_unspecified() || ip.is_multicast() || mac[0] & 1 != 0 {
        return;
    }
    if let Some(station) = tables.address(&AddressKey::new(plan.bank, network, ip))
        && station.place != PLACE_UNBOUND
    {
        return;
    }
    let Some(station) = sender(tables, ingress, mac, plan) else { return };
    note(tables, &LearnedKey { network, ip }, &station, plan);
}

/// Notes where a hardware address is that is no port's own.
#[inline(always)]
pub fn mac<T: Tables>(tables: &T, ingress: &Ingress, network: u32, headers: &Headers, plan: &mut Plan) {
    let mac = headers.macs.src();
    if tables.fdb(&FdbKey::new(plan.bank, network, mac)).is_some() {
        return;
    }
    let Some(station) = sender(tables, ingress, mac, plan) else { return };
    note(tables, &LearnedKey::mac(network, mac), &station, plan);
}

#[inline(always)]
fn sender<T: Tables>(tables: &T, ingress: &Ingress, mac: [u8; 6], plan: &Plan) -> Option<Station> {
    if !ingress.tunnelled() {
        let own = FdbKey::new(plan.bank, plan.binding.network, plan.binding.mac);
        let port = tables.fdb(&own)?;
        return Some(Station { mac, ..*port });
    }
    let key = VtepKey { bank: Scoped::new(plan.bank, 0), addr: ingress.vtep };
    let node = tables.vtep(&key)?;
    Some(Station { mac, kind: STATION_PORT, place: PLACE_REMOTE, at: node, owner: 0 })
}

#[inline(always)]
fn note<T: Tables>(tables: &T, key: &LearnedKey, station: &Station, plan: &mut Plan) {
    if let Some(before) = tables.learned(key) {
        if before.station == *station {
            return;
        }
        // It moved: what was decided for the old place is decided again.
        tables.expire_network(key.network);
    }
    tables.store_learned(key, &Learned::at(*station));
    plan.moved = key.network;
}

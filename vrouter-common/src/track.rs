//! Stages 3a and 3f: what is known of a packet's connection, and remembering what was decided.
//!
//! A connection is two entries, its legs. The first packet makes both: its own leg, and the reply's, which
//! says only that a reply is expected and how it is translated. Both begin in the table of transient
//! entries, where the least recently used give way, so that a flood of first packets costs only its own
//! kind. The first reply moves them to the table of answered flows, where nothing is ever evicted: if that is
//! full, the reply is refused.
//!
//! Making the reply's leg is also what reserves a translated tuple: it is stored only if no entry has its
//! key, so that no two connections ever share one (N1).
//!
//! Drops: `flow_table_full`, `snat_exhausted`, `nat_clash`, `tcp_unrelated`, `fragment_*`.

use crate::{
    addr::Be16,
    checksum,
    flow::*,
    parse::{Headers, Quoted},
    plan::{Decision, Ingress, KNOWN_ANSWERED, KNOWN_NOWHERE, KNOWN_TRANSIENT, Plan, ROLE_RELATED},
    reason::{DropReason, Event},
    tables::*,
    wire::*,
};

/// Ports tried for a translation at the most.
pub const TRIES_MAX: u32 = 128;
/// Ports tried in one block before the next.
const TRIES_PER_BLOCK: u32 = 32;
/// Packets after which an unanswered flow is taken for a stream nobody answers, and kept with the answered.
const STREAM_PACKETS: u64 = 64;
/// The most bytes of an IP datagram, without its header's options.
const DATAGRAM_MAX: u32 = 65535;

/// Finds what is known of the packet's connection.
#[inline(always)]
pub fn recall<T: Tables>(tables: &T, ingress: &Ingress, headers: &Headers, quoted: &Quoted, plan: &mut Plan) {
    plan.role = ROLE_NONE;
    plan.known_in = KNOWN_NOWHERE;
    plan.tuple = headers.tuple();
    plan.known_key = plan.tuple.key(ingress.from, ingress.zone);
    if headers.arp {
        return;
    }
    if headers.is_icmp_error() {
        // It travels as the replies to what it quotes, back to that packet's source.
        if quoted.known && quoted.tuple.src == headers.dst {
            plan.known_key = quoted.tuple.reversed().key(ingress.from, ingress.zone);
            look(tables, plan);
            if plan.known_in != KNOWN_NOWHERE {
                plan.role = ROLE_RELATED;
            }
        }
        return;
    }
    if plan.unknown {
        return;
    }
    look(tables, plan);
    if plan.known_in == KNOWN_NOWHERE {
        return;
    }
    const SYN: u8 = TCP_SYN | TCP_ACK | TCP_RST;
    if headers.proto == PROTO_TCP
        && headers.tcp_flags & SYN == TCP_SYN
        && plan.known.tcp_flags & (TCP_FIN | TCP_RST) != 0
    {
        // Another connection begins with the ports of one that ended.
        forget(tables, plan);
        return;
    }
    plan.role = plan.known.role;
}

/// Copies the leg with `plan.known_key`, if it is a connection's.
#[inline(always)]
fn look<T: Tables>(tables: &T, plan: &mut Plan) {
    let (found, place) = match tables.flow(&plan.known_key) {
        Some(flow) => (Some(flow), KNOWN_ANSWERED),
        None => (tables.transient(&plan.known_key), KNOWN_TRANSIENT),
    };
    if let Some(flow) = found
        && flow.role != ROLE_NONE
    {
        plan.known = *flow;
        if plan.known.tag == plan.known_key.tag() && plan.known.tag_end == plan.known.tag {
            plan.known_in = place;
        }
    }
}

/// Removes both legs of the known connection.
#[inline(always)]
fn forget<T: Tables>(tables: &T, plan: &mut Plan) {
    let peer = plan.known.peer_key(&plan.known_key);
    let table = table_of(plan.known_in);
    let there = match table {
        FlowTable::Flows => tables.flow(&peer),
        FlowTable::Transient => tables.transient(&peer),
    };
    // If the other leg was evicted, its key may be another connection's by now.
    let its_own = there.is_some_and(|there| there.peer_key(&peer) == plan.known_key);
    tables.remove(table, &plan.known_key);
    if its_own {
        tables.remove(table, &peer);
    }
    plan.known_in = KNOWN_NOWHERE;
}

#[inline(always)]
const fn table_of(known_in: u8) -> FlowTable {
    if known_in == KNOWN_ANSWERED { FlowTable::Flows } else { FlowTable::Transient }
}

/// Fills in the ports of a later fragment from its first, and notes where the datagram has come to
/// (behaviour R7). Fragments must come in order: one that begins before the end of what was seen would
/// overwrite it.
#[inline(always)]
pub fn reassemble<T: Tables>(tables: &T, ingress: &Ingress, headers: &mut Headers) -> Result<(), DropReason> {
    if !headers.fragment || headers.arp {
        return Ok(());
    }
    let key = FragmentKey {
        src: headers.src,
        dst: headers.dst,
        zone: ingress.zone,
        id: headers.fragment_id,
        proto: headers.proto,
        from: ingress.from,
        zero: 0,
    };
    let len = headers.l4_len() as u32;
    let end = headers.fragment_at + len;
    if end > DATAGRAM_MAX {
        return Err(DropReason::FragmentTooLong);
    }
    if headers.more_fragments && (len & 7 != 0 || len == 0) {
        return Err(DropReason::FragmentTiny);
    }
    if !headers.later_fragment {
        // RFC 1858, RFC 5722: what a transport header says must be in the first fragment, whole.
        if headers.proto == PROTO_TCP && len < 20 {
            return Err(DropReason::FragmentTiny);
        }
        let (end, largest) = (end as u16, headers.l3_len);
        let first = Fragment { sport: headers.sport, dport: headers.dport, end, largest };
        tables.store_fragment(&key, &first);
        return Ok(());
    }
    if headers.fragment_at < 16 && headers.proto == PROTO_TCP {
        return Err(DropReason::FragmentTiny);
    }
    let Some(seen) = tables.fragment(&key) else {
        return Err(DropReason::FragmentUnmatched);
    };
    if headers.fragment_at < seen.end as u32 {
        return Err(DropReason::FragmentOverlap);
    }
    headers.sport = seen.sport;
    headers.dport = seen.dport;
    headers.largest_fragment = if headers.l3_len > seen.largest { headers.l3_len } else { seen.largest };
    tables.store_fragment(&key, &Fragment { end: end as u16, largest: headers.largest_fragment, ..seen });
    Ok(())
}

/// What is left to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Settled {
    /// Nothing.
    Done,
    /// [`crate::pipeline::reserve`] the reply's leg, then [`finish`].
    Reserve,
    /// [`finish`].
    Finish,
}

/// Remembers a decision to forward.
#[inline(always)]
pub fn settle<T: Tables>(
    tables: &T,
    ingress: &Ingress,
    headers: &Headers,
    plan: &mut Plan,
    decision: Decision,
    counted: bool,
) -> Result<Settled, DropReason> {
    if headers.arp || plan.role == ROLE_RELATED || headers.is_icmp_error() || headers.is_neighbour_discovery()
    {
        translation(headers, plan);
        return Ok(Settled::Done);
    }
    plan.key = plan.own_key(headers, ingress);
    let now = tables.now();
    let flow = &mut plan.flow;
    flow.tag = plan.key.tag();
    flow.tag_end = flow.tag;
    flow.seen = now;
    flow.created = now;
    flow.packets = counted as u64;
    flow.bytes = if counted { headers.frame_len() } else { 0 };
    flow.tcp_flags = headers.tcp_flags & (TCP_FIN | TCP_SYN | TCP_RST | TCP_ACK);
    if plan.known_in != KNOWN_NOWHERE {
        flow.created = plan.known.created;
        flow.packets += plan.known.packets;
        flow.bytes += plan.known.bytes;
        flow.tcp_flags |= plan.known.tcp_flags;
    }
    if plan.role == ROLE_REPLY {
        reply(tables, headers, plan)?;
        return Ok(Settled::Done);
    }
    let translated = plan.snat || plan.tuple != headers.tuple();
    let stateful = plan.flow.flags & (FLOW_STATEFUL_OUT | FLOW_STATEFUL_IN) != 0;
    if !translated && !stateful && plan.known_in == KNOWN_NOWHERE || plan.reply_from == REPLY_NOWHERE {
        put(&mut plan.flow, &headers.tuple());
        if decision == Decision::Forward
            && tables.store(FlowTable::Transient, &plan.key, &plan.flow, Store::Any).is_err()
        {
            tables.count(Event::FlowNotStored);
        }
        return Ok(Settled::Done);
    }
    original(tables, headers, plan)
}

/// [`Plan::reply_from`]: replies do not come by here, or not as replies.
pub const REPLY_NOWHERE: u32 = u32::MAX;

/// What the plan does to the packet's addresses, in the flow's terms.
#[inline(always)]
fn translation(headers: &Headers, plan: &mut Plan) {
    if plan.role == ROLE_RELATED {
        // Applied by itself: see `translate::error`.
        plan.flow.src = plan.tuple.src;
        plan.flow.dst = plan.tuple.dst;
        return;
    }
    translate_to(&mut plan.flow, &headers.tuple(), &plan.tuple);
}

#[inline(always)]
fn put(flow: &mut Flow, tuple: &Tuple) {
    flow.src = tuple.src;
    flow.dst = tuple.dst;
    flow.sport = tuple.sport;
    flow.dport = tuple.dport;
}

/// Sets the translated tuple, and what it changes in sums.
#[inline(always)]
fn translate_to(flow: &mut Flow, from: &Tuple, to: &Tuple) {
    put(flow, to);
    let addresses = checksum::add_ip(checksum::add_ip(0, &to.src), &to.dst);
    let gone = checksum::add_ip(checksum::add_ip(0, &from.src), &from.dst);
    flow.l3_delta = checksum::difference(addresses, gone);
    let ports = to.sport.memory() as u32 + to.dport.memory() as u32;
    let gone = from.sport.memory() as u32 + from.dport.memory() as u32;
    flow.l4_delta = checksum::difference(ports, gone);
    if from != to {
        flow.flags |= FLOW_NAT;
    }
}

/// Settles a reply: its leg is known; if this is the first, the connection is answered.
#[inline(always)]
fn reply<T: Tables>(tables: &T, headers: &Headers, plan: &mut Plan) -> Result<(), DropReason> {
    let known = &plan.known;
    plan.tuple.src = known.src;
    plan.tuple.dst = known.dst;
    plan.tuple.sport = known.sport;
    plan.tuple.dport = known.dport;
    translate_to(&mut plan.flow, &headers.tuple(), &plan.tuple);
    plan.flow.role = ROLE_REPLY;
    plan.flow.flags |= known.flags & (FLOW_STATEFUL_OUT | FLOW_STATEFUL_IN | FLOW_SNAT);
    plan.flow.peer_from = known.peer_from;
    plan.flow.peer_zone = known.peer_zone;
    plan.flow.rule = known.rule;
    plan.flow.router = known.router;
    if plan.known_in == KNOWN_ANSWERED {
        store(tables, plan);
        return Ok(());
    }
    plan.reply_key = plan.flow.peer_key(&plan.key);
    let Some(original) = tables.transient(&plan.reply_key) else {
        // Evicted; its next packet makes it again, and finds this leg.
        return Ok(());
    };
    if original.peer_key(&plan.reply_key) != plan.key {
        // Evicted and made again with another port: this leg is of the one before, and not answered by its
        // replies.
        return Ok(());
    }
    plan.peer = *original;
    if !both(tables, plan) {
        return Err(DropReason::FlowTableFull);
    }
    tables.count(Event::FlowAnswered);
    Ok(())
}

/// Moves both legs to the table of answered flows.
#[inline(always)]
fn both<T: Tables>(tables: &T, plan: &Plan) -> bool {
    if tables.store(FlowTable::Flows, &plan.reply_key, &plan.peer, Store::Any).is_err() {
        return false;
    }
    if tables.store(FlowTable::Flows, &plan.key, &plan.flow, Store::Any).is_err() {
        tables.remove(FlowTable::Flows, &plan.reply_key);
        return false;
    }
    tables.remove(FlowTable::Transient, &plan.reply_key);
    tables.remove(FlowTable::Transient, &plan.key);
    true
}

#[inline(always)]
fn store<T: Tables>(tables: &T, plan: &Plan) {
    if tables.store(FlowTable::Flows, &plan.key, &plan.flow, Store::Any).is_err() {
        tables.count(Event::FlowNotStored);
    }
}

/// Settles a packet of the original direction: the first, or one that had to be decided again.
#[inline(always)]
fn original<T: Tables>(tables: &T, headers: &Headers, plan: &mut Plan) -> Result<Settled, DropReason> {
    plan.flow.role = ROLE_ORIGINAL;
    plan.flow.peer_from = plan.reply_from as u8;
    plan.flow.peer_zone = plan.reply_zone;
    if plan.snat {
        plan.flow.flags |= FLOW_SNAT;
    }
    if plan.known_in == KNOWN_NOWHERE && headers.proto == PROTO_TCP && headers.tcp_flags & TCP_RST != 0 {
        return Err(DropReason::TcpUnrelated);
    }
    if plan.known_in != KNOWN_NOWHERE {
        plan.reply_key = plan.known.peer_key(&plan.key);
        let there = match plan.known_in {
            KNOWN_ANSWERED => tables.flow(&plan.reply_key),
            _ => tables.transient(&plan.reply_key),
        };
        let paired = match there {
            Some(there) => there.role == ROLE_REPLY && there.peer_key(&plan.reply_key) == plan.key,
            None => false,
        };
        let same = plan.known.src == plan.tuple.src
            && plan.known.dst == plan.tuple.dst
            && plan.known.sport == plan.tuple.sport
            && plan.known.dport == plan.tuple.dport
            && plan.known.peer_from == plan.flow.peer_from
            && plan.known.peer_zone == plan.flow.peer_zone;
        if paired && same {
            return Ok(Settled::Finish);
        }
        if paired {
            tables.remove(table_of(plan.known_in), &plan.reply_key);
        }
    }
    // The reply's leg: the way back, expected.
    plan.reply_key = plan.tuple.reversed().key(plan.flow.peer_from, plan.flow.peer_zone);
    if plan.reply_key == plan.key {
        // To oneself, from the port it goes to: both directions are one.
        return Ok(Settled::Finish);
    }
    plan.peer = Flow::default();
    plan.peer.role = ROLE_REPLY;
    plan.peer.flags = plan.flow.flags & (FLOW_STATEFUL_OUT | FLOW_STATEFUL_IN | FLOW_SNAT);
    plan.peer.created = plan.flow.created;
    plan.peer.seen = plan.flow.seen;
    plan.peer.rule = plan.flow.rule;
    plan.peer.router = plan.flow.router;
    plan.peer.peer_from = plan.key.from;
    plan.peer.peer_zone = plan.key.zone;
    put(&mut plan.peer, &headers.tuple().reversed());
    Ok(Settled::Reserve)
}

/// Settles what [`settle`] left: stores the packet's own leg.
#[inline(always)]
pub fn finish<T: Tables>(tables: &T, headers: &Headers, plan: &mut Plan) {
    translate_to(&mut plan.flow, &headers.tuple(), &plan.tuple);
    if plan.listener != 0 && plan.known_in == KNOWN_NOWHERE && plan.flow.packets != 0 {
        tables.count_balanced(plan.listener, plan.member);
    }
    if plan.known_in == KNOWN_ANSWERED {
        return store(tables, plan);
    }
    if plan.flow.packets >= STREAM_PACKETS {
        // A stream that nobody answers.
        if let Some(expected) = tables.transient(&plan.reply_key) {
            plan.peer = *expected;
            if both(tables, plan) {
                return;
            }
        }
    }
    // Not for the fast path: whether both legs are still there is asked at every packet.
    let epoch = plan.flow.epoch;
    plan.flow.epoch = 0;
    if tables.store(FlowTable::Transient, &plan.key, &plan.flow, Store::Any).is_err() {
        tables.count(Event::FlowNotStored);
    }
    plan.flow.epoch = epoch;
}

/// The ports to try for a translation, one after the other: first the sender's own, if it is in the block
/// where that would be, then from some place in this node's blocks on.
#[derive(Clone, Copy, Debug)]
pub struct Search {
    key: SnatBlockKey,
    blocks: u32,
    hash: u32,
    own: u16,
    block: SnatBlock,
    tried: u32,
    /// The ports are the other side's: any will do.
    any: bool,
}

impl Search {
    /// For the packet of a plan that asks for one.
    #[inline(always)]
    pub fn new<T: Tables>(tables: &T, headers: &Headers, plan: &Plan) -> Self {
        Self {
            key: SnatBlockKey {
                router: Scoped::new(plan.bank, plan.leaves_by),
                network: plan.leaves_on,
                slot: 0,
            },
            blocks: plan.snat_blocks,
            hash: headers.tuple_hash() ^ tables.now().wrapping_mul(0x9e37_79b1),
            own: plan.tuple.sport.get(),
            block: SnatBlock { first: 1, last: 0 },
            tried: 0,
            any: !plan.snat,
        }
    }

    /// The next port; 0: none to be tried this time.
    #[inline(always)]
    pub fn next<T: Tables>(&mut self, tables: &T) -> u16 {
        let tried = self.tried;
        self.tried += 1;
        if self.any {
            self.block = SnatBlock { first: 1024, last: u16::MAX };
        } else if tried == 0 || tried & (TRIES_PER_BLOCK - 1) == 1 {
            self.key.slot = if tried == 0 {
                let own = (self.own as u32 / SNAT_BLOCK).saturating_sub(1);
                if own < self.blocks { own } else { 0 }
            } else {
                let blocks = if self.blocks == 0 { 1 } else { self.blocks };
                (self.hash >> 16).wrapping_add(tried / TRIES_PER_BLOCK) % blocks
            };
            self.block = match tables.snat_block(&self.key) {
                Some(block) => *block,
                None => SnatBlock { first: 1, last: 0 },
            };
        }
        let (first, last) = (self.block.first, self.block.last);
        if first > last {
            return 0;
        }
        if tried == 0 {
            return if self.own < first || self.own > last { 0 } else { self.own };
        }
        let size = (last - first) as u32 + 1;
        first.wrapping_add((self.hash.wrapping_add(tried) % size) as u16)
    }
}

/// When a port is chosen for the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// Never: it is as it is.
    Never,
    /// If the connection would else be the same as another, as can be where a workload is reached by more
    /// than one address: then its peer's port changes, as Linux does it.
    IfTaken,
    /// Always: the address is shared.
    Always,
}

/// When one is chosen for the plan's packet.
#[inline(always)]
pub fn choice(plan: &Plan) -> Choice {
    match plan.key.proto {
        PROTO_TCP | PROTO_UDP | PROTO_ICMP if plan.snat => Choice::Always,
        PROTO_TCP | PROTO_UDP if plan.tuple.dst != plan.key.dst => Choice::IfTaken,
        _ => Choice::Never,
    }
}

/// Counts a search that ended.
#[inline(always)]
pub fn searched<T: Tables>(tables: &T, tried: u32, found: bool) -> Result<(), DropReason> {
    if found {
        tables.count_tries(bucket(tried));
        Ok(())
    } else {
        tables.count_tries(NAT_TRIES_BUCKETS - 1);
        Err(DropReason::SnatExhausted)
    }
}

/// 1, 2, 3-4, 5-8, ... 65-128.
#[inline(always)]
const fn bucket(tried: u32) -> u32 {
    let tried = if tried > TRIES_MAX { TRIES_MAX } else { tried };
    32 - tried.saturating_sub(1).leading_zeros()
}

/// Stores the reply's leg under a key nobody has: the translated tuple is this connection's then, and no
/// other's. `port`: the one to try, 0: as it is. False: try another.
#[inline(always)]
pub fn claim<T: Tables>(tables: &T, plan: &mut Plan, port: u16) -> Result<bool, DropReason> {
    if port != 0 {
        if plan.key.proto == PROTO_ICMP {
            plan.reply_key.sport = Be16::new(port);
        } else {
            plan.reply_key.dport = Be16::new(port);
        }
    }
    plan.peer.tag = plan.reply_key.tag();
    plan.peer.tag_end = plan.peer.tag;
    // An ICMP error may be translated by it before the first reply is.
    let to = plan.peer.translated(&plan.reply_key);
    translate_to(&mut plan.peer, &plan.reply_key.tuple(), &to);
    let table = if plan.known_in == KNOWN_ANSWERED { FlowTable::Flows } else { FlowTable::Transient };
    // Its own port is nearly always free; of others, those of answered connections should cost no more than a look.
    let is_likely_free = port == 0 || plan.key.sport == Be16::new(port);
    match claim_in(tables, table, &plan.reply_key, &plan.peer, is_likely_free) {
        Ok(()) => {
            if port != 0 {
                plan.tuple.sport = Be16::new(port);
            }
            Ok(true)
        }
        Err(StoreError::Full) => Err(DropReason::FlowTableFull),
        Err(StoreError::Exists) if port != 0 => Ok(false),
        Err(StoreError::Exists) => clash(tables, table, plan),
    }
}

/// Stores a leg if neither table has its key. An entry that moves from one table to the other is in both for
/// a moment, so the other is asked after storing: then whoever came first has it.
#[inline(always)]
fn claim_in<T: Tables>(
    tables: &T,
    table: FlowTable,
    key: &FlowKey,
    leg: &Flow,
    is_likely_free: bool,
) -> Result<(), StoreError> {
    let is_there = |other: FlowTable| match other {
        FlowTable::Flows => tables.flow(key).is_some(),
        FlowTable::Transient => tables.transient(key).is_some_and(|there| there.role != ROLE_NONE),
    };
    let other = match table {
        FlowTable::Flows => FlowTable::Transient,
        FlowTable::Transient => FlowTable::Flows,
    };
    if !is_likely_free && is_there(other) {
        return Err(StoreError::Exists);
    }
    tables.store(table, key, leg, Store::New)?;
    if is_there(other) {
        tables.remove(table, key);
        return Err(StoreError::Exists);
    }
    Ok(())
}

/// The reply's key is taken, and there is no port to choose. A remembered stateless decision gives way. What
/// is left of this very connection (its own half was evicted) is taken over, or stays if it is that of the
/// other side, which spoke first. Between two that both sent first there is nothing to reserve. Anything else
/// is refused.
#[inline(always)]
fn clash<T: Tables>(tables: &T, table: FlowTable, plan: &Plan) -> Result<bool, DropReason> {
    let there = match tables.flow(&plan.reply_key) {
        Some(there) => Some(there),
        None => tables.transient(&plan.reply_key),
    };
    let replace = match there {
        None => true,
        Some(there) if there.role == ROLE_NONE => true,
        Some(there) if there.peer_key(&plan.reply_key) == plan.key => {
            if there.role != ROLE_REPLY {
                return Ok(true);
            }
            true
        }
        Some(_) if plan.tuple == plan.key.tuple() => return Ok(true),
        Some(_) => false,
    };
    if !replace {
        return Err(DropReason::NatClash);
    }
    match tables.store(table, &plan.reply_key, &plan.peer, Store::Any) {
        Ok(()) => Ok(true),
        Err(_) => Err(DropReason::FlowTableFull),
    }
}

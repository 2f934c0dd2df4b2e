//! Stage 3b: security groups (behaviours P1-P6).
//!
//! Reads: classes and rules. Writes: what a connection may rely on later ([`FLOW_STATEFUL_OUT`],
//! [`FLOW_STATEFUL_IN`]). Drops: `policy_egress`, `policy_ingress`, `icmp_unrelated`.
//!
//! Every rule allows, so a packet is allowed if any rule covers it. The compiler has put the remote addresses
//! of all rules into classes and each class's rules into one trie: an end of a first packet costs at most
//! three lookups, whatever the number of rules and of groups' members; an established one costs none.
//!
//! A packet of a known connection needs no rule of its own at an end whose rule was stateful. When it is
//! decided again (the topology changed), the rule that allowed the connection must still be there.

use crate::{
    addr::{Be16, Ip},
    flow::{FLOW_STATEFUL_IN, FLOW_STATEFUL_OUT, ROLE_REPLY, Tuple},
    parse::Headers,
    plan::{Plan, ROLE_RELATED},
    reason::DropReason,
    tables::*,
    wire::*,
};

/// The rule that allows, if one does.
#[inline(always)]
pub fn allows<'t, T: Tables>(
    tables: &'t T,
    bank: u32,
    policy: u32,
    direction: u8,
    tuple: &Tuple,
) -> Option<&'t Rule> {
    let (remote, port) =
        if direction == RULE_INGRESS { (tuple.src, tuple.dport) } else { (tuple.dst, tuple.dport) };
    let class = class_of(tables, bank, remote);
    let direction = direction | if tuple.v6 { RULE_V6 } else { 0 };
    let mut found = None;
    if class != 0 {
        found = rule(tables, bank, policy, class, direction, tuple.proto, port);
        if found.is_some_and(|rule| rule.flags & RULE_STATEFUL != 0) {
            return found;
        }
    }
    let any = rule(tables, bank, policy, 0, direction, tuple.proto, port);
    match (found, any) {
        (Some(_), Some(rule)) if rule.flags & RULE_STATEFUL != 0 => any,
        (Some(_), _) => found,
        _ => any,
    }
}

#[inline(always)]
fn class_of<T: Tables>(tables: &T, bank: u32, ip: Ip) -> u32 {
    tables.class(&ClassKey { prefix_len: ClassKey::FIXED_BITS + 128, bank: Scoped::new(bank, 0), ip })
}

#[inline(always)]
fn rule<T: Tables>(
    tables: &T,
    bank: u32,
    policy: u32,
    class: u32,
    direction: u8,
    proto: u8,
    port: Be16,
) -> Option<&Rule> {
    let policy = Scoped::new(bank, policy);
    tables.rule(&RuleKey { prefix_len: RuleKey::ALL_BITS, policy, class, direction, proto, port })
}

/// What passes whatever the rules say, as with Neutron: neighbour and router discovery, multicast listener
/// reports, DHCP from clients and to them (what a port may claim in them was checked by [`crate::admit`]). All of it
/// is a link's own: what passes a router, here (`hops`) or on another node, is nobody's need and is asked for rules.
#[inline(always)]
fn is_exempt(headers: &Headers, tuple: &Tuple, sender: bool, hops: u8) -> bool {
    if headers.later_fragment {
        return false;
    }
    let next = if sender { headers.macs.dst() } else { headers.macs.src() };
    let routed = hops > 0 || next[0] == ROUTER_MAC;
    let kind = (tuple.dport.get() >> 8) as u8;
    match tuple.proto {
        // Routers discover neighbours, too; and no router passes it on.
        PROTO_ICMPV6 if tuple.v6 && matches!(kind, 133..=136) => true,
        PROTO_ICMPV6 if tuple.v6 && matches!(kind, 130..=132 | 143) => !routed,
        PROTO_UDP if !routed => {
            let (client, server) =
                if tuple.v6 { (DHCPV6_CLIENT, DHCPV6_SERVER) } else { (DHCP_CLIENT, DHCP_SERVER) };
            let (sport, dport) = if sender { (client, server) } else { (server, client) };
            tuple.sport.get() == sport && tuple.dport.get() == dport
        }
        _ => false,
    }
}

/// Checks the sender's end: the port the packet came from.
#[inline(always)]
pub fn leaving<T: Tables>(tables: &T, headers: &Headers, plan: &mut Plan) -> Result<(), DropReason> {
    let binding = plan.binding;
    // Not translated yet: as the sender sees it.
    end(tables, &binding, headers, true, plan)
}

/// Checks the receiver's end. `binding`: the port the packet is for.
#[inline(always)]
pub fn arriving<T: Tables>(
    tables: &T,
    binding: &Binding,
    headers: &Headers,
    plan: &mut Plan,
) -> Result<(), DropReason> {
    // Translated: as the receiver will see it.
    end(tables, binding, headers, false, plan)
}

#[inline(always)]
fn end<T: Tables>(
    tables: &T,
    binding: &Binding,
    headers: &Headers,
    sender: bool,
    plan: &mut Plan,
) -> Result<(), DropReason> {
    if binding.flags & BINDING_NO_SECURITY != 0
        || plan.role == ROLE_RELATED
        || is_exempt(headers, &plan.tuple, sender, plan.flow.hops)
    {
        return Ok(());
    }
    let (mut direction, mut reason) =
        if sender { (0, DropReason::PolicyEgress) } else { (RULE_INGRESS, DropReason::PolicyIngress) };
    let mut tuple = plan.tuple;
    if !sender && plan.role == ROLE_REPLY {
        // It is translated where it is applied: from a VIP's member, say, to the VIP that the receiver knows.
        tuple = plan.known.translated(&plan.known_key);
    }
    let relies = if plan.role != ROLE_REPLY {
        false
    } else if sender {
        // A reply's sender is the original direction's receiver.
        plan.known.flags & FLOW_STATEFUL_IN != 0
    } else {
        plan.known.flags & FLOW_STATEFUL_OUT != 0
    };
    if relies {
        tuple = tuple.reversed();
        direction ^= RULE_INGRESS;
        reason = if sender { DropReason::PolicyIngress } else { DropReason::PolicyEgress };
    }
    let Some(rule) = allows(tables, plan.bank, binding.policy, direction, &tuple) else {
        return Err(reason);
    };
    if plan.role == ROLE_REPLY {
        return Ok(());
    }
    let stateful = rule.flags & RULE_STATEFUL != 0;
    if headers.is_icmp_error() {
        // About no connection that is known: only a rule that asks for no connection lets it through.
        return if stateful { Err(DropReason::IcmpUnrelated) } else { Ok(()) };
    }
    plan.flow.rule = rule.rule;
    if stateful {
        plan.flow.flags |= if sender { FLOW_STATEFUL_OUT } else { FLOW_STATEFUL_IN };
    }
    Ok(())
}

/// Whether a port may receive a frame that is flooded.
#[inline(always)]
pub fn floods_to<T: Tables>(tables: &T, bank: u32, binding: &Binding, headers: &Headers) -> bool {
    if headers.arp || binding.flags & BINDING_NO_SECURITY != 0 {
        return true;
    }
    let tuple = headers.tuple();
    is_exempt(headers, &tuple, false, 0)
        || allows(tables, bank, binding.policy, RULE_INGRESS, &tuple).is_some()
}

//! aya's marker for what may be copied to and from kernel maps.

use crate::{
    flow::*,
    monitor::*,
    tables::*,
    traced::{Copied, Leaves, StepHead, TraceInput},
};

macro_rules! pod {
    ($($name:ty),+ $(,)?) => { $(
        // SAFETY: repr(C), only integers and arrays of them, no padding: the size assertions beside the
        // definitions hold the sum of the fields' sizes.
        unsafe impl aya::Pod for $name {}
    )+ };
}

pod!(
    AddressKey,
    AllowedKey,
    Binding,
    BindingKey,
    ClassKey,
    Commit,
    Copied,
    Expire,
    FdbKey,
    Flood,
    FloodKey,
    Floating,
    FloatingKey,
    Flow,
    FlowKey,
    Fragment,
    FragmentKey,
    GatewayKey,
    Hop,
    HopKey,
    Learned,
    Leaves,
    LearnedKey,
    Listener,
    ListenerKey,
    Master,
    MasterKey,
    Member,
    MemberKey,
    MonitorRecord,
    MonitorSet,
    Name,
    NameKey,
    Nat,
    NatKey,
    Network,
    NetworkKey,
    PoolMember,
    PoolMemberAt,
    PoolMemberKey,
    PoolSlots,
    PoolSlotsKey,
    Route,
    RouteKey,
    RouterLeg,
    RouterLegKey,
    Rule,
    RuleKey,
    ServiceCall,
    SnatBlock,
    SnatBlockKey,
    SnatOwner,
    SnatOwnerKey,
    Station,
    StepHead,
    TraceInput,
    Underlay,
    Upcall,
    VniKey,
    VtepKey,
);

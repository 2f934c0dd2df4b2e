//! The data path of vrouter in the kernel: thin entry points around `vrouter-common`'s pipeline.
//!
//! | program | hook | entry |
//! |---|---|---|
//! | `vr_tc_port` | TC ingress of a port's interface | [`tc::port`] |
//! | `vr_tc_uplink` | TC ingress of an uplink | [`tc::uplink`] |
//! | `vr_xdp_port` | native XDP of a port that asks for it | [`xdp::port`] |
//! | `vr_xdp_uplink` | native XDP of an uplink | [`xdp::uplink`] |
//! | `vr_tc_external` | TC ingress of an interface on an external network | [`tc::external`] |
//! | `vr_xdp_external` | native XDP of an interface on an external network | [`xdp::external`] |
//! | `vr_clock` | `BPF_PROG_TEST_RUN` only | tells user space the clock of the flow table |
//! | `vr_expire` | `BPF_PROG_TEST_RUN` only | [`expire::run`] |
//! | `vr_trace` | `BPF_PROG_TEST_RUN` only, feature `trace` | `trace::run` |
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]

mod atomic;
mod claim;
mod expire;
mod maps;
mod monitor;
mod serve;
#[cfg(not(feature = "trace"))]
mod share;
mod tables;
mod tc;
#[cfg(feature = "trace")]
mod trace;
mod xdp;

#[cfg(not(feature = "trace"))]
use tables::Maps;
#[cfg(feature = "trace")]
use trace::Maps;

use aya_ebpf::{
    bindings::TC_ACT_OK,
    macros::{classifier, xdp},
    programs::{TcContext, XdpContext},
};

/// Packets from a workload.
#[classifier]
pub fn vr_tc_port(ctx: TcContext) -> i32 {
    tc::port(ctx.skb.skb)
}

/// Packets from the underlay.
#[classifier]
pub fn vr_tc_uplink(ctx: TcContext) -> i32 {
    tc::uplink(ctx.skb.skb)
}

/// Frames from a packet-processing workload.
#[xdp(frags)]
pub fn vr_xdp_port(ctx: XdpContext) -> u32 {
    xdp::port(ctx.ctx)
}

/// Frames from the underlay.
#[xdp(frags)]
pub fn vr_xdp_uplink(ctx: XdpContext) -> u32 {
    xdp::uplink(ctx.ctx)
}

/// Packets from an external network.
#[classifier]
pub fn vr_tc_external(ctx: TcContext) -> i32 {
    tc::external(ctx.skb.skb)
}

/// Frames from an external network.
#[xdp(frags)]
pub fn vr_xdp_external(ctx: XdpContext) -> u32 {
    xdp::external(ctx.ctx)
}

/// Writes the flow table's clock where user space can read it.
#[classifier]
pub fn vr_clock(_ctx: TcContext) -> i32 {
    if let Some(clock) = maps::CLOCK.get_ptr_mut(0) {
        // SAFETY: the array's only entry, checked by the lookup.
        unsafe { *clock = tables::jiffies() };
    }
    TC_ACT_OK
}

/// Removes the flows that user space found idle, if they still are: checked where it is done, so that a
/// packet that came meanwhile keeps its flow.
#[classifier]
pub fn vr_expire(_ctx: TcContext) -> i32 {
    expire::run();
    TC_ACT_OK
}

/// Decides a packet and says how.
#[cfg(feature = "trace")]
#[classifier]
pub fn vr_trace(ctx: TcContext) -> i32 {
    trace::run(ctx.skb.skb)
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

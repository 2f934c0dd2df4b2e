//! The forwarding decision of vrouter, written once, and the types that cross the kernel boundary.
//!
//! The kernel compiles this crate into its XDP and TC programs; user space compiles it over in-memory
//! tables (feature `user`) for property tests, the differential test and the offline half of tracing.
//! A packet's way is [`pipeline`], read from top to bottom:
//!
//! ```text
//! parse -> flow lookup -> apply                    an established flow ends here
//!             | miss
//!             v
//!          recall: what is known of the connection?
//!          decide: admit -> policy -> switch | route (nat) -> deliver | leave
//!          settle: remember both legs -> apply
//! ```
//!
//! Each stage is a module with one verb. What a stage may drop, and with which [`reason::DropReason`], is
//! in its first lines.
#![cfg_attr(not(any(test, feature = "user")), no_std)]

pub mod addr;
pub mod admit;
pub mod answer;
pub mod apply;
pub mod balance;
pub mod checksum;
pub mod decide;
pub mod deliver;
pub mod external;
pub mod flood;
pub mod flow;
pub mod learn;
#[cfg(any(test, feature = "user"))]
pub mod memory;
pub mod monitor;
pub mod nat;
pub mod packet;
pub mod parse;
pub mod pipeline;
pub mod plan;
pub mod policy;
pub mod reason;
pub mod route;
pub mod service;
pub mod tables;
pub mod traced;
pub mod track;
pub mod translate;
pub mod tunnel;
pub mod wire;

#[cfg(feature = "user")]
mod pod;

#[cfg(test)]
mod tests;

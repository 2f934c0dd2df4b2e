//! Connections: what the legs in the flow tables say when two of them are put together.
//!
//! The data path keeps per leg (direction) what it sees of it, and nothing of the whole: that would cost every
//! packet a write both CPUs fight for. Here the whole is derived, by pure functions of both legs and a clock:
//! the state in nf_conntrack's words, and when the connection is to be forgotten.
//!
//! | module | what |
//! |---|---|
//! | [`legs`] | a connection's two entries, and how one leads to the other |
//! | [`state`] | state, assurance, time left |
//! | [`timeouts`] | how long each state is kept |
//! | [`tables`] | the two flow tables, walked by batches |
//! | [`expire`] | removal through `vr_expire`, which checks again |
//! | [`names`], [`row`] | a connection in the topology's names |
//! | [`filter`] | which connections a command means |
//! | [`conntrack`] | a connection as `conntrack -L` prints it |

pub mod conntrack;
pub mod expire;
pub mod filter;
pub mod legs;
pub mod names;
pub mod row;
pub mod state;
pub mod tables;
pub mod timeouts;

#[cfg(test)]
pub(crate) mod tests;

pub use legs::{Flows, Leg, Table};
pub use names::Names;
pub use row::Row;
pub use state::{Judge, Standing, State};
pub use tables::FlowTables;
pub use timeouts::{Timeout, Timeouts};

//! What the data path tells whoever listens: drops, flows that begin, flows that are forgotten.
//!
//! | module | does |
//! |---|---|
//! | [`listener`] | says what is wanted, and that somebody is still there; reads the ring |
//! | [`filter`] | which records a command means: roughly in the kernel, exactly here |
//! | [`told`] | a record in the topology's names |
//! | [`packet`] | what a packet says that the data path has not read |
//! | [`pcapng`] | packets with what became of them, for Wireshark |

pub mod filter;
pub mod listener;
pub mod packet;
pub mod pcapng;
pub mod told;

pub use filter::{Filter, FilterArgs};
pub use listener::Listener;
pub use told::{Teller, Told};

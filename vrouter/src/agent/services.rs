//! What this node answers its own workloads, and asks them.

pub mod frame;
pub mod metadata;
pub mod probes;
pub mod stack;

//! The user-space half of vrouter: topology, compiler, agent and commands.
#![allow(missing_docs, reason = "structs that mirror the documented topology; their fields are the contract")]

pub mod commands;
pub mod output;
pub mod topology;

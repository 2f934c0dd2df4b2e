//! The user-space half of vrouter: `topology -> validate -> compile -> program`, the agent that keeps what is
//! in force equal to what is wanted, and the commands.
#![allow(
    missing_docs,
    reason = "structs that mirror the documented topology or output; their fields are the contract"
)]

pub mod agent;
pub mod banks;
pub mod cli;
pub mod clock;
pub mod commands;
pub mod compile;
pub mod config;
pub mod connections;
pub mod counters;
pub mod data_path;
pub mod http;
pub mod identities;
pub mod kernel;
pub mod monitor;
pub mod netlink;
pub mod output;
pub mod rates;
pub mod store;
pub mod top;
pub mod topology;
pub mod trace;
pub mod web;

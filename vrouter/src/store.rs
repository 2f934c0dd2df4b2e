//! The topology in etcd: one key for each object, changed by transactions, followed by every agent.
//!
//! | module | what |
//! |---|---|
//! | [`config`] | how etcd is reached |
//! | [`keys`] | which key is what |
//! | [`record`] | what a value says, and a document's objects as values |
//! | [`client`] | reading everything at one revision |
//! | [`blocks`] | whose ports of routers' addresses are whose |
//! | [`change`] | changing it: all or nothing, whatever its size |
//! | [`view`] | what one node makes of it: its own part, whole and checked |
//! | [`follow`] | keeping a view current, and telling how the node is |
//! | [`health`] | which members of pools are down, said by the nodes that check them |
//!
//! `docs/design/store.md` says why it is so.

pub mod blocks;
pub mod change;
pub mod client;
pub mod config;
pub mod follow;
pub mod health;
pub mod keys;
pub mod record;
pub mod report;
pub mod view;

pub use client::Store;
pub use config::{StoreArgs, StoreConfig};

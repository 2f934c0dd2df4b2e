//! `vrouter web`: a page that explains the virtual network, read from the pins alone.
//!
//! One thread looks at the kernel's maps, at a rate that no number of clients changes, and only while somebody
//! looks at the page; whoever asks gets what it saw last. Everything here only reads.
//!
//! | module | what |
//! |---|---|
//! | [`objects`] | the topology in force, by names |
//! | [`layout`] | where its objects are drawn |
//! | [`source`] | one look at the maps |
//! | [`rates`] | what two looks say about what goes on |
//! | [`sampler`] | the one thread that looks |
//! | [`nodes`] | how the other nodes are, from etcd |
//! | [`find`] | objects and flows by text |
//! | [`trace`] | `vrouter trace`, run for the page |
//! | [`guard`] | who may ask |
//! | [`crate::http`] | connections, and how many of them |
//! | [`pages`] | requests and answers |

pub mod find;
pub mod guard;
pub mod layout;
pub mod nodes;
pub mod objects;
pub mod pages;
pub mod rates;
pub mod sampler;
pub mod source;
pub mod trace;

#[cfg(test)]
mod tests;

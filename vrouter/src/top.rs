//! `vrouter top`: rates, from counters read again and again through the pins.
//!
//! ```text
//! FLOWS, TRANSIENT --meter--> growth --sheet--> sums by port, router, node --sampler--> sample --grid--> screen | batch
//! ```
//!
//! | module | what |
//! |---|---|
//! | [`fleet`] | how other nodes say they are, in etcd |
//! | [`crate::rates`] | what a flow carried since it was read last, and whose packets those are |
//! | [`sheet`] | sums of one read |
//! | [`sampler`] | reads the pins; two reads make a [`sample`] |
//! | [`grid`], [`views`] | a sample as tables: sorted, filtered, as wide as there is room |
//! | [`screen`] | the full screen: what keys do, and how it is drawn |
//! | [`text`] | names that cannot break a screen, numbers that fit a column |

pub mod fleet;
pub mod grid;
pub mod sample;
pub mod sampler;
pub mod screen;
pub mod sheet;
pub mod text;
pub mod views;

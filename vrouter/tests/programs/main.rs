//! The loaded programs, run packet by packet with `BPF_PROG_TEST_RUN`: what the verifier accepted, over the
//! kernel's maps, filled the way the agent fills them.
//!
//! | module | what it shows |
//! |---|---|
//! | [`forwarding`] | frames in, frames out, byte for byte, and the flow entries they leave |
//! | [`flooding`] | who gets copies, and what they look like |
//! | [`answers`] | ARP, ND, echo, ICMP errors and resets, and that XDP leaves them to TC |
//! | [`drops`] | every reason to drop, counted exactly once |
//! | [`connections`] | translation, waiting for next hops, expiry, byte for byte |
//! | [`reservation`] | two CPUs never hand out one tuple |
//! | [`services`] | what is handed to the agent to be answered |
//! | [`commits`] | what an apply, a restart and a foreign pin do |
//! | [`differential`] | random frames through the kernel's programs and through user space's |
//! | [`expiry`] | connections in the tables: walked, expired, deleted |
//! | [`next_hops`] | the agent's half: slots, requests, what waits, what is cut, announcements |
//! | [`verifier`] | the programs' size as the verifier sees it |
//!
//! Every test has a network namespace and pins of its own ([`harness`]), so they run at the same time as
//! each other and as anything else. They need root, and fail without it. Redirects are not carried out by
//! a test run: where a frame would leave is read from the flow entry.

mod answers;
mod commits;
mod connections;
mod differential;
mod drops;
mod expiry;
mod flooding;
mod forwarding;
mod frames;
mod generator;
mod harness;
mod next_hops;
mod reservation;
mod services;
mod topology;
mod verifier;

//! Tests of the whole decision over in-memory tables. Names begin with the number of the behaviour they show.

mod balance;
mod cache;
mod edge;
mod fixture;
mod fragments;
mod l2;
mod nat;
mod outside;
mod policy;
mod property;
mod router;
mod routing;
mod spoof;
mod track;
mod tunnel;
mod unusual;
mod world;

//! The declarative document: reading, checking, and the model the compiler works from.

pub mod model;

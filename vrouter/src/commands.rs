//! The commands, one file each: `Args` is what clap reads, `run` does it and says how it went.

pub mod validate;

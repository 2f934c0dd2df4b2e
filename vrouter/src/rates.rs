//! What flows carried between two reads, and whose that is: counters in flow entries are all the data path counts by.
//!
//! | module | what |
//! |---|---|
//! | [`meter`] | what a flow carried since it was read last, whatever became of it in between |
//! | [`index`] | whose packets a flow entry's are |

pub mod index;
pub mod meter;

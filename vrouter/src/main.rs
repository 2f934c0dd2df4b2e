//! The `vrouter` command.
fn main() {}

//! Finds a compiler that can build for bpfel-unknown-none, and builds the eBPF object.

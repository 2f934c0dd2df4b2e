//! Embeds the eBPF object.
fn main() -> anyhow::Result<()> {
    ebpf_build::embed()
}

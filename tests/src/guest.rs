//! A virtual machine: Debian's kernel in qemu, without hardware help, so that it runs wherever labs do.
//!
//! Its `eth0` is a tap of a node, as a hypervisor makes one; what it runs is a script in busybox's shell, and what
//! that prints is on its console. Kernel and modules are what `cargo xtask setup` has put into `target/guest`.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::{Netns, Process};

/// For virtio's network card on PCI, each after what it needs. Debian's kernels have none of it built in.
pub const MODULES: [&str; 8] = [
    "virtio_ring",
    "virtio",
    "virtio_pci_modern_dev",
    "virtio_pci_legacy_dev",
    "virtio_pci",
    "failover",
    "net_failover",
    "virtio_net",
];
const BUSYBOX: &str = "/bin/busybox";
/// What qemu calls its program.
const QEMU: &str = "qemu-system-x86_64";
/// A line of its own on the console when the script has ended.
const END: &str = "== the guest has said all";

/// What busybox's DHCP client runs, as its manual has it: it takes addresses, routes (those of option 121 instead of
/// the router's, RFC 3442), MTU and name servers.
const LEASED: &str = r#"#!/bin/sh
[ "$1" = bound ] || [ "$1" = renew ] || exit 0
ip address flush dev $interface
ip address add $ip/$mask dev $interface
[ -n "$mtu" ] && ip link set $interface mtu $mtu
if [ -n "$staticroutes" ]; then
    set -- $staticroutes
    while [ $# -ge 2 ]; do
        if [ "$2" = 0.0.0.0 ]; then ip route add $1 dev $interface; else ip route add $1 via $2 dev $interface; fi
        shift 2
    done
else
    for router in $router; do ip route add default via $router dev $interface; done
fi
: > /etc/resolv.conf
for server in $dns; do echo "nameserver $server" >> /etc/resolv.conf; done
echo "leased $ip/$mask for $lease s from $serverid"
"#;

/// A machine that runs, or has run. Dropping it ends it.
#[derive(Debug)]
pub struct Guest {
    process: Process,
    /// The script's own output begins here.
    name: String,
}

impl Guest {
    /// Boots one whose network card is the interface `tap`, made here, in a node's namespace, and has it run `script`.
    /// `directory` keeps what it boots from.
    pub fn boot(node: &Netns, tap: &str, mac: &str, directory: &Path, script: &str) -> Result<Self> {
        let kernel = images()?;
        let initramfs = directory.join(format!("{tap}.cpio"));
        write_initramfs(&initramfs, &kernel, script)
            .with_context(|| format!("cannot make {}", initramfs.display()))?;
        node.ip(&[format!("tuntap add {tap} mode tap vnet_hdr"), format!("link set {tap} up")])?;
        // The node's own stack must not speak on it.
        node.set_sysctl(&format!("ipv6/conf/{tap}/disable_ipv6"), "1")?;
        let mut command = node.command(QEMU);
        command
            .args(["-accel", "tcg", "-m", "256", "-display", "none", "-monitor", "none", "-serial", "stdio"]);
        command.args(["-nodefaults", "-no-user-config", "-no-reboot"]);
        command.arg("-kernel").arg(kernel.join("vmlinuz")).arg("-initrd").arg(&initramfs);
        command.args(["-append", "console=ttyS0 quiet panic=-1 rdinit=/init"]);
        command.args(["-netdev", &format!("tap,id=n0,ifname={tap},script=no,downscript=no")]);
        command.args(["-device", &format!("virtio-net-pci,netdev=n0,mac={mac},romfile=")]);
        let process = Process::spawn(&mut command).context("is qemu-system-x86 installed?")?;
        Ok(Self { process, name: tap.to_owned() })
    }

    /// Waits until the script has ended; what was on the console.
    pub fn finish(mut self, timeout: Duration) -> Result<String> {
        let outcome = self.process.wait_for_text(END, timeout);
        outcome.with_context(|| format!("the guest at {}", self.name))?;
        // A serial line ends lines with both.
        Ok(self.process.printed().replace('\r', ""))
    }
}

/// Where kernel and modules are.
fn images() -> Result<PathBuf> {
    let program = std::env::current_exe().context("cannot tell where this program is")?;
    let found = program.ancestors().map(|above| above.join("guest")).find(|it| it.join("vmlinuz").is_file());
    found.context("there is no target/guest/vmlinuz: run `cargo xtask setup`, which gets Debian's kernel")
}

fn write_initramfs(path: &Path, kernel: &Path, script: &str) -> Result<()> {
    let mut archive = Archive::default();
    for directory in ["bin", "proc", "sys", "dev", "etc", "modules"] {
        archive.add(directory, 0o040_755, &[]);
    }
    let busybox = fs::read(BUSYBOX).with_context(|| format!("{BUSYBOX}: is busybox-static installed?"))?;
    archive.add("bin/busybox", 0o100_755, &busybox);
    let mut init = "#!/bin/busybox sh\n/bin/busybox --install -s /bin\nexport PATH=/bin\n\
                    mount -t proc none /proc\nmount -t sysfs none /sys\nmount -t devtmpfs none /dev\n"
        .to_owned();
    for module in MODULES {
        let file = format!("{module}.ko");
        let bytes = fs::read(kernel.join(&file)).with_context(|| file.clone())?;
        archive.add(&format!("modules/{file}"), 0o100_644, &bytes);
        init += &format!("insmod /modules/{file}\n");
    }
    init += &format!("ip link set lo up\nip link set eth0 up\n. /script\necho '{END}'\nsync\npoweroff -f\n");
    archive.add("init", 0o100_755, init.as_bytes());
    archive.add("leased", 0o100_755, LEASED.as_bytes());
    archive.add("script", 0o100_644, script.as_bytes());
    fs::File::create(path)?.write_all(&archive.finish())?;
    Ok(())
}

/// An archive as the kernel unpacks one (Documentation/driver-api/early-userspace/buffer-format.rst).
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    entries: u32,
}

impl Archive {
    fn add(&mut self, name: &str, mode: u32, content: &[u8]) {
        self.entries += 1;
        // Magic; inode, mode, owner, group, links, time, size; device's and special file's numbers; name's size; sum.
        let (size, name_size) = (content.len() as u32, name.len() as u32 + 1);
        let fields = [self.entries, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08x}").bytes());
        }
        self.bytes.extend(name.bytes());
        self.bytes.push(0);
        self.align();
        self.bytes.extend(content);
        self.align();
    }

    fn align(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    fn finish(mut self) -> Vec<u8> {
        self.add("TRAILER!!!", 0, &[]);
        self.bytes
    }
}

//! What a machine must offer, each lack with its own message.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    os::{
        fd::AsRawFd as _,
        unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    },
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use nix::fcntl::{Flock, FlockArg};

use crate::{config::AgentConfig, netlink::Link};

/// TCX links, by which programs are replaced without a gap.
const KERNEL_MIN: (u32, u32) = (6, 6);
/// Outer and inner headers, and 576 bytes that every IPv4 host must take (RFC 791).
const UNDERLAY_MTU_MIN: u32 = 576 + 50;

/// Checks the machine before anything is touched.
pub fn check(config: &AgentConfig) -> Result<()> {
    super::check_instance(&config.instance)?;
    if !nix::unistd::geteuid().is_root() {
        bail!(
            "the agent needs root (CAP_BPF, CAP_NET_ADMIN, CAP_NET_RAW, CAP_PERFMON) to load its data path: run it with sudo, or as a system service"
        );
    }
    let release = nix::sys::utsname::uname().context("uname")?.release().to_string_lossy().into_owned();
    if let Some(version) = kernel_version(&release)
        && version < KERNEL_MIN
    {
        bail!(
            "kernel {release} is too old: vrouter needs {}.{} or newer (TCX links); boot a newer kernel",
            KERNEL_MIN.0,
            KERNEL_MIN.1
        );
    }
    if !Path::new("/sys/kernel/btf/vmlinux").exists() {
        bail!(
            "the kernel has no BTF (/sys/kernel/btf/vmlinux is missing): use a kernel built with CONFIG_DEBUG_INFO_BTF=y, as every distribution's is"
        );
    }
    Ok(())
}

fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

/// Checks the uplinks.
pub fn check_uplinks(config: &AgentConfig, links: &[Link]) -> Result<()> {
    if config.uplinks.is_empty() {
        bail!("no uplink given: name the interface that reaches the other nodes, --uplink eth0");
    }
    for name in &config.uplinks {
        let Some(link) = links.iter().find(|link| link.name == *name) else {
            let present: Vec<_> = links.iter().map(|link| link.name.as_str()).collect();
            bail!(
                "uplink {name} does not exist in this network namespace; there are: {}. Name one of them with --uplink",
                present.join(", ")
            );
        };
        if link.mtu < UNDERLAY_MTU_MIN {
            bail!(
                "uplink {name} has MTU {}, too small for the overlay, which needs {UNDERLAY_MTU_MIN} or more: `ip link set {name} mtu 1500`",
                link.mtu
            );
        }
    }
    Ok(())
}

/// Opens a file to be locked, in an instance's directory. Root's alone, both, also those that an earlier version has
/// made: whoever may open a file may hold its lock for ever.
pub fn lock_file(run_dir: &Path, name: &str) -> Result<(PathBuf, File)> {
    let path = run_dir.join(name);
    let open = || -> std::io::Result<File> {
        DirBuilder::new().recursive(true).mode(0o700).create(run_dir)?;
        fs::set_permissions(run_dir, Permissions::from_mode(0o700))?;
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create(true).truncate(false).mode(0o600).open(&path)?;
        file.set_permissions(Permissions::from_mode(0o600))?;
        Ok(file)
    };
    let file = open().with_context(|| format!("cannot create {}", path.display()))?;
    Ok((path, file))
}

/// Makes sure that one agent at a time runs an instance.
pub fn lock(run_dir: &Path) -> Result<Flock<File>> {
    let (path, file) = lock_file(run_dir, "lock")?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|_| {
        anyhow::anyhow!(
            "another agent of this instance is running ({} is locked): stop it, or choose another --instance",
            path.display()
        )
    })
}

/// Has an interface take all frames, whoever they are for (`ip link set promisc on`). It stays so without the agent,
/// as the programs do.
pub fn hear_all(interface: &str) -> std::io::Result<()> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)?;
    // SAFETY: all zeros are a request without a name.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if interface.len() >= request.ifr_name.len() {
        return Err(std::io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from as libc::c_char;
    }
    let control = |command, request: &mut libc::ifreq| {
        // SAFETY: the descriptor is open, and the request lives and has the shape both commands want.
        let done = unsafe { libc::ioctl(socket.as_raw_fd(), command, std::ptr::from_mut(request)) };
        if done < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
    };
    control(libc::SIOCGIFFLAGS, &mut request)?;
    // SAFETY: the command has filled this member in.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    if i32::from(flags) & libc::IFF_PROMISC != 0 {
        return Ok(());
    }
    request.ifr_ifru.ifru_flags = flags | libc::IFF_PROMISC as libc::c_short;
    control(libc::SIOCSIFFLAGS, &mut request)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn releases_of_all_kinds_are_read() {
        assert_eq!(kernel_version("6.18.44-fc-v782"), Some((6, 18)));
        assert_eq!(kernel_version("6.1.0-37-amd64"), Some((6, 1)));
        assert_eq!(kernel_version("7.0-rc1"), Some((7, 0)));
        assert_eq!(kernel_version("weird"), None);
    }

    #[test]
    fn nobody_else_can_hold_a_lock() {
        let parent = tempfile::tempdir().expect("a directory");
        let mode = |path: &Path| fs::metadata(path).expect("it is there").permissions().mode() & 0o777;
        let run_dir = parent.path().join("run/instance");
        for _ in ["made", "made by an earlier version"] {
            let (path, _) = lock_file(&run_dir, "lock").expect("a lock");
            assert_eq!((mode(&run_dir), mode(&path)), (0o700, 0o600));
            fs::set_permissions(&run_dir, Permissions::from_mode(0o755)).expect("ours");
            fs::set_permissions(&path, Permissions::from_mode(0o644)).expect("ours");
        }
        let first = lock(&run_dir).expect("nobody has it");
        assert!(lock(&run_dir).expect_err("it is held").to_string().contains("another agent"));
        drop(first);
    }
}

//! Pinned maps by typed keys and values.
//!
//! One small layer over `bpf(2)` for every hash, trie and array alike, because aya 0.14 neither checks a
//! pinned map's shape nor offers batch operations, and its typed maps differ per kind.

use std::{
    marker::PhantomData,
    mem::{MaybeUninit, size_of},
    os::fd::{AsFd, AsRawFd},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use aya::{
    Pod,
    maps::{MapData, MapInfo, MapType},
};

const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_MAP_DELETE_ELEM: libc::c_long = 3;
const BPF_MAP_GET_NEXT_KEY: libc::c_long = 4;

/// `bpf_attr` of the element commands.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct ElementAttr {
    map_fd: u32,
    pad: u32,
    key: u64,
    value_or_next: u64,
    flags: u64,
}

/// Refuses a pinned map whose entries have other sizes.
fn check_shape(path: &Path, info: &MapInfo, key_size: usize, value_size: usize) -> Result<()> {
    if info.key_size() as usize != key_size || info.value_size() as usize != value_size {
        bail!(
            "the pinned map {} has {}-byte keys and {}-byte values, this vrouter uses {} and {}: it was made by \
             another version; stop that agent and run `vrouter agent --discard-state` to start afresh (traffic \
             stops while it does)",
            path.display(),
            info.key_size(),
            info.value_size(),
            key_size,
            value_size,
        );
    }
    Ok(())
}

/// Refuses a pin that a loader would take for the map of its name though it is another. No pin is no error.
pub fn check_pin<K, V>(maps: &Path, name: &str, kind: MapType) -> Result<()> {
    let path = maps.join(name);
    if !path.exists() {
        return Ok(());
    }
    let info =
        MapInfo::from_pin(&path).with_context(|| format!("cannot open the pinned map {}", path.display()))?;
    check_shape(&path, &info, size_of::<K>(), size_of::<V>())?;
    let found = info.map_type().with_context(|| format!("cannot read the shape of {}", path.display()))?;
    if found != kind {
        bail!(
            "the pinned map {} is of type {found:?}, this vrouter uses {kind:?}: run `vrouter agent \
             --discard-state` to start afresh (traffic stops while it does)",
            path.display()
        );
    }
    Ok(())
}

/// A pinned map whose keys are `K` and values are `V`.
pub struct Map<K, V> {
    data: MapData,
    path: PathBuf,
    max_entries: u32,
    types: PhantomData<(K, V)>,
}

impl<K: Pod, V: Pod> Map<K, V> {
    /// Opens a pin and checks that it has the expected shape.
    pub fn open(maps: &Path, name: &str) -> Result<Self> {
        Self::open_sized(maps, name, size_of::<V>())
    }

    /// The same for values stored once per CPU or otherwise sized.
    fn open_sized(maps: &Path, name: &str, value_size: usize) -> Result<Self> {
        let path = maps.join(name);
        let data = MapData::from_pin(&path)
            .with_context(|| format!("cannot open the pinned map {}", path.display()))?;
        let info = data.info().with_context(|| format!("cannot read the shape of {}", path.display()))?;
        check_shape(&path, &info, size_of::<K>(), value_size)?;
        let max_entries = info.max_entries();
        Ok(Self { data, path, max_entries, types: PhantomData })
    }

    /// The most entries it takes.
    pub fn max_entries(&self) -> u32 {
        self.max_entries
    }

    fn call(&self, command: libc::c_long, key: *const K, value: *mut u8, flags: u64) -> std::io::Result<()> {
        let attr = ElementAttr {
            map_fd: self.data.fd().as_fd().as_raw_fd() as u32,
            pad: 0,
            key: key as u64,
            value_or_next: value as u64,
            flags,
        };
        // SAFETY: the attribute points to a key and a value of the map's own sizes, checked when it was
        // opened, that outlive the call.
        let result = unsafe {
            libc::syscall(libc::SYS_bpf, command, &raw const attr, size_of::<ElementAttr>() as libc::c_uint)
        };
        if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
    }

    /// Writes an entry.
    pub fn set(&self, key: &K, value: &V) -> Result<()> {
        let mut value = *value;
        self.call(BPF_MAP_UPDATE_ELEM, key, (&raw mut value).cast(), 0).with_context(|| {
            format!("cannot write to {} ({} entries at most)", self.path.display(), self.max_entries)
        })
    }

    /// Removes an entry; one that is not there is no error.
    pub fn remove(&self, key: &K) -> Result<()> {
        match self.call(BPF_MAP_DELETE_ELEM, key, std::ptr::null_mut(), 0) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(error).with_context(|| format!("cannot remove from {}", self.path.display()))
            }
            _ => Ok(()),
        }
    }

    /// Reads an entry.
    pub fn lookup(&self, key: &K) -> Result<Option<V>> {
        let mut value = MaybeUninit::<V>::uninit();
        match self.call(BPF_MAP_LOOKUP_ELEM, key, value.as_mut_ptr().cast(), 0) {
            // SAFETY: the kernel filled it; any bytes are a `V` (Pod).
            Ok(()) => Ok(Some(unsafe { value.assume_init() })),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", self.path.display())),
        }
    }

    /// All keys. Entries that come or go meanwhile may be missed or seen; a restart caused by a deletion
    /// cannot go on for ever.
    pub fn keys(&self) -> Result<Vec<K>> {
        let mut keys = Vec::new();
        let mut next = MaybeUninit::<K>::uninit();
        let mut previous: *const K = std::ptr::null();
        let mut last;
        let most = (self.max_entries as usize).saturating_mul(2);
        loop {
            match self.call(BPF_MAP_GET_NEXT_KEY, previous, next.as_mut_ptr().cast(), 0) {
                // SAFETY: the kernel filled it; any bytes are a `K` (Pod).
                Ok(()) => last = unsafe { next.assume_init() },
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(keys),
                Err(error) => {
                    return Err(error).with_context(|| format!("cannot list {}", self.path.display()));
                }
            }
            keys.push(last);
            if keys.len() > most {
                return Ok(keys);
            }
            previous = keys.last().map_or(std::ptr::null(), std::ptr::from_ref);
        }
    }

    /// All entries.
    pub fn entries(&self) -> Result<Vec<(K, V)>> {
        let mut entries = Vec::new();
        for key in self.keys()? {
            if let Some(value) = self.lookup(&key)? {
                entries.push((key, value));
            }
        }
        Ok(entries)
    }
}

/// A pinned array of counters kept once per CPU.
pub struct PerCpu<V> {
    map: Map<u32, V>,
    cpus: usize,
}

impl<V: Pod + Default> PerCpu<V> {
    /// Opens a pin; `V` must be a multiple of 8 bytes, as the kernel pads to.
    pub fn open(maps: &Path, name: &str) -> Result<Self> {
        let cpus = aya::util::nr_cpus().map_err(|(_, error)| error).context("cannot count the CPUs")?;
        Ok(Self { map: Map::open(maps, name)?, cpus })
    }

    /// One value per CPU.
    pub fn values(&self, index: u32) -> Result<Vec<V>> {
        let mut values = vec![V::default(); self.cpus];
        self.map
            .call(BPF_MAP_LOOKUP_ELEM, &index, values.as_mut_ptr().cast(), 0)
            .with_context(|| format!("cannot read {}", self.map.path.display()))?;
        Ok(values)
    }
}

/// Waits until no program still runs that started before the call: what `synchronize_rcu` gives.
pub fn wait_for_readers() -> Result<()> {
    const MEMBARRIER_CMD_GLOBAL: libc::c_long = 1;
    // SAFETY: a system call of scalars.
    if unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) } != 0 {
        return Err(std::io::Error::last_os_error())
            .context("membarrier: the kernel cannot wait for readers");
    }
    Ok(())
}

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
const BPF_MAP_LOOKUP_AND_DELETE_ELEM: libc::c_long = 21;
const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;
const BPF_MAP_UPDATE_BATCH: libc::c_long = 26;
/// Entries asked for at once: the kernel copies them in tens of microseconds.
const BATCH: usize = 256;

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

/// `bpf_attr` of the batch commands.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    element_flags: u64,
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
    /// The kernel lists it by batches in a time that grows with its size alone: tries are not like that.
    batched: bool,
    types: PhantomData<(K, V)>,
}

/// How far a walk through a map by batches is, and the batch at hand. It holds nothing in the kernel.
pub struct Cursor<K, V> {
    keys: Vec<MaybeUninit<K>>,
    values: Vec<MaybeUninit<V>>,
    /// Where the kernel goes on: a bucket or an index.
    at: Option<u32>,
    ended: bool,
}

impl<K: Pod, V: Pod> Cursor<K, V> {
    /// The beginning.
    pub fn new() -> Self {
        Self::with_room(BATCH)
    }

    /// The same with another size of batches. It grows where the kernel cannot give less.
    pub fn with_room(entries: usize) -> Self {
        let mut cursor = Self { keys: Vec::new(), values: Vec::new(), at: None, ended: false };
        cursor.make_room(entries.max(1));
        cursor
    }

    fn make_room(&mut self, entries: usize) {
        self.keys.resize(entries, MaybeUninit::uninit());
        self.values.resize(entries, MaybeUninit::uninit());
    }
}

impl<K: Pod, V: Pod> Default for Cursor<K, V> {
    fn default() -> Self {
        Self::new()
    }
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
        let batched = matches!(info.map_type(), Ok(MapType::Hash | MapType::LruHash | MapType::Array))
            && size_of::<K>() > 0;
        Ok(Self { data, path, max_entries, batched, types: PhantomData })
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

    /// Writes an entry if there is none under its key; whether it did.
    pub fn set_new(&self, key: &K, value: &V) -> Result<bool> {
        const BPF_NOEXIST: u64 = 1;
        let mut value = *value;
        match self.call(BPF_MAP_UPDATE_ELEM, key, (&raw mut value).cast(), BPF_NOEXIST) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(false),
            result => result.map(|()| true).with_context(|| {
                format!("cannot write to {} ({} entries at most)", self.path.display(), self.max_entries)
            }),
        }
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

    /// The next batch of a hash or an array: some hundred entries, or nothing at the end. Each entry is whole
    /// and was there when it was copied; what comes or goes meanwhile may be in it or not. No entry that stays
    /// is missed.
    pub fn next_batch<'a>(
        &self,
        cursor: &'a mut Cursor<K, V>,
    ) -> Result<Option<impl Iterator<Item = (&'a K, &'a V)> + use<'a, K, V>>> {
        if cursor.ended {
            return Ok(None);
        }
        let most = self.max_entries as usize;
        let filled = loop {
            let mut at = cursor.at.unwrap_or(0);
            let mut next = 0_u32;
            let mut attr = BatchAttr {
                in_batch: if cursor.at.is_some() { (&raw mut at) as u64 } else { 0 },
                out_batch: (&raw mut next) as u64,
                keys: cursor.keys.as_mut_ptr() as u64,
                values: cursor.values.as_mut_ptr() as u64,
                count: cursor.keys.len() as u32,
                map_fd: self.data.fd().as_fd().as_raw_fd() as u32,
                ..BatchAttr::default()
            };
            // SAFETY: both buffers have room for `count` entries of the map's own sizes, checked when it was
            // opened; the positions of hashes and arrays are 4 bytes; all of it outlives the call.
            let result = unsafe { self.batch_call(BPF_MAP_LOOKUP_BATCH, &mut attr) };
            match result {
                Ok(()) => {
                    cursor.at = Some(next);
                    break attr.count;
                }
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                    cursor.ended = true;
                    break attr.count;
                }
                // One bucket holds more than there is room for.
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && cursor.keys.len() < most => {
                    cursor.make_room((cursor.keys.len() * 2).min(most));
                }
                Err(error) => {
                    return Err(error).with_context(|| format!("cannot list {}", self.path.display()));
                }
            }
        };
        let entries = cursor.keys.iter().zip(&cursor.values).take(filled as usize);
        // SAFETY: the kernel filled this many of both; any bytes are a `K` and a `V` (Pod).
        Ok(Some(entries.map(|(key, value)| unsafe { (key.assume_init_ref(), value.assume_init_ref()) })))
    }

    /// Writes entries with one call. Not in one step: whoever reads meanwhile sees some of them.
    pub fn set_all(&self, keys: &[K], values: &[V]) -> Result<()> {
        assert_eq!(keys.len(), values.len(), "a value for each key");
        if keys.is_empty() {
            return Ok(());
        }
        let mut attr = BatchAttr {
            keys: keys.as_ptr() as u64,
            values: values.as_ptr() as u64,
            count: keys.len() as u32,
            map_fd: self.data.fd().as_fd().as_raw_fd() as u32,
            ..BatchAttr::default()
        };
        // SAFETY: `count` keys and values of the map's own sizes, which the kernel only reads.
        let result = unsafe { self.batch_call(BPF_MAP_UPDATE_BATCH, &mut attr) };
        result.with_context(|| {
            format!(
                "cannot write {} entries to {} ({} at most)",
                keys.len(),
                self.path.display(),
                self.max_entries
            )
        })
    }

    /// # Safety
    ///
    /// What the attribute points to must be as `command` wants it and outlive the call.
    unsafe fn batch_call(&self, command: libc::c_long, attr: &mut BatchAttr) -> std::io::Result<()> {
        let size = size_of::<BatchAttr>() as libc::c_uint;
        // SAFETY: the caller's promise.
        let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw mut *attr, size) };
        if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
    }

    /// All entries.
    pub fn entries(&self) -> Result<Vec<(K, V)>> {
        let mut entries = Vec::new();
        if self.batched {
            let mut cursor = Cursor::new();
            while let Some(batch) = self.next_batch(&mut cursor)? {
                entries.extend(batch.map(|(key, value)| (*key, *value)));
            }
            return Ok(entries);
        }
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

/// A pinned stack. What is on it can only be learned by taking it.
pub struct Stack<V> {
    map: Map<[u8; 0], V>,
}

impl<V: Pod> Stack<V> {
    /// Opens a pin and checks that it has the expected shape.
    pub fn open(maps: &Path, name: &str) -> Result<Self> {
        Ok(Self { map: Map::open(maps, name)? })
    }

    /// Puts a value on top.
    pub fn push(&self, value: &V) -> Result<()> {
        let mut value = *value;
        self.map
            .call(BPF_MAP_UPDATE_ELEM, std::ptr::null(), (&raw mut value).cast(), 0)
            .with_context(|| format!("cannot push to {}", self.map.path.display()))
    }

    /// Takes the value on top.
    pub fn pop(&self) -> Result<Option<V>> {
        let mut value = MaybeUninit::<V>::uninit();
        match self.map.call(BPF_MAP_LOOKUP_AND_DELETE_ELEM, std::ptr::null(), value.as_mut_ptr().cast(), 0) {
            // SAFETY: the kernel filled it; any bytes are a `V` (Pod).
            Ok(()) => Ok(Some(unsafe { value.assume_init() })),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot pop from {}", self.map.path.display())),
        }
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

//! Numbers derived from names.
//!
//! Nodes that share nothing but the document must still agree on every VNI and every router MAC, and adding
//! an object must never renumber another: a counter would do neither, so both come from a hash of the name
//! alone. The hash is FNV-1a, spelled out here because it is on the wire and may never change.

use std::ops::RangeInclusive;

use vrouter_common::wire::ROUTER_MAC;

use super::model::Mac;

/// First VNI of the derived half of the number space; what people number by hand usually lies below it.
const DERIVED_VNI_BASE: u32 = 0x80_0000;
/// The derived half.
pub const DERIVED_VNIS: RangeInclusive<u32> = DERIVED_VNI_BASE..=0xff_ffff;

/// The VNI of a network that does not state one: 0x800000 to 0xffffff, a function of its name only.
#[must_use]
pub fn derive_vni(network_name: &str) -> u32 {
    let hash = fnv1a(FNV_OFFSET, network_name.as_bytes());
    let folded = hash ^ (hash >> 23) ^ (hash >> 46);
    DERIVED_VNI_BASE | (folded & 0x7f_ffff) as u32
}

/// The MAC of a router on a network: the same on every node, since every node is that router.
///
/// [`ROUTER_MAC`] marks it as locally administered unicast, and a router's.
#[must_use]
pub fn derive_router_mac(router_name: &str, network_name: &str) -> Mac {
    let hash = fnv1a(FNV_OFFSET, router_name.as_bytes());
    // Names hold no control characters, so a zero byte keeps ("ab", "c") apart from ("a", "bc").
    let hash = fnv1a(fnv1a(hash, &[0]), network_name.as_bytes());
    let [_, _, _, a, b, c, d, e] = (hash ^ (hash >> 40)).to_be_bytes();
    Mac([ROUTER_MAC, a, b, c, d, e])
}

/// The MAC of the services that every node has on a network, such as the one for metadata.
///
/// 0x0a marks it as locally administered unicast, and no router's.
#[must_use]
pub fn derive_service_mac(network_name: &str) -> Mac {
    let hash = fnv1a(FNV_OFFSET, network_name.as_bytes());
    let [_, _, _, a, b, c, d, e] = (hash ^ (hash >> 40)).to_be_bytes();
    Mac([0x0a, a, b, c, d, e])
}

/// The MAC of a router on an external network, as one node speaks for it: the network outside must be able to
/// tell the nodes apart.
#[must_use]
pub fn derive_external_mac(router_name: &str, network_name: &str, node_name: &str) -> Mac {
    let hash = fnv1a(FNV_OFFSET, router_name.as_bytes());
    let hash = fnv1a(fnv1a(hash, &[0]), network_name.as_bytes());
    let hash = fnv1a(fnv1a(hash, &[0]), node_name.as_bytes());
    let [_, _, _, a, b, c, d, e] = (hash ^ (hash >> 40)).to_be_bytes();
    Mac([ROUTER_MAC, a, b, c, d, e])
}

/// Who of several nodes owns something, by rendezvous hashing: of all nodes the one whose hash with the
/// thing is the highest. A node that comes or goes moves only what it gets or had.
///
/// What a router is to outside (who answers for its address, whose ports are whose) follows from it, on every
/// node by itself, so it may never change: FNV-1a of the names, mixed by MurmurHash3's 64-bit last step.
pub struct Rendezvous {
    /// Hashes of the nodes' names.
    nodes: Vec<u64>,
}

impl Rendezvous {
    /// Among the nodes of these names, called by their position from here on.
    pub fn among<'n>(names: impl IntoIterator<Item = &'n str>) -> Self {
        let hash = |name: &str| mix(fnv1a(FNV_OFFSET, name.as_bytes()));
        Self { nodes: names.into_iter().map(hash).collect() }
    }

    /// The owner of a router's part of that number; part 0 is the router itself. `None`: there is no node.
    #[must_use]
    pub fn owner(&self, router_name: &str, part: u32) -> Option<usize> {
        self.best(router_name, part, |_| true)
    }

    /// The hash of a router's part with the first node: an order of parts of its own for each node.
    #[must_use]
    pub fn weight(&self, router_name: &str, part: u32) -> u64 {
        self.nodes.first().map_or(0, |node| mix(thing(router_name, part) ^ node))
    }

    /// Everybody, the one with the highest hash first: each is the owner if those before it are not there.
    #[must_use]
    pub fn ranked(&self, router_name: &str, part: u32) -> Vec<usize> {
        let thing = thing(router_name, part);
        let mut ranked: Vec<usize> = (0..self.nodes.len()).collect();
        ranked.sort_by_cached_key(|&at| std::cmp::Reverse((mix(thing ^ self.nodes[at]), self.nodes[at])));
        ranked
    }

    /// The owners of several parts of a router, in order: each node gets its share of them, or one more. For
    /// each part it is the node with the highest hash among those that may have another.
    #[must_use]
    pub fn shares(&self, router_name: &str, parts: impl ExactSizeIterator<Item = u32>) -> Vec<usize> {
        let share = parts.len() / self.nodes.len().max(1);
        let mut counts = vec![0; self.nodes.len()];
        let owners = parts.filter_map(|part| {
            let below = |most: usize| self.best(router_name, part, |at| counts[at] < most);
            let at = below(share).or_else(|| below(share + 1))?;
            counts[at] += 1;
            Some(at)
        });
        owners.collect()
    }

    fn best(&self, router_name: &str, part: u32, may: impl Fn(usize) -> bool) -> Option<usize> {
        let thing = thing(router_name, part);
        let weights = self.nodes.iter().map(|node| mix(thing ^ node));
        // Of equal hashes, one in 2^64, the node's own decides.
        let candidates = weights.zip(&self.nodes).enumerate().filter(|(at, _)| may(*at));
        candidates.max_by_key(|(_, weight)| *weight).map(|(at, _)| at)
    }
}

/// The hash of a router's part.
fn thing(router_name: &str, part: u32) -> u64 {
    let thing = fnv1a(fnv1a(FNV_OFFSET, router_name.as_bytes()), &[0]);
    mix(fnv1a(thing, &part.to_be_bytes()))
}

/// Without it the last letters of a name would hardly reach the upper bits, which decide what is highest.
fn mix(mut hash: u64) -> u64 {
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

/// 128 bits of digest, for names that stand for long lists: two FNV-1a hashes, the second from another start.
/// Names whose digests are equal by chance are not to be expected; nobody who may not edit the document can
/// make some.
#[must_use]
pub fn digest128<'n>(words: impl IntoIterator<Item = &'n str>) -> String {
    let (mut low, mut high) = (FNV_OFFSET, mix(FNV_OFFSET));
    for word in words {
        low = fnv1a(fnv1a(low, word.as_bytes()), &[0]);
        high = fnv1a(mix(fnv1a(high, word.as_bytes())), &[1]);
    }
    format!("{:016x}{:016x}", mix(high), mix(low))
}

/// A hash of words, mixed: of lists that differ, different ones are to be expected.
#[must_use]
pub fn fnv1a_of(words: &[&str]) -> u64 {
    mix(words.iter().fold(FNV_OFFSET, |hash, word| fnv1a(fnv1a(hash, word.as_bytes()), &[0])))
}

pub(super) fn fnv1a(seed: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(seed, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(FNV_PRIME))
}

pub(super) const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0000_0100_0000_01b3;

#[cfg(test)]
mod tests {
    use super::*;

    const OWNERS_OF_R1: [usize; 8] = [0, 1, 0, 0, 0, 1, 1, 2];
    const EXTERNAL_MAC: &str = "0e:d6:72:c8:ae:33";

    #[test]
    fn fnv1a_agrees_with_the_published_vectors() {
        assert_eq!(fnv1a(FNV_OFFSET, b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(FNV_OFFSET, b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_eq!(fnv1a(FNV_OFFSET, b"foobar"), 0x8594_4171_f739_67e8);
    }

    /// Changing these renumbers live networks.
    #[test]
    fn derived_numbers_never_change() {
        assert_eq!(derive_vni("db"), 10_980_556);
        assert_eq!(derive_router_mac("r1", "web").to_string(), "0e:6c:1a:6c:69:75");
    }

    /// Changing these moves addresses, ports and sessions between live nodes.
    #[test]
    fn owners_never_change() {
        let nodes = Rendezvous::among(["node-a", "node-b", "node-c"]);
        let owners: Vec<_> = (0..8).map(|part| nodes.owner("r1", part)).collect();
        assert_eq!(owners, OWNERS_OF_R1.map(Some));
        for part in 0..8 {
            let ranked = nodes.ranked("r1", part);
            assert_eq!((Some(ranked[0]), ranked.len()), (nodes.owner("r1", part), 3));
        }
        assert_eq!(derive_external_mac("r1", "public", "node-a").to_string(), EXTERNAL_MAC);
        assert_eq!(Rendezvous::among([]).owner("r1", 0), None);
    }

    #[test]
    fn a_node_that_goes_moves_only_what_it_had_and_all_have_about_the_same() {
        let names: Vec<String> = (0..10).map(|i| format!("node-{i}")).collect();
        let all = Rendezvous::among(names.iter().map(String::as_str));
        let fewer = Rendezvous::among(names[..9].iter().map(String::as_str));
        let mut shares = [0; 10];
        for router in 0..100 {
            for part in 0..64 {
                let name = format!("router-{router}");
                let owner = all.owner(&name, part).expect("a node");
                shares[owner] += 1;
                if owner != 9 {
                    assert_eq!(fewer.owner(&name, part), Some(owner));
                }
            }
        }
        // 640 each, and a standard deviation of 24.
        assert!(shares.iter().all(|share| (500..780).contains(share)), "{shares:?}");
    }

    #[test]
    fn each_node_has_its_own_external_address() {
        let mac = |router, network, node| derive_external_mac(router, network, node);
        assert_ne!(mac("r1", "public", "a"), mac("r1", "public", "b"));
        assert_ne!(mac("r1", "public", "a"), mac("r2", "public", "a"));
        assert_ne!(mac("r1", "public", "a"), mac("r1", "publi", "ca"));
        assert_ne!(mac("r1", "public", ""), derive_router_mac("r1", "public"));
    }

    #[test]
    fn digests_tell_lists_apart() {
        let lists: [&[&str]; 6] = [&[], &[""], &["a"], &["a", "b"], &["ab"], &["b", "a"]];
        let digests: std::collections::BTreeSet<_> =
            lists.iter().map(|list| digest128(list.iter().copied())).collect();
        assert_eq!(digests.len(), lists.len());
    }

    #[test]
    fn derived_numbers_stay_in_their_range() {
        for i in 0..10_000 {
            let vni = derive_vni(&format!("network-{i}"));
            assert!((0x80_0000..=0xff_ffff).contains(&vni), "{vni:#x}");
        }
    }

    #[test]
    fn the_boundary_between_the_names_counts() {
        assert_ne!(derive_router_mac("ab", "c"), derive_router_mac("a", "bc"));
        assert_ne!(derive_router_mac("r1", "web"), derive_router_mac("web", "r1"));
    }
}

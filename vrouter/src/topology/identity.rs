//! Numbers derived from names.
//!
//! Nodes that share nothing but the document must still agree on every VNI and every router MAC, and adding
//! an object must never renumber another: a counter would do neither, so both come from a hash of the name
//! alone. The hash is FNV-1a, spelled out here because it is on the wire and may never change.

use super::model::Mac;

/// First VNI of the derived half of the number space; what people number by hand usually lies below it.
const DERIVED_VNI_BASE: u32 = 0x80_0000;

/// The VNI of a network that does not state one: 0x800000 to 0xffffff, a function of its name only.
#[must_use]
pub fn derive_vni(network_name: &str) -> u32 {
    let hash = fnv1a(FNV_OFFSET, network_name.as_bytes());
    let folded = hash ^ (hash >> 23) ^ (hash >> 46);
    DERIVED_VNI_BASE | (folded & 0x7f_ffff) as u32
}

/// The MAC of a router on a network: the same on every node, since every node is that router.
///
/// 0x0e marks it as locally administered unicast.
#[must_use]
pub fn derive_router_mac(router_name: &str, network_name: &str) -> Mac {
    let hash = fnv1a(FNV_OFFSET, router_name.as_bytes());
    // Names hold no control characters, so a zero byte keeps ("ab", "c") apart from ("a", "bc").
    let hash = fnv1a(fnv1a(hash, &[0]), network_name.as_bytes());
    let [_, _, _, a, b, c, d, e] = (hash ^ (hash >> 40)).to_be_bytes();
    Mac([0x0e, a, b, c, d, e])
}

fn fnv1a(seed: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(seed, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(FNV_PRIME))
}

const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0000_0100_0000_01b3;

#[cfg(test)]
mod tests {
    use super::*;

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

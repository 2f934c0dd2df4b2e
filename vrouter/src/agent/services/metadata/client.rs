//! Who asks: a port, as the metadata server is told of it.

use std::net::{IpAddr, Ipv6Addr};

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

/// A port that may ask.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Client {
    /// The port's name, for the log.
    pub port: String,
    /// The instance it belongs to.
    pub instance: String,
    /// The project it belongs to, if the topology says so.
    pub project: Option<String>,
    /// The network's name.
    pub network: String,
    pub mtu: u32,
    /// What it may ask from, beside link-local addresses.
    pub addresses: Vec<IpAddr>,
}

impl Client {
    /// Whether it is the client's own address. The data path has seen to that already.
    pub fn has(&self, address: IpAddr) -> bool {
        let is_link_local = |address: &Ipv6Addr| address.is_unicast_link_local() && !address.is_unspecified();
        self.addresses.contains(&address) || matches!(&address, IpAddr::V6(it) if is_link_local(it))
    }
}

/// What proves to the server that an instance's number comes from a node, as Neutron's agents make it: HMAC-SHA256 of
/// the number, in hexadecimal digits.
pub fn signature(secret: &[u8], instance: &str) -> String {
    use std::fmt::Write;

    // Any length will do.
    let Ok(mut mac) = Hmac::<Sha256>::new_from_slice(secret) else { return String::new() };
    mac.update(instance.as_bytes());
    mac.finalize().into_bytes().iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_signature_is_what_neutron_and_openssl_make() {
        // RFC 4231, test case 2.
        assert_eq!(
            signature(b"Jefe", "what do ya want for nothing?"),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
    }
}

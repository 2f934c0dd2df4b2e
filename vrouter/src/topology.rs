//! The declarative document: reading, checking, and the model the compiler works from.
//!
//! [`parse`] and [`load`] either return a [`Topology`] in which every rule holds or all the [`Problems`] of
//! the document at once; there is nothing in between. The way there: `yaml` (text to a tree of strings),
//! `decode` (tree to objects, with the rules inside one object), `validate` (the rules between objects).

mod balancers;
mod carriers;
mod decode;
mod identity;
pub mod model;
mod monitored;
mod object;
mod problem;
mod ranges;
mod scalar;
mod translator;
mod validate;
mod vrids;
mod yaml;

use std::fs::File;
use std::io::Read;
use std::path::Path;

pub use balancers::Balancers;
pub use carriers::Carriers;
pub use decode::{Kind, Parts, Single, read_one};
pub use identity::{
    DERIVED_VNIS, Rendezvous, derive_external_mac, derive_router_mac, derive_service_mac, derive_vni,
    digest128, fnv1a_of,
};
use model::{AddressGroup, LoadBalancer, Network, Node, Pool, Port, Router, SecurityGroup, Subnet, Topology};
pub use monitored::{Monitored, monitored};
pub use problem::{Problem, Problems};
pub use translator::Translators;
pub use vrids::{Vrids, derive_vrid};
pub use yaml::{Node as Tree, NodeKind as TreeKind};

/// Reads and checks a document; `file_name` is what its problems call it.
pub fn parse(file_name: &str, text: &str) -> Result<Topology, Problems> {
    let mut problems = Problems::new(file_name);
    let Some(root) = yaml::read(text, &mut problems) else { return Err(problems) };
    check_tree(&root, problems)
}

/// Reads a document, without looking at what it says.
pub fn read_tree(file_name: &str, text: &str) -> Result<Tree, Problems> {
    let mut problems = Problems::new(file_name);
    match yaml::read(text, &mut problems) {
        Some(root) if problems.is_empty() => Ok(root),
        _ => Err(problems),
    }
}

/// Checks a document that was read.
pub fn check(file_name: &str, root: &Tree) -> Result<Topology, Problems> {
    check_tree(root, Problems::new(file_name))
}

/// The same, where there are objects beside it that could not be read: what refers to them is not to blame.
pub fn check_beside<'n>(
    file_name: &str,
    root: &Tree,
    broken: impl IntoIterator<Item = (Kind, &'n str)>,
) -> Result<Topology, Problems> {
    let mut problems = Problems::new(file_name);
    let mut decoded = decode::decode(root, &mut problems);
    broken.into_iter().for_each(|(kind, name)| decoded.add_broken(kind, name));
    checked(decoded, problems)
}

fn check_tree(root: &Tree, mut problems: Problems) -> Result<Topology, Problems> {
    let decoded = decode::decode(root, &mut problems);
    checked(decoded, problems)
}

/// Puts objects together that were read one by one, and checks the rules between them. Problems have no lines.
pub fn assemble(source: &str, parts: Parts) -> Result<Topology, Problems> {
    let mut problems = Problems::new(source);
    let decoded = decode::Decoded::of_parts(parts, &mut problems);
    checked(decoded, problems)
}

pub use validate::balancer::may_replace;

fn checked(decoded: decode::Decoded<'_>, mut problems: Problems) -> Result<Topology, Problems> {
    validate::validate(&decoded, &mut problems);
    if problems.is_empty() {
        return Ok(decoded.topology);
    }
    problems.sort();
    Err(problems)
}

/// Whether a text can be the name of a kernel interface; why not, and what to write.
pub fn check_interface_name(text: &str) -> Result<(), String> {
    let node = Tree { line: 0, kind: TreeKind::Scalar { text: text.to_owned(), quoted: true } };
    match scalar::interface_name(&node) {
        Ok(_) => Ok(()),
        Err(fault) => Err(format!("the interface {}: {}", fault.message, fault.remedy)),
    }
}

/// Reads a file without looking at what it says; `-` is standard input.
pub fn load_tree(path: &Path) -> Result<(String, Tree), Problems> {
    let (name, read) = if path.as_os_str() == "-" {
        let name = "standard input".to_owned();
        let text = read_text(&name, std::io::stdin().lock());
        (name, text)
    } else {
        let name = path.display().to_string();
        let file = File::open(path).map_err(|error| cannot_open(&name, &error))?;
        let text = read_text(&name, file);
        (name, text)
    };
    let tree = read_tree(&name, &read?)?;
    Ok((name, tree))
}

fn cannot_open(name: &str, error: &std::io::Error) -> Problems {
    Problems::of_document(name, format!("cannot be opened: {error}"), "check the path and who may read it")
}

/// Reads and checks a file.
pub fn load(path: impl AsRef<Path>) -> Result<Topology, Problems> {
    let path = path.as_ref();
    let name = path.display().to_string();
    match File::open(path) {
        Ok(file) => load_from(&name, file),
        Err(error) => Err(cannot_open(&name, &error)),
    }
}

/// Reads and checks what `source` yields until its end, no more than a document may hold.
pub fn load_from(file_name: &str, source: impl Read) -> Result<Topology, Problems> {
    parse(file_name, &read_text(file_name, source)?)
}

fn read_text(file_name: &str, source: impl Read) -> Result<String, Problems> {
    let mut bytes = Vec::new();
    // One byte more than allowed, so that `parse` sees it is too long; endless files end here.
    if let Err(error) = source.take(yaml::MAX_BYTES as u64 + 1).read_to_end(&mut bytes) {
        let message = format!("cannot be read: {error}");
        return Err(Problems::of_document(file_name, message, "name a file that holds the document"));
    }
    match String::from_utf8(bytes) {
        Ok(text) => Ok(text),
        Err(error) => {
            let valid = error.utf8_error().valid_up_to();
            let before = error.as_bytes().get(..valid).unwrap_or_default();
            let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
            let mut problems = Problems::new(file_name);
            problems.push(line, "document", "this line is not UTF-8 text", "save the file as UTF-8");
            Err(problems)
        }
    }
}

/// Look-ups by name. Each walks the list: build an index of your own to look up many.
impl Topology {
    /// The network of that name.
    #[must_use]
    pub fn network(&self, name: &str) -> Option<&Network> {
        self.networks.iter().find(|network| network.name == name)
    }

    /// The subnet of that name, after the network it is on.
    #[must_use]
    pub fn subnet(&self, name: &str) -> Option<(&Network, &Subnet)> {
        let mut subnets = self
            .networks
            .iter()
            .flat_map(|network| network.subnets.iter().map(move |subnet| (network, subnet)));
        subnets.find(|(_, subnet)| subnet.name == name)
    }

    /// The router of that name.
    #[must_use]
    pub fn router(&self, name: &str) -> Option<&Router> {
        self.routers.iter().find(|router| router.name == name)
    }

    /// The security group of that name.
    #[must_use]
    pub fn security_group(&self, name: &str) -> Option<&SecurityGroup> {
        self.security_groups.iter().find(|group| group.name == name)
    }

    /// The address group of that name.
    #[must_use]
    pub fn address_group(&self, name: &str) -> Option<&AddressGroup> {
        self.address_groups.iter().find(|group| group.name == name)
    }

    /// The port of that name.
    #[must_use]
    pub fn port(&self, name: &str) -> Option<&Port> {
        self.ports.iter().find(|port| port.name == name)
    }

    /// The load balancer of that name.
    #[must_use]
    pub fn load_balancer(&self, name: &str) -> Option<&LoadBalancer> {
        self.load_balancers.iter().find(|balancer| balancer.name == name)
    }

    /// The pool of that name.
    #[must_use]
    pub fn pool(&self, name: &str) -> Option<&Pool> {
        self.pools.iter().map(|pool| &**pool).find(|pool| pool.name == name)
    }

    /// The node of that name.
    #[must_use]
    pub fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.iter().find(|node| node.name == name)
    }
}

#[cfg(test)]
mod tests;

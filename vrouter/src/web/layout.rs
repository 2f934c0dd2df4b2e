//! Where objects are drawn: external networks on top, routers, networks, and under each network its ports by
//! node; or, as a second view, nodes with the ports they host. The same objects always give the same drawing.
//!
//! What has more ports than people can look at is drawn as a number, until it is opened; single ports can be
//! asked for nevertheless, as those on a packet's way are.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::objects::{Objects, Port};

/// Ports of a network (or a node) up to this many are drawn one by one unasked.
pub const OPEN_UP_TO: usize = 24;
/// Of an opened group, too, no more than this many: the rest is a number.
pub const DRAWN_MAX: usize = 240;

const PORT: (u32, u32) = (114, 24);
const GAP: u32 = 8;
const HEAD: u32 = 22;
const BOX: (u32, u32) = (240, 46);
const COLUMN_GAP: u32 = 28;
const ROW_GAP: u32 = 64;
const MARGIN: u32 = 20;
/// Rows break at this width.
const WIDTH: u32 = 1760;

/// What to draw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum View {
    #[default]
    Networks,
    Nodes,
}

/// What of it somebody wants to see.
#[derive(Clone, Debug, Default)]
pub struct Wish {
    pub view: View,
    /// Names of networks (or nodes) that are to be opened.
    pub open: BTreeSet<String>,
    /// Names of ports that are drawn in any case.
    pub show: BTreeSet<String>,
}

/// A drawing.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Drawing {
    pub view: View,
    pub epoch: u32,
    pub width: u32,
    pub height: u32,
    pub boxes: Vec<Shape>,
    pub lines: Vec<Line>,
}

/// A rectangle that stands for something.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Shape {
    /// `network`, `router`, `port`, `node`, or `group`: ports of one network on one node.
    pub kind: &'static str,
    pub name: String,
    /// A second line.
    pub detail: String,
    pub external: bool,
    pub x: u32,
    pub y: u32,
    pub w: u32,
    pub h: u32,
    /// Where a group or a port is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// How many ports it stands for.
    pub ports: usize,
    /// Of these, how many are not drawn.
    pub hidden: usize,
    /// Whether it can be opened or closed.
    pub can_toggle: bool,
    pub is_open: bool,
    /// Of a port: `here`, `missing`, `remote` or `unbound`.
    pub place: &'static str,
}

/// A line between two boxes, by their places in the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Line {
    pub from: usize,
    pub to: usize,
    pub x1: u32,
    pub y1: u32,
    pub x2: u32,
    pub y2: u32,
}

/// Draws.
pub fn draw(objects: &Objects, wish: &Wish) -> Drawing {
    match wish.view {
        View::Networks => networks(objects, wish),
        View::Nodes => nodes(objects, wish),
    }
}

/// Boxes with a place relative to their own corner.
struct Block {
    w: u32,
    h: u32,
    boxes: Vec<Shape>,
}

/// Ports of one network on one node: a frame with a head, and in it those that are drawn.
fn group(title: &str, ports: &[&Port], is_open: bool, show: &BTreeSet<String>) -> Block {
    let drawn: Vec<_> = if is_open {
        let (wanted, others): (Vec<&Port>, Vec<&Port>) =
            ports.iter().copied().partition(|port| show.contains(&port.name));
        let room = DRAWN_MAX.saturating_sub(wanted.len());
        let mut drawn: Vec<_> = wanted.into_iter().chain(others.into_iter().take(room)).collect();
        drawn.sort_by(|a, b| a.name.cmp(&b.name));
        drawn
    } else {
        ports.iter().copied().filter(|port| show.contains(&port.name)).collect()
    };
    let columns = columns(drawn.len());
    let w = (columns * (PORT.0 + GAP) + GAP).max(BOX.0);
    let rows = drawn.len().div_ceil(columns.max(1) as usize) as u32;
    let hidden = ports.len() - drawn.len();
    let h = HEAD + rows * (PORT.1 + GAP) + GAP;
    let first = ports.first().copied();
    let frame = Shape {
        kind: "group",
        name: title.to_owned(),
        detail: match (ports.len(), hidden) {
            (1, _) => "1 port".to_owned(),
            (all, 0) => format!("{all} ports"),
            (all, hidden) if hidden == all => format!("{all} ports, closed"),
            (all, hidden) => format!("{all} ports, {hidden} not drawn"),
        },
        w,
        h,
        network: first.map(|port| port.network.clone()),
        node: first.and_then(|port| port.node.clone()),
        ports: ports.len(),
        hidden,
        is_open,
        ..Shape::default()
    };
    let mut boxes = vec![frame];
    boxes.extend(drawn.into_iter().enumerate().map(|(i, port)| Shape {
        kind: "port",
        name: port.name.clone(),
        detail: port.addresses.join(" "),
        x: GAP + (i as u32 % columns) * (PORT.0 + GAP),
        y: HEAD + (i as u32 / columns) * (PORT.1 + GAP),
        w: PORT.0,
        h: PORT.1,
        network: Some(port.network.clone()),
        node: port.node.clone(),
        ports: 1,
        place: port.place,
        ..Shape::default()
    }));
    Block { w, h, boxes }
}

/// Broader than high, as screens are, but never broader than a row.
fn columns(ports: usize) -> u32 {
    match ports {
        0 | 1 => 1,
        2..=8 => 2,
        9..=OPEN_UP_TO => 3,
        _ => 8,
    }
}

/// A head with blocks under it, all as wide as the widest.
fn column(head: Shape, blocks: Vec<Block>) -> Block {
    let w = blocks.iter().map(|block| block.w).max().unwrap_or(0).max(head.w);
    let mut y = head.h;
    let mut boxes = vec![Shape { w, ..head }];
    for block in blocks {
        y += GAP;
        for (i, shape) in block.boxes.into_iter().enumerate() {
            let w = if i == 0 { w } else { shape.w };
            boxes.push(Shape { y: shape.y + y, w, ..shape });
        }
        y += block.h;
    }
    Block { w, h: y, boxes }
}

/// Where blocks of these sizes go if each wishes for a middle: in the order given, none over another, in as many
/// rows as they need. Returns corners and the height of it all.
fn arrange(blocks: &[(u32, u32, Option<u32>)], top: u32) -> (Vec<(u32, u32)>, u32) {
    let mut places = Vec::new();
    let (mut y, mut from) = (top, 0);
    while from < blocks.len() {
        let (mut to, mut total) = (from, 0);
        while to < blocks.len() && (to == from || total + COLUMN_GAP + blocks[to].0 <= WIDTH) {
            total += blocks[to].0 + if to == from { 0 } else { COLUMN_GAP };
            to += 1;
        }
        let row = &blocks[from..to];
        let (mut x, mut left) = (MARGIN, total);
        for &(w, _, middle) in row {
            let latest = (MARGIN + WIDTH).saturating_sub(left).max(x);
            let wished = middle.map_or(x, |middle| middle.saturating_sub(w / 2));
            x = wished.clamp(x, latest);
            places.push((x, y));
            x += w + COLUMN_GAP;
            left = left.saturating_sub(w + COLUMN_GAP);
        }
        let height = row.iter().map(|block| block.1).max().unwrap_or(0);
        y += height + if to < blocks.len() { COLUMN_GAP } else { 0 };
        from = to;
    }
    (places, y)
}

fn networks(objects: &Objects, wish: &Wish) -> Drawing {
    // Networks of one router beside each other: less lines cross.
    let mut routers_of: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for router in &objects.routers {
        for leg in &router.legs {
            routers_of.entry(&leg.network).or_default().insert(&router.name);
        }
    }
    let mut by_network: BTreeMap<&str, BTreeMap<Option<&str>, Vec<&Port>>> = BTreeMap::new();
    for port in &objects.ports {
        by_network.entry(&port.network).or_default().entry(port.node.as_deref()).or_default().push(port);
    }
    let mut inner: Vec<_> = objects.networks.iter().filter(|network| !network.external).collect();
    inner.sort_by_key(|network| {
        let first = routers_of.get(network.name.as_str()).and_then(|routers| routers.first().copied());
        (first.is_none(), first, &network.name)
    });

    let blocks: Vec<Block> = inner
        .iter()
        .map(|network| {
            let none = BTreeMap::new();
            let groups = by_network.get(network.name.as_str()).unwrap_or(&none);
            let ports = groups.values().map(Vec::len).sum();
            let can_toggle = ports > OPEN_UP_TO;
            let is_open = !can_toggle || wish.open.contains(&network.name);
            let head = Shape {
                kind: "network",
                name: network.name.clone(),
                detail: format!("VNI {} · MTU {}", network.vni, network.mtu),
                w: BOX.0,
                h: BOX.1,
                ports,
                can_toggle,
                is_open,
                ..Shape::default()
            };
            let groups = groups
                .iter()
                .map(|(node, ports)| group(node.unwrap_or("bound nowhere"), ports, is_open, &wish.show));
            column(head, groups.collect())
        })
        .collect();

    // Widths say where networks are; routers stand over the middle of theirs, external networks over their routers.
    let sizes: Vec<_> = blocks.iter().map(|block| (block.w, block.h, None)).collect();
    let (at, _) = arrange(&sizes, 0);
    let mut middle: BTreeMap<(&'static str, &str), u32> = BTreeMap::new();
    for ((network, block), (x, _)) in inner.iter().zip(&blocks).zip(&at) {
        middle.insert(("network", &network.name), x + block.w / 2);
    }
    let mean = |of: &[u32]| (!of.is_empty()).then(|| of.iter().sum::<u32>() / of.len() as u32);
    let mut routers: Vec<_> = objects
        .routers
        .iter()
        .map(|router| {
            let under = router.legs.iter().filter_map(|leg| middle.get(&("network", leg.network.as_str())));
            (router, mean(&under.copied().collect::<Vec<_>>()))
        })
        .collect();
    routers.sort_by_key(|(router, at)| (at.unwrap_or(u32::MAX), &router.name));
    let sizes: Vec<_> = routers.iter().map(|(_, at)| (BOX.0, BOX.1, *at)).collect();
    let (router_at, router_height) = arrange(&sizes, 0);
    for ((router, _), (x, _)) in routers.iter().zip(&router_at) {
        middle.insert(("router", &router.name), x + BOX.0 / 2);
    }
    let mut outer: Vec<_> = objects
        .networks
        .iter()
        .filter(|network| network.external)
        .map(|network| {
            let under = objects
                .routers
                .iter()
                .filter(|router| router.legs.iter().any(|leg| leg.network == network.name))
                .filter_map(|router| middle.get(&("router", router.name.as_str())));
            (network, mean(&under.copied().collect::<Vec<_>>()))
        })
        .collect();
    outer.sort_by_key(|(network, at)| (at.unwrap_or(u32::MAX), &network.name));
    let sizes: Vec<_> = outer.iter().map(|(_, at)| (BOX.0, BOX.1, *at)).collect();
    let (outer_at, outer_height) = arrange(&sizes, 0);

    let mut boxes = Vec::new();
    let mut top = MARGIN;
    for ((network, _), (x, y)) in outer.iter().zip(&outer_at) {
        boxes.push(Shape {
            kind: "network",
            name: network.name.clone(),
            detail: format!("external · MTU {}", network.mtu),
            external: true,
            x: *x,
            y: y + top,
            w: BOX.0,
            h: BOX.1,
            ..Shape::default()
        });
    }
    top += if outer.is_empty() { 0 } else { outer_height + ROW_GAP };
    for ((router, _), (x, y)) in routers.iter().zip(&router_at) {
        let outside: Vec<_> = router.legs.iter().filter(|leg| leg.external).collect();
        let addresses: Vec<_> =
            outside.iter().flat_map(|leg| leg.addresses.iter().map(String::as_str)).collect();
        let snat = if outside.iter().any(|leg| leg.snat) { "SNAT " } else { "" };
        boxes.push(Shape {
            kind: "router",
            name: router.name.clone(),
            detail: match addresses.first() {
                Some(address) => format!("{snat}{address}"),
                None => format!("{} networks", router.legs.len()),
            },
            x: *x,
            y: y + top,
            w: BOX.0,
            h: BOX.1,
            ..Shape::default()
        });
    }
    top += if routers.is_empty() { 0 } else { router_height + ROW_GAP };
    for (block, (x, y)) in blocks.into_iter().zip(&at) {
        boxes.extend(block.boxes.into_iter().map(|shape| Shape {
            x: shape.x + x,
            y: shape.y + y + top,
            ..shape
        }));
    }

    let mut place: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for (i, shape) in boxes.iter().enumerate().filter(|(_, it)| matches!(it.kind, "network" | "router")) {
        place.insert((shape.kind, &shape.name), i);
    }
    let mut lines = Vec::new();
    for router in &objects.routers {
        for leg in &router.legs {
            let ends = [("router", router.name.as_str()), ("network", leg.network.as_str())];
            if let [Some(&a), Some(&b)] = ends.map(|end| place.get(&end)) {
                lines.push(line(&boxes, a, b));
            }
        }
    }
    finish(View::Networks, objects.epoch, boxes, lines)
}

/// From the lower edge of the upper one to the upper edge of the lower one.
fn line(boxes: &[Shape], a: usize, b: usize) -> Line {
    let (from, to) = if boxes[a].y <= boxes[b].y { (a, b) } else { (b, a) };
    let (upper, lower) = (&boxes[from], &boxes[to]);
    Line {
        from,
        to,
        x1: upper.x + upper.w / 2,
        y1: upper.y + upper.h,
        x2: lower.x + lower.w / 2,
        y2: lower.y,
    }
}

fn nodes(objects: &Objects, wish: &Wish) -> Drawing {
    let mut by_node: BTreeMap<Option<&str>, BTreeMap<&str, Vec<&Port>>> = BTreeMap::new();
    for node in &objects.nodes {
        by_node.entry(Some(&node.name)).or_default();
    }
    for port in &objects.ports {
        by_node.entry(port.node.as_deref()).or_default().entry(&port.network).or_default().push(port);
    }
    let blocks: Vec<Block> = by_node
        .iter()
        .map(|(name, networks)| {
            let ports = networks.values().map(Vec::len).sum();
            let can_toggle = ports > OPEN_UP_TO;
            let title = name.unwrap_or("bound nowhere");
            let is_open = !can_toggle || wish.open.contains(title);
            let vtep = objects.nodes.iter().find(|node| Some(node.name.as_str()) == *name);
            let head = Shape {
                kind: "node",
                name: title.to_owned(),
                detail: vtep.map_or_else(String::new, |node| format!("VTEP {}", node.vtep)),
                w: BOX.0,
                h: BOX.1,
                ports,
                can_toggle,
                is_open,
                ..Shape::default()
            };
            let groups = networks.iter().map(|(network, ports)| group(network, ports, is_open, &wish.show));
            column(head, groups.collect())
        })
        .collect();
    let sizes: Vec<_> = blocks.iter().map(|block| (block.w, block.h, None)).collect();
    let (at, _) = arrange(&sizes, MARGIN);
    let boxes = blocks.into_iter().zip(at).flat_map(|(block, (x, y))| {
        block.boxes.into_iter().map(move |shape| Shape { x: shape.x + x, y: shape.y + y, ..shape })
    });
    finish(View::Nodes, objects.epoch, boxes.collect(), Vec::new())
}

fn finish(view: View, epoch: u32, boxes: Vec<Shape>, lines: Vec<Line>) -> Drawing {
    let edge = |end: fn(&Shape) -> u32| boxes.iter().map(end).max().unwrap_or(0) + MARGIN;
    let (width, height) = (edge(|it| it.x + it.w), edge(|it| it.y + it.h));
    Drawing { view, epoch, width, height, boxes, lines }
}

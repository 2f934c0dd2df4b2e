//! What an apply, a restart and a foreign pin do to flows, counters and packets.

use std::fs;

use vrouter::{
    banks::{Applied, Banks, Maps, Touch},
    data_path::DataPath,
    kernel::Map,
};
use vrouter_common::{addr::Ip, flow::Flow, memory::Image, tables::*};

use crate::{
    frames::*,
    harness::*,
    topology::{self, *},
};

fn blue() -> Packet {
    Packet::routed(11, port_v4(21))
}

/// On the network that no router connects to the others.
fn unrelated() -> Packet {
    Packet::switched(41, 42, false)
}

fn flow_of(world: &World, packet: &Packet) -> Flow {
    let flows = world.flow_entries();
    let mut found = flows.iter().filter(|(key, _)| key.src == Ip::from(packet.src));
    let flow = *found.next().expect("a flow").1;
    assert!(found.next().is_none(), "one flow from there");
    flow
}

#[test]
fn an_apply_decides_only_touched_networks_again() {
    with_world(|world| {
        let run = |world: &World| {
            for (at, packet) in [("p11", blue()), ("p41", unrelated())] {
                assert_eq!(world.run(Via::Tc, at, &packet.build()).verdict, TC_ACT_REDIRECT);
            }
        };
        run(world);
        run(world);
        assert_eq!(flow_of(world, &blue()).packets, 2);
        assert_eq!(flow_of(world, &unrelated()).packets, 2);

        // A station of network 2 moves: that concerns what comes from there or goes there.
        let mut image = topology::image(&world.ifindexes);
        let key = FdbKey::new(0, 2, port_mac(21));
        image.fdb.get_mut(&key).expect("a station").place = PLACE_UNBOUND;
        let applied = world.apply(image.clone());
        assert_eq!((applied.epoch, applied.networks), (2, 1));

        let before = world.counts();
        run(world);
        assert_eq!(since(&before, &world.counts()), Counts::from([("flow_miss", 1)]));
        let (touched, kept) = (flow_of(world, &blue()), flow_of(world, &unrelated()));
        assert_eq!((touched.epoch, touched.packets), (2, 1), "decided again");
        assert_eq!((kept.epoch, kept.packets), (1, 3), "hit");

        // The packet is sent by the new topology, whatever the entry said before.
        for address in [port_v4(21).into(), std::net::IpAddr::from(port_v6(21))] {
            let station =
                image.addresses.get_mut(&AddressKey::new(0, 2, Ip::from(address))).expect("a station");
            (station.place, station.at) = (PLACE_REMOTE, 2);
        }
        let applied = world.apply(image);
        assert_eq!(applied.epoch, 3);
        for (at, packet) in [("p11", blue()), ("p41", unrelated())] {
            assert_eq!(world.run(Via::Xdp, at, &packet.build()).verdict, XDP_REDIRECT);
        }
        let (touched, kept) = (flow_of(world, &blue()), flow_of(world, &unrelated()));
        assert_eq!((touched.exit, touched.target), (vrouter_common::flow::EXIT_TUNNEL, 2));
        assert_eq!((kept.epoch, kept.packets), (1, 4), "still hit");
    });
}

#[test]
fn a_removed_port_is_unknown_at_the_next_packet() {
    with_world(|world| {
        assert_eq!(world.run(Via::Tc, "p11", &blue().build()).verdict, TC_ACT_REDIRECT);
        let mut image = topology::image(&world.ifindexes);
        image.bindings.remove(&BindingKey { ifindex: Scoped::new(0, world.ifindex("p11")) });
        world.apply(image);
        for via in Via::BOTH {
            let (ran, counts) = world.run_counted(via, "p11", &blue().build());
            assert_eq!(ran.verdict, via.drop());
            assert_eq!(counts, Counts::from([("flow_miss", 1), ("port_unknown", 1)]));
        }
    });
}

/// Behaviour C2: until something was applied nothing is let through, and the uplink is left alone.
#[test]
fn before_the_first_commit_ports_are_shut() {
    in_namespace(|| {
        let world = World::new(FLOW_ENTRIES);
        for (name, frame) in [
            ("IPv4", blue().build()),
            ("IPv6", Packet::routed(11, port_v6(21)).build()),
            ("ARP", arp_request(11, v4(1, 1))),
            ("ND", nd_solicit(11, v6(1, 1)).build()),
        ] {
            for via in Via::BOTH {
                let (ran, counts) = world.run_counted(via, "p11", &frame);
                if via == Via::Xdp && !left_by_xdp(&frame).contains_key("flow_miss") {
                    assert_eq!((ran.verdict, counts), (XDP_PASS, left_by_xdp(&frame)), "{name} by {via:?}");
                    continue;
                }
                assert_eq!(ran.verdict, via.drop(), "{name} by {via:?}");
                assert_eq!(
                    counts,
                    Counts::from([("flow_miss", 1), ("port_unknown", 1)]),
                    "{name} by {via:?}"
                );
            }
        }
        let arriving = arriving(2, vni(1), &Packet::switched(15, 11, false).build());
        for via in Via::BOTH {
            let ran = world.run(via, UPLINK, &arriving);
            assert_eq!(ran, Ran { verdict: via.pass(), frame: arriving.clone() }, "{via:?}");
        }
        assert!(world.flow_entries().is_empty());
    });
}

/// Behaviour C1: a restarted agent goes on with the flows, counters and epoch it finds.
#[test]
fn a_restart_keeps_everything() {
    in_namespace(|| {
        let mut world = World::new(FLOW_ENTRIES);
        let image = topology::image(&world.ifindexes);
        world.apply(image.clone());
        world.run(Via::Tc, "p11", &blue().build());
        world.run(Via::Tc, "p11", &Packet::routed(11, v4(66, 1)).build());
        let commit = topology::complete(*world.banks.commit(), &world.ifindexes);
        let (flows, counts) = (world.flow_entries(), world.counts());
        let attached = world.data_path.attached().clone();
        assert_eq!(flows.len(), 1);
        assert_eq!(counts, Counts::from([("flow_miss", 2), ("route_blackhole", 1)]));

        // Another size is asked for; the pinned table keeps its own.
        let mut world = world.restart(FLOW_ENTRIES * 2);
        assert_eq!(world.flow_entries(), flows);
        assert_eq!(world.counts(), counts);
        assert_eq!(*world.banks.commit(), commit);
        assert_eq!(*world.banks.in_force(), image);
        assert_eq!(*world.data_path.attached(), attached, "links are taken over");
        assert_eq!(world.apply(image), Applied { epoch: 1, writes: 0, networks: 0 });

        for via in Via::BOTH {
            assert_eq!(world.run(via, "p11", &blue().build()).verdict, via.redirect());
        }
        let (_, flow) = world.only_flow();
        assert_eq!((flow.packets, flow.epoch), (3, 1), "the new programs hit the old entry");
        assert_eq!(world.counts(), counts, "no miss");
    });
}

#[test]
fn an_identical_image_writes_nothing() {
    with_world(|world| {
        let image = topology::image(&world.ifindexes);
        let commit = *world.banks.commit();
        assert_eq!((commit.epoch, commit.digest, commit.schema), (1, 1, SCHEMA));
        assert_eq!(world.apply(image.clone()), Applied { epoch: 1, writes: 0, networks: 0 });
        assert_eq!(*world.banks.commit(), commit);

        // A document that says the same in other words: its digest is noted, no flow is decided again.
        world.run(Via::Tc, "p11", &blue().build());
        let applied = world
            .banks
            .apply(image.clone(), &published(2, &world.ifindexes), &Touch::Changed)
            .expect("apply");
        assert_eq!(applied, Applied { epoch: 1, writes: 0, networks: 0 });
        let stored: Map<u32, Commit> = Map::open(&world.pins().maps(), "COMMIT").expect("COMMIT");
        assert_eq!(stored.lookup(&0).expect("COMMIT"), Some(Commit { digest: 2, ..commit }));
        world.run(Via::Tc, "p11", &blue().build());
        assert_eq!(world.only_flow().1.packets, 2);

        // What was written is what is read back, by others too.
        let banks = Banks::open(&world.pins().maps()).expect("banks");
        assert_eq!(*banks.in_force(), image);
    });
}

/// The bank that comes into force holds everything, whatever it held before.
#[test]
fn both_banks_are_whole() {
    with_world(|world| {
        let image = topology::image(&world.ifindexes);
        let mut small = image.clone();
        small.routes.clear();
        small.floods.clear();
        small.fdb.retain(|key, _| key.network.id() != 2);
        for (epoch, image) in [(2, &small), (3, &image), (4, &image), (5, &small), (6, &image)] {
            let touch_all = world.banks.in_force() == image;
            let applied = world
                .banks
                .apply(
                    image.clone(),
                    &published(1, &world.ifindexes),
                    if touch_all { &Touch::All } else { &Touch::Changed },
                )
                .expect("apply");
            assert_eq!(applied.epoch, epoch);
            assert_eq!(world.banks.in_force(), image);
            assert_eq!(Banks::open(&world.pins().maps()).expect("banks").in_force(), image, "epoch {epoch}");
            let (ran, counts) = world.run_counted(Via::Tc, "p11", &blue().build());
            let no_route = *image == small;
            assert_eq!(counts.contains_key("no_route"), no_route, "epoch {epoch}: {counts:?}");
            assert_eq!(ran.verdict, TC_ACT_REDIRECT, "forwarded, or told that there is no route");
        }
    });
}

/// In a calm moment the other bank is made the same: the next change writes itself alone, and is as whole.
#[test]
fn a_bank_that_was_evened_out_takes_the_next_change_alone() {
    with_world(|world| {
        let image = topology::image(&world.ifindexes);
        let mut small = image.clone();
        let cut = small.routes.pop_first().expect("a route");
        let apply = |world: &mut World, image: &Image| {
            let published = published(1, &world.ifindexes);
            world.banks.apply(image.clone(), &published, &Touch::Changed).expect("apply")
        };
        let held = |world: &World| {
            let maps = Maps::open(&world.pins().maps()).expect("maps");
            [0, 1].map(|bank| maps.read(bank).expect("a bank"))
        };
        // As yet the other bank is empty.
        let before = world.banks.commit().epoch;
        assert_ne!(held(world), [image.clone(), image.clone()]);
        assert!(world.banks.even_out().expect("even out") > 1);
        assert_eq!(held(world), [image.clone(), image.clone()]);
        assert_eq!(world.banks.even_out().expect("even out"), 0);
        assert_eq!(
            (world.banks.commit().epoch, world.banks.in_force()),
            (before, &image),
            "it is in force still"
        );

        assert_eq!(apply(world, &small).writes, 1, "the route alone");
        // One after the other, without calm: both changes.
        let mut changed = small.clone();
        changed.floods.pop_first().expect("a list");
        assert_eq!(apply(world, &changed).writes, 2);
        assert_eq!(world.banks.even_out().expect("even out"), 1, "the list");
        assert_eq!(held(world), [changed.clone(), changed.clone()]);
        let mut mended = changed;
        mended.routes.insert(cut.0, cut.1);
        assert_eq!(apply(world, &mended).writes, 1, "the route alone");
    });
}

/// aya would take any pinned map; ours says which one is not what this version needs.
#[test]
fn a_map_of_another_shape_is_refused_by_name() {
    with_world(|world| {
        let maps = world.pins().maps();
        let replace = |name: &str, by: &str| {
            let (path, aside) = (maps.join(name), maps.join(format!("{name}_aside")));
            fs::rename(&path, &aside).expect("rename");
            let foreign = aya::maps::MapData::from_pin(maps.join(by)).expect("a pinned map");
            foreign.pin(&path).expect("pin");
            (path, aside)
        };
        let refused = |name: &str, error: anyhow::Error| {
            let message = format!("{error:#}");
            let path = maps.join(name);
            assert!(message.contains(path.to_str().expect("UTF-8")), "{name} is not named in: {message}");
            assert!(message.contains("--discard-state"), "no way out in: {message}");
        };
        for (name, by) in [("FDB", "REVISIONS"), ("COMMIT", "REVISIONS"), ("ROUTES", "ALLOWED")] {
            let (path, aside) = replace(name, by);
            refused(name, Banks::open(&maps).err().expect("another shape is refused"));
            fs::remove_file(&path).expect("remove");
            fs::rename(&aside, &path).expect("rename");
        }
        let (path, aside) = replace("FLOWS", "FDB");
        refused(
            "FLOWS",
            Map::<vrouter_common::flow::FlowKey, Flow>::open(&maps, "FLOWS").err().expect("refused"),
        );
        match DataPath::load(world.pins().clone(), FLOW_ENTRIES) {
            Ok(_) => panic!("programs were loaded over a foreign flow table"),
            Err(error) => refused("FLOWS", error),
        }
        fs::remove_file(&path).expect("remove");
        fs::rename(&aside, &path).expect("rename");
        Banks::open(&maps).expect("all is well again");
    });
}

/// A state of another schema is refused before it is read.
#[test]
fn another_schema_is_refused() {
    with_world(|world| {
        let maps = world.pins().maps();
        let commit: Map<u32, Commit> = Map::open(&maps, "COMMIT").expect("COMMIT");
        let stored = commit.lookup(&0).expect("COMMIT").expect("an entry");
        commit.set(&0, &Commit { schema: SCHEMA + 1, ..stored }).expect("COMMIT");
        let error = Banks::open(&maps).err().expect("another schema is refused");
        assert!(format!("{error:#}").contains("schema"), "{error:#}");
    });
}

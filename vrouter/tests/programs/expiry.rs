//! Connections in the kernel's tables: walked, told apart, expired by `vr_expire` and deleted.

use std::{
    cell::Cell,
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr},
    process::Command,
    time::{Duration, Instant},
};

use vrouter::{
    agent::Sweeper,
    clock::{Clock, Ticks},
    connections::{FlowTables, Flows, Judge, Leg, State, Table, Timeouts, expire::Expirer, tables::Walk},
    data_path::{DataPath, Pins},
    kernel::{Cursor, Map},
    rates::{index::Index, meter::Meter},
    top::sheet::Sheet,
};
use vrouter_common::{
    addr::{Be16, Ip},
    flow::*,
    wire::{PROTO_TCP, PROTO_UDP, TCP_ACK, TCP_FIN, TCP_SYN},
};

use crate::{
    frames::Packet,
    harness::{Via, in_namespace, new_pins, with_world},
    topology::port_v4,
};

/// Pinned programs and maps, without a topology.
struct Tables {
    pins: Pins,
    tables: FlowTables,
    ticks: Ticks,
}

impl Tables {
    fn with(flow_entries: u32, test: impl FnOnce(&Self) + Send + 'static) {
        in_namespace(move || {
            let pins = new_pins();
            let data_path = DataPath::load(pins.clone(), flow_entries).expect("the programs load");
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                let ticks = Clock::open(&pins).expect("clock").read().expect("ticks");
                let tables = FlowTables::open(&pins.maps()).expect("tables");
                test(&Self { pins: pins.clone(), tables, ticks });
            }));
            drop(data_path);
            pins.discard().expect("pins");
            if let Err(panic) = outcome {
                std::panic::resume_unwind(panic);
            }
        });
    }

    fn ago(&self, seconds: u32) -> u32 {
        self.ticks.now.wrapping_sub(seconds * self.ticks.per_second)
    }

    /// The two legs of connection number `i`, as the data path would leave them.
    fn connection(&self, i: u32, proto: u8, idle: u32, table: Table) -> [Leg; 2] {
        let inside = Ip::from(IpAddr::from(Ipv4Addr::from_bits(0x0a00_0000 + i)));
        let outside = Ip::from(IpAddr::from([203, 0, 113, 10]));
        let server = Ip::from(IpAddr::from(Ipv4Addr::from_bits(0x0800_0000 + (i >> 16))));
        let (port, translated) = (Be16::new(40_000), Be16::new(i as u16));
        let key = FlowKey {
            src: inside,
            dst: server,
            zone: 7,
            sport: port,
            dport: Be16::new(443),
            proto,
            from: FROM_PORT,
            zero: 0,
        };
        let flow = Flow {
            tag: key.tag(),
            tag_end: key.tag(),
            epoch: 1,
            src: outside,
            dst: server,
            sport: translated,
            dport: key.dport,
            peer_zone: 5000,
            peer_from: FROM_NETWORK,
            role: ROLE_ORIGINAL,
            flags: FLOW_NAT | FLOW_SNAT,
            router: 3,
            seen: self.ago(idle),
            created: self.ago(idle + 10),
            packets: 1,
            tcp_flags: if proto == PROTO_TCP { TCP_SYN | TCP_ACK } else { 0 },
            ..Flow::default()
        };
        let reply_key = flow.peer_key(&key);
        let reply = Flow {
            tag: reply_key.tag(),
            tag_end: reply_key.tag(),
            src: server,
            dst: inside,
            sport: key.dport,
            dport: port,
            peer_zone: 7,
            peer_from: FROM_PORT,
            role: ROLE_REPLY,
            ..flow
        };
        [Leg { key, flow, table }, Leg { key: reply_key, flow: reply, table }]
    }

    fn store(&self, legs: &[Leg]) {
        for leg in legs {
            self.tables.map(leg.table).set(&leg.key, &leg.flow).expect("a flow");
        }
    }

    fn add(&self, i: u32, proto: u8, idle: u32, table: Table) -> [Leg; 2] {
        let legs = self.connection(i, proto, idle, table);
        self.store(&legs);
        legs
    }

    fn has(&self, leg: &Leg) -> bool {
        self.tables.map(leg.table).lookup(&leg.key).expect("a table").is_some()
    }

    fn all(&self) -> Vec<Flows> {
        let mut all = Vec::new();
        self.tables
            .for_each(|flows| {
                all.push(*flows);
                Ok(())
            })
            .expect("a walk");
        all
    }

    fn judge(&self) -> Judge {
        Judge { ticks: self.ticks, timeouts: Timeouts::default(), decision_idle: Duration::from_secs(300) }
    }

    fn sweeper(&self) -> Sweeper {
        Sweeper::open(&self.pins, Timeouts::default(), 300).expect("a sweeper")
    }
}

/// Steps until a pass is done; what it said.
fn pass(sweeper: &mut Sweeper) -> Vec<String> {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        if let Some(notices) = sweeper.step().expect("a step") {
            return notices
                .into_iter()
                .map(|notice| notice.warning.unwrap_or_else(|| "over".to_owned()))
                .collect();
        }
        assert!(Instant::now() < deadline, "a pass does not end");
    }
}

#[test]
fn a_walk_tells_of_every_connection_once() {
    Tables::with(8192, |it| {
        let mut expected = BTreeSet::new();
        for i in 0..3000 {
            let table = if i % 3 == 0 { Table::Transient } else { Table::Flows };
            expected.insert(it.add(i, PROTO_TCP, 1, table)[0].key);
        }
        let mut halves = BTreeSet::new();
        for i in 3000..3010 {
            let legs = it.connection(i, PROTO_UDP, 1, Table::Flows);
            it.store(&legs[(i % 2) as usize..][..1]);
            halves.insert(legs[(i % 2) as usize].key);
        }
        // A connection on its way from one table to the other.
        let mut moving = it.connection(4000, PROTO_TCP, 1, Table::Flows);
        moving[1].table = Table::Transient;
        it.store(&moving);
        expected.insert(moving[0].key);
        let [mut decision, _] = it.connection(5000, PROTO_UDP, 1, Table::Transient);
        decision.flow.role = ROLE_NONE;
        it.store(&[decision]);

        let all = it.all();
        let mut found = BTreeSet::new();
        let mut half = BTreeSet::new();
        for flows in &all {
            match flows {
                Flows::Connection { original, reply } => {
                    assert_eq!(original.peer_key(), reply.key);
                    assert!(found.insert(original.key), "told of twice");
                }
                Flows::Half(leg) => assert!(half.insert(leg.key)),
                Flows::Decision(leg) => assert_eq!(leg.key, decision.key),
            }
        }
        assert_eq!(found, expected);
        assert_eq!(half, halves);
        assert_eq!(all.len(), expected.len() + halves.len() + 1);
    });
}

/// A bucket may hold more than a batch has room for.
#[test]
fn batches_grow_where_they_must() {
    Tables::with(4096, |it| {
        for i in 0..2000 {
            it.add(i, PROTO_UDP, 1, Table::Flows);
        }
        let map = it.tables.map(Table::Flows);
        for room in [1, 2, 7, 5000] {
            let mut cursor = Cursor::with_room(room);
            let mut keys = BTreeSet::new();
            while let Some(batch) = map.next_batch(&mut cursor).expect("a batch") {
                for (key, flow) in batch {
                    assert!(keys.insert(*key), "twice");
                    assert_eq!(flow.tag, key.tag(), "the value of another");
                }
            }
            assert_eq!(keys.len(), 4000, "with room for {room}");
        }
        assert_eq!(map.entries().expect("entries").len(), 4000);
        // Arrays, too, in the order of their indexes.
        let array: Map<u32, u32> = Map::open(&it.pins.maps(), "REVISIONS").expect("an array");
        array.set_all(&[3, 700, 65_535], &[1, 2, 3]).expect("a write");
        let set: Vec<_> =
            array.entries().expect("entries").into_iter().filter(|(_, value)| *value != 0).collect();
        assert_eq!(set, [(3, 1), (700, 2), (65_535, 3)]);
        let error = array.set_all(&[65_536], &[1]).expect_err("behind the end");
        assert!(format!("{error:#}").contains("REVISIONS"), "{error:#}");
    });
}

#[test]
fn a_pass_expires_what_is_idle_and_keeps_the_rest() {
    Tables::with(8192, |it| {
        let old = [
            it.add(1, PROTO_TCP, 432_001, Table::Flows),
            it.add(2, PROTO_UDP, 121, Table::Flows),
            it.add(3, PROTO_UDP, 121, Table::Transient),
        ];
        let young = [
            it.add(11, PROTO_TCP, 431_000, Table::Flows),
            it.add(12, PROTO_UDP, 100, Table::Flows),
            it.add(13, PROTO_UDP, 100, Table::Transient),
        ];
        // One direction is busy, whichever.
        let mut busy = it.connection(14, PROTO_UDP, 1000, Table::Flows);
        busy[1].flow.seen = it.ago(1);
        it.store(&busy);
        let mut closed = it.connection(15, PROTO_TCP, 121, Table::Flows);
        closed.iter_mut().for_each(|leg| leg.flow.tcp_flags |= TCP_FIN);
        it.store(&closed);
        // An original whose reply was evicted, and the opposite.
        let lonely = [
            it.connection(16, PROTO_TCP, 11, Table::Transient)[0],
            it.connection(17, PROTO_TCP, 11, Table::Flows)[1],
        ];
        it.store(&lonely);
        let kept_lonely = it.connection(18, PROTO_TCP, 5, Table::Flows)[0];
        it.store(&[kept_lonely]);
        let [mut decision, _] = it.connection(19, PROTO_UDP, 301, Table::Transient);
        let [mut kept_decision, _] = it.connection(20, PROTO_UDP, 290, Table::Transient);
        for decision in [&mut decision, &mut kept_decision] {
            decision.flow.role = ROLE_NONE;
            it.store(&[*decision]);
        }

        let mut sweeper = it.sweeper();
        assert!(pass(&mut sweeper).is_empty(), "nothing to say");
        let expired = old.iter().flatten().chain(&closed).chain(&lonely).chain([&decision]);
        for (i, leg) in expired.enumerate() {
            assert!(!it.has(leg), "number {i} is still there: {leg:?}");
        }
        let kept = young.iter().flatten().chain(&busy).chain([&kept_lonely, &kept_decision]);
        for (i, leg) in kept.enumerate() {
            assert!(it.has(leg), "number {i} is gone: {leg:?}");
        }
        let status = sweeper.status();
        assert_eq!((status.expired, status.spared), (7, 0));
        assert_eq!(status.states["ESTABLISHED"], 1);
        assert_eq!(status.states["ASSURED"], 3);
        assert_eq!((status.states["HALF"], status.states["STATELESS"]), (1, 1));
        assert_eq!(status.snat.iter().map(|snat| snat.flows).sum::<u64>(), 6, "what stayed");
        assert_eq!((status.snat[0].router_id, status.snat[0].address), (3, IpAddr::from([203, 0, 113, 10])));

        // What is counted is what was there; the next pass finds the rest.
        pass(&mut sweeper);
        let status = sweeper.status();
        assert_eq!((status.flows.entries, status.flows.entries_max), (7, 8192));
        assert_eq!(status.transient.entries, 3);
        assert_eq!(status.expired, 7);
    });
}

/// The heart of it: a packet between the judgment and the removal keeps both legs.
#[test]
fn a_connection_that_wakes_up_before_it_is_removed_stays() {
    Tables::with(1024, |it| {
        let table = Table::Flows;
        let connections: Vec<_> = (0..40).map(|i| it.add(i, PROTO_UDP, 1000, table)).collect();
        let all = it.all();
        assert!(all.iter().all(|flows| it.judge().standing(flows).is_over()));
        // In the original direction, in the reply's, and in both.
        for (i, which) in [(3, &[0][..]), (20, &[1]), (39, &[0, 1])] {
            for &leg in which {
                let mut touched = connections[i][leg];
                touched.flow.seen = it.ago(0);
                touched.flow.packets += 1;
                it.store(&[touched]);
            }
        }
        let mut expirer = Expirer::open(&it.pins).expect("vr_expire");
        for flows in &all {
            expirer.expire(flows).expect("a request");
        }
        let outcome = expirer.finish().expect("a run");
        assert_eq!((outcome.removed, outcome.busy), (37, 3));
        for (i, legs) in connections.iter().enumerate() {
            let stays = [3, 20, 39].contains(&i);
            assert_eq!(legs.each_ref().map(|leg| it.has(leg)), [stays; 2], "connection {i}");
        }
        assert_eq!(expirer.finish().expect("nothing to do").removed, 0, "nothing is left over");

        // The awake ones are judged anew.
        let mut sweeper = it.sweeper();
        pass(&mut sweeper);
        assert_eq!(it.all().len(), 3);
    });
}

#[test]
fn a_table_that_runs_full_is_spoken_of_once_and_again_when_it_has_room() {
    Tables::with(1000, |it| {
        let mut sweeper = it.sweeper();
        let mut fill = |range: std::ops::Range<u32>| {
            for i in range {
                it.add(i, PROTO_TCP, 1, Table::Flows);
            }
            pass(&mut sweeper)
        };
        assert!(fill(0..395).is_empty());
        let said = fill(395..400);
        assert!(said.len() == 1 && said[0].contains("80 % full (800 of 1000)"), "{said:?}");
        assert!(fill(400..410).is_empty(), "once");
        let said = fill(410..475);
        assert!(said.len() == 1 && said[0].contains("95 % full (950 of 1000)"), "{said:?}");
        for flows in it.all() {
            it.tables.remove(&flows).expect("a removal");
        }
        assert_eq!(pass(&mut sweeper), ["over"]);
        assert_eq!(sweeper.status().flows.entries, 0);
    });
}

/// The commands, over the same pins, with no agent.
#[test]
fn commands_read_and_delete_without_an_agent() {
    Tables::with(4096, |it| {
        for i in 0..600 {
            it.add(i, PROTO_TCP, 1, Table::Flows);
        }
        it.add(700, PROTO_UDP, 1, Table::Flows);
        let [mut decision, _] = it.connection(800, PROTO_UDP, 1, Table::Transient);
        decision.flow.role = ROLE_NONE;
        it.store(&[decision]);
        let instance = it.pins.root().file_name().expect("an instance").to_str().expect("a name").to_owned();
        let vrouter = |arguments: &[&str]| {
            let output = Command::new(env!("CARGO_BIN_EXE_vrouter"))
                .args(arguments)
                .args(["--instance", &instance])
                .output()
                .expect("vrouter");
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            (output.status.code(), text(&output.stdout), text(&output.stderr))
        };
        let done = |arguments: &[&str]| {
            let (code, out, err) = vrouter(arguments);
            assert_eq!(code, Some(0), "{arguments:?}: {err}");
            out
        };
        assert_eq!(done(&["flows", "--count"]), "601\n");
        assert_eq!(done(&["flows", "--count", "--all"]), "602\n");
        assert_eq!(done(&["flows", "--count", "--proto", "udp", "--state", "assured"]), "1\n");
        let table = done(&["flows", "--address", "10.0.0.5"]);
        assert_eq!(table.lines().count(), 2, "{table}");
        assert!(table.contains("ESTABLISHED  10.0.0.5:40000 > 8.0.0.0:443  src 203.0.113.10:5"), "{table}");
        assert_eq!(done(&["flows", "--limit", "3"]).lines().count(), 4);
        let rows: serde_json::Value =
            serde_json::from_str(&done(&["flows", "--output", "json"])).expect("JSON");
        let rows = rows.as_array().expect("an array");
        assert_eq!(rows.len(), 601);
        assert!(rows.iter().all(|row| row["reply"]["dst"] == "203.0.113.10" && row["translated"] == true));
        let none = done(&["flows", "--l4port", "9999", "--output", "json"]);
        assert_eq!(serde_json::from_str::<serde_json::Value>(&none).expect("JSON"), serde_json::json!([]));
        let lines = done(&["conntrack", "--address", "10.0.0.5"]);
        assert!(
            lines
                .starts_with("tcp      6 431998 ESTABLISHED src=10.0.0.5 dst=8.0.0.0 sport=40000 dport=443 ")
                || lines.starts_with("tcp      6 43199"),
            "{lines}"
        );
        let dump: serde_json::Value =
            serde_json::from_str(&done(&["map-dump", "--output", "json"])).expect("JSON");
        for map in dump.as_array().expect("maps") {
            for entry in map["entries"].as_array().expect("entries") {
                assert!(entry["key"].is_object() && entry["value"].is_object(), "{}: {entry}", map["map"]);
            }
        }
        for arguments in [&["show", "nat"][..], &["show", "acl"], &["show", "hops"]] {
            done(arguments);
            let json = done(&[arguments, &["--output", "json"]].concat());
            serde_json::from_str::<serde_json::Value>(&json).expect("JSON");
        }

        for (arguments, code, complaint) in [
            (&["flows", "delete"][..], 1, "--all-flows"),
            (&["flows", "delete", "--port", "vm9"], 1, "there is no port vm9"),
            (&["flows", "--l4port", "0"], 2, "--l4port"),
            (&["flows", "--address", "10.0.0"], 2, "neither an address nor a range"),
            (&["flows", "--state", "OPEN"], 2, "ESTABLISHED"),
            (&["show", "routes", "x"], 2, "only `vrouter show acl`"),
            (&["show", "acl", "x"], 1, "no port x"),
        ] {
            let (found, _, err) = vrouter(arguments);
            assert!(found == Some(code) && err.contains(complaint), "{arguments:?}: {found:?} {err}");
        }
        assert_eq!(done(&["flows", "delete", "--address", "10.0.0.5"]), "1 connections deleted\n");
        assert_eq!(done(&["flows", "delete", "--proto", "udp"]), "1 connections deleted\n");
        assert_eq!(it.all().len(), 600, "both legs of each, and the decision stays");
        assert!(it.all().iter().all(|flows| !matches!(flows, Flows::Half(_))));
        assert_eq!(done(&["flows", "delete", "--all-flows"]), "599 connections deleted\n");
        assert_eq!(it.all().len(), 1);
        assert_eq!(it.judge().standing(&it.all()[0]).state, State::Stateless);
    });
}

/// What all of this rests on: a flow that has packets is not idle.
#[test]
fn every_packet_of_a_flow_moves_its_clock() {
    with_world(|world| {
        let tables = FlowTables::open(&world.pins().maps()).expect("tables");
        let clock = Clock::open(world.pins()).expect("clock");
        let packet = Packet::routed(11, port_v4(21)).build();
        let mut before = None;
        for round in 0..4 {
            for via in Via::BOTH {
                let started = clock.now().expect("ticks");
                assert_eq!(world.run(via, "p11", &packet).verdict, via.redirect());
                let mut seen = Vec::new();
                let tell = |flows: &Flows| {
                    seen.extend(
                        flows.original().filter(|leg| leg.key.from == FROM_PORT).map(|leg| leg.flow.seen),
                    );
                    Ok(())
                };
                tables.for_each(tell).expect("a walk");
                assert_eq!(seen.len(), 1, "one flow");
                let behind = seen[0].wrapping_sub(started) as i32;
                assert!(behind >= 0, "round {round} by {via:?}: {behind} ticks behind");
                assert_ne!(before.replace(seen[0]), Some(seen[0]), "round {round} by {via:?}");
                // More than the longest tick.
                std::thread::sleep(Duration::from_millis(15));
            }
        }
    });
}

/// Numbers for docs/performance.md: `cargo test -p vrouter --release --test programs -- --ignored --nocapture
/// a_million`.
#[test]
#[ignore = "a measurement of minutes: nothing is asserted but that all of it is done"]
fn a_million_flows_are_listed_and_expired() {
    const CONNECTIONS: u32 = 500_000;
    Tables::with(1 << 20, |it| {
        let began = Instant::now();
        for i in 0..CONNECTIONS {
            it.add(i, PROTO_UDP, 1000, Table::Flows);
        }
        println!("{} entries stored in {:?}", 2 * CONNECTIONS, began.elapsed());

        let map = it.tables.map(Table::Flows);
        let (mut cursor, mut entries, mut longest) = (Cursor::new(), 0, Duration::ZERO);
        let began = Instant::now();
        loop {
            let step = Instant::now();
            let Some(batch) = map.next_batch(&mut cursor).expect("a batch") else { break };
            longest = longest.max(step.elapsed());
            entries += batch.count();
        }
        println!("{entries} entries read by batches in {:?}, longest batch {longest:?}", began.elapsed());

        let (mut meter, index) = (Meter::default(), Index::default());
        for round in 1..=2 {
            let began = Instant::now();
            let (mut cursor, mut sheet) = (Cursor::new(), Sheet::default());
            meter.begin(it.ticks);
            while let Some(batch) = map.next_batch(&mut cursor).expect("a batch") {
                for (key, flow) in batch {
                    sheet.add(&index, Table::Flows, key, flow, &meter.note(key, flow));
                }
            }
            meter.end();
            println!("{} flows metered in {:?}, round {round}", sheet.flows, began.elapsed());
        }

        let began = Instant::now();
        let counted = Cell::new(0);
        let mut walk = Walk::new();
        let tell = |_: &Flows| {
            counted.set(counted.get() + 1);
            Ok(())
        };
        while it.tables.step(&mut walk, |_| true, tell).expect("a step").is_some() {}
        println!("{} connections put together in {:?}", counted.get(), began.elapsed());
        assert_eq!(counted.get(), CONNECTIONS);

        let mut sweeper = it.sweeper();
        let (began, mut steps) = (Instant::now(), 0);
        while sweeper.step().expect("a step").is_none() {
            steps += 1;
        }
        let status = sweeper.status();
        println!(
            "{} connections expired in {:?} of work, {steps} steps ({:?} at 50 ms a step); longest step {} us, \
             longest run of vr_expire {} us",
            status.expired,
            began.elapsed(),
            Duration::from_millis(50) * steps,
            status.longest_step_microseconds,
            status.longest_run_microseconds
        );
        assert_eq!(status.expired, u64::from(CONNECTIONS));
    });
}

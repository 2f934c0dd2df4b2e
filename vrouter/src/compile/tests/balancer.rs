//! Pools that are kept from one compilation to the next.

use proptest::prelude::*;

use super::*;

/// What can change.
#[derive(Clone, Copy, Debug)]
struct World {
    weight: u16,
    down: bool,
    lost: bool,
    /// Where vm2 is: here, on b, nowhere.
    place: u8,
    /// The router has a way out.
    gateway: bool,
    /// The router is on the second network, too, where a member is.
    joined: bool,
    /// Another router balances to the same pool.
    other: bool,
    /// A member more, at the beginning.
    more: bool,
    /// The second pool is used.
    second: bool,
}

impl World {
    const CALM: Self = Self {
        weight: 1,
        down: false,
        lost: false,
        place: 1,
        gateway: true,
        joined: true,
        other: false,
        more: false,
        second: true,
    };

    fn document(&self) -> String {
        let joined = if self.joined { ", db4" } else { "" };
        let gateway = if self.gateway { ", gateway: { network: public, address: 203.0.113.10 }" } else { "" };
        let vm2 = match self.place {
            0 => ", node: a, interface: tap2",
            1 => ", node: b, interface: tap2",
            _ => "",
        };
        let more = if self.more { "{ name: m0, address: 10.0.1.19, protocol_port: 80 }, " } else { "" };
        let far = if self.joined { ", { name: m3, address: 10.0.2.12, protocol_port: 80 }" } else { "" };
        let mut balancers = String::from(
            "\n  - { name: lb1, network: web, vip_addresses: [10.0.1.200], listeners: [{ name: http, protocol: tcp, \
             protocol_port: 80, default_pool: first }] }",
        );
        if self.second {
            balancers += "\n  - { name: lb2, network: web, vip_addresses: [10.0.1.201, \"fd00:1::200\"], listeners: [{ name: http, \
                          protocol: tcp, protocol_port: 80, default_pool: second }] }";
        }
        if self.other {
            balancers += "\n  - { name: lb3, network: lab, vip_addresses: [10.0.3.200], listeners: [{ name: http, protocol: tcp, \
                          protocol_port: 80, default_pool: third }, { name: alt, protocol: tcp, protocol_port: 81, \
                          default_pool: third }] }";
        }
        format!(
            r#"
networks:
  - name: web
    subnets: [{{ name: web4, cidr: 10.0.1.0/24, gateway: 10.0.1.1 }}, {{ name: web6, cidr: "fd00:1::/64", gateway: "fd00:1::1" }}]
  - {{ name: db, subnets: [{{ name: db4, cidr: 10.0.2.0/24, gateway: 10.0.2.1 }}] }}
  - {{ name: lab, subnets: [{{ name: lab4, cidr: 10.0.3.0/24, gateway: 10.0.3.1 }}] }}
  - {{ name: public, vni: 900, external: true, subnets: [{{ name: public4, cidr: 203.0.113.0/24, gateway: 203.0.113.1 }}] }}
routers:
  - {{ name: r1, interfaces: [web4, web6{joined}]{gateway} }}
  - {{ name: r2, interfaces: [lab4, {{ subnet: web4, address: 10.0.1.2 }}] }}
ports:
  - {{ name: vm1, network: web, mac: "02:00:00:00:01:0b", fixed_ips: [10.0.1.11, "fd00:1::b"], node: a, interface: tap1 }}
  - {{ name: vm2, network: web, mac: "02:00:00:00:01:0c", fixed_ips: [10.0.1.12]{vm2} }}
  - {{ name: vm3, network: db, mac: "02:00:00:00:02:0c", fixed_ips: [10.0.2.12], node: b, interface: tap3 }}
load_balancers:{balancers}
pools:
  - name: first
    health_monitor: {{ type: ping, delay: 1, timeout: 1 }}
    members: [{more}{{ name: m1, address: 10.0.1.11, protocol_port: 80, weight: {weight} }}, {{ name: m2, address: 10.0.1.12, protocol_port: 80 }}{far}]
  - name: second
    members: [{{ name: m1, address: 10.0.1.11, protocol_port: 80 }}, {{ name: m6, address: "fd00:1::b", protocol_port: 80 }}]
  - name: third
    members: [{{ name: m1, address: 10.0.1.11, protocol_port: 80 }}]
nodes:
  - {{ name: a, vtep: 192.0.2.1 }}
  - {{ name: b, vtep: 192.0.2.2 }}
"#,
            weight = self.weight
        )
    }

    fn topology(&self) -> Topology {
        topology::parse("test.yaml", &self.document()).unwrap_or_else(|problems| panic!("{problems}"))
    }

    fn around(&self) -> Surroundings {
        let member = |name: &str| ("first".to_owned(), name.to_owned());
        let mut around = around(&[("tap1", 11), ("tap2", 12)]);
        around
            .externals
            .insert("public".to_owned(), ExternalInterface { ifindex: Some(7), ..Default::default() });
        let members = &mut around.liveness.members;
        members.extend(self.down.then(|| (member("m1"), MemberHealth::Down)));
        members.extend(self.lost.then(|| (member("m2"), MemberHealth::Lost)));
        around
    }
}

fn compile_kept(world: &World, ids: &mut Identities) -> Compiled {
    let out = compile(&world.topology(), &world.around(), ids).unwrap();
    ids.retain(&out.used, &out.image.pools);
    out
}

impl World {
    /// One thing more or less: mostly everything else is as it was.
    fn step(mut self, what: u8) -> Self {
        match what {
            0 => self.weight = 1 + self.weight % 3,
            1 => self.place = (self.place + 1) % 3,
            2 => self.down = !self.down,
            3 => self.lost = !self.lost,
            4 => self.gateway = !self.gateway,
            5 => self.joined = !self.joined,
            6 => self.other = !self.other,
            7 => self.more = !self.more,
            8 => self.second = !self.second,
            // The same again.
            _ => {}
        }
        self
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Whatever was before: what comes out is what comes out of nothing, with the same numbers.
    #[test]
    fn what_is_kept_is_what_would_be_compiled(steps in prop::collection::vec(0_u8..10, 2..20)) {
        let (mut ids, mut world) = (Identities::default(), World::CALM);
        for step in steps {
            world = world.step(step);
            let kept = compile_kept(&world, &mut ids);
            let mut afresh = Identities::clone(&ids);
            afresh.kept = Kept::default();
            let out = compile(&world.topology(), &world.around(), &mut afresh).unwrap();
            prop_assert!(kept.image == out.image, "{world:?}");
            prop_assert_eq!(kept.used, out.used);
            for pool in kept.image.pools.values() {
                for member in pool.members.values() {
                    prop_assert!(ids.name(NAME_MEMBER, member.number).is_some());
                }
            }
        }
    }
}

#[test]
fn only_what_changed_is_compiled_again() {
    let mut ids = Identities::default();
    compile_kept(&World::CALM, &mut ids);
    let (first, second) =
        (ids.number(NAME_POOL, "first ipv4 r1").unwrap(), ids.number(NAME_POOL, "second ipv4 r1").unwrap());
    let changes: [(&str, World, [bool; 2]); 7] = [
        ("nothing", World::CALM, [true, true]),
        ("weight", World { weight: 3, ..World::CALM }, [false, true]),
        ("health", World { down: true, ..World::CALM }, [false, true]),
        ("a member's port comes here", World { place: 0, ..World::CALM }, [false, true]),
        ("a member more", World { more: true, ..World::CALM }, [false, true]),
        ("another balancer", World { other: true, ..World::CALM }, [true, true]),
        ("no way out", World { gateway: false, ..World::CALM }, [false, false]),
    ];
    for (what, world, same) in changes {
        // A document that was read anew is another object, and says the same.
        let before = compile_kept(&World::CALM, &mut ids);
        let after = compile_kept(&world, &mut ids);
        let is_same =
            [first, second].map(|pool| Arc::ptr_eq(&before.image.pools[&pool], &after.image.pools[&pool]));
        assert_eq!(is_same, same, "{what}");
    }
}

/// What is checked is the same wherever in the document it stands: a check goes on.
#[test]
fn an_edit_elsewhere_changes_no_monitored_member() {
    let monitored = |document: &str| {
        let topology = topology::parse("test.yaml", document).unwrap_or_else(|problems| panic!("{problems}"));
        compile(&topology, &World::CALM.around(), &mut Identities::default()).unwrap().monitored
    };
    let document = World::CALM.document();
    let before = monitored(&document);
    assert_eq!(before.len(), 1, "m1 is behind a port of this node");
    assert_eq!(monitored(&format!("# More lines\n# above.\n{document}")), before);
}

/// Members that are not used lose their streams, whether they are down or nobody speaks for them.
/// Whatever all members weigh, who drains is asked about each slot it had, and nothing else moves.
#[test]
fn a_member_that_drains_is_asked_about_all_it_had() {
    for weight in [1, 2, 10, 256] {
        for count in [2_u16, 3, 10] {
            let slots = |first: u16| -> Vec<Slot> {
                let member = |index: u16| {
                    let weight = if index == 0 { first } else { weight };
                    format!(
                        "{{ name: m{index}, address: 10.0.1.{}, protocol_port: 80, weight: {weight} }}",
                        20 + index
                    )
                };
                let members: Vec<_> = (0..count).map(member).collect();
                let third = "third\n    members: [";
                let document = World { other: true, ..World::CALM }.document();
                let (before, after) = document.split_once(third).unwrap();
                let after = after.split_once(']').unwrap().1;
                let document = format!("{before}{third}{}]{after}", members.join(", "));
                let topology =
                    topology::parse("x", &document).unwrap_or_else(|problems| panic!("{problems}"));
                let compiled = compile(&topology, &World::CALM.around(), &mut Identities::default()).unwrap();
                let has_as_many =
                    |pool: &&Arc<vrouter_common::memory::PoolImage>| pool.members.len() == usize::from(count);
                let pool = compiled.image.pools.values().rfind(has_as_many).unwrap();
                pool.slots.values().flat_map(|slots| slots.0).collect()
            };
            for (before, after) in slots(weight).iter().zip(&slots(0)) {
                let what = format!("{count} of weight {weight}: {before:?} {after:?}");
                if before.member == 0 {
                    assert_eq!((after.member, after.other), (before.other, SLOT_LEAVES), "{what}");
                } else {
                    assert_eq!(after.member, before.member, "{what}");
                }
            }
        }
    }
}

#[test]
fn what_a_member_is_taken_for() {
    // The pool is m1, m2, and m3 if the router reaches it.
    let flags = |world: World| -> Vec<u16> {
        let mut ids = Identities::default();
        let out = compile_kept(&world, &mut ids);
        let pool = &out.image.pools[&ids.number(NAME_POOL, "first ipv4 r1").unwrap()];
        pool.members.values().map(|member| member.flags).collect()
    };
    let (up, lost) = (MEMBER_UP, MEMBER_DOWN | MEMBER_LOST);
    assert_eq!(flags(World { lost: true, ..World::CALM }), [up, lost, up]);
    assert_eq!(flags(World { lost: true, down: true, ..World::CALM }), [MEMBER_DOWN, lost, up]);
    // None is up: who is lost may yet serve.
    let alone = World { lost: true, down: true, joined: false, ..World::CALM };
    assert_eq!(flags(alone), [MEMBER_DOWN, MEMBER_UP | MEMBER_LOST]);
}

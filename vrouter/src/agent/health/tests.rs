//! What is told, by the thread and of others.

use super::{shared::tests::down, *};
use crate::store::health::NodeHealth;

const DOCUMENT: &str = r#"
networks: [{ name: n, subnets: [{ name: n4, cidr: 10.0.1.0/24, gateway: 10.0.1.1 }] }]
routers: [{ name: r, interfaces: [n4] }]
ports:
  - { name: vm1, network: n, mac: "02:00:00:00:01:01", fixed_ips: [10.0.1.11], node: a, interface: tap1 }
  - { name: vm2, network: n, mac: "02:00:00:00:01:02", fixed_ips: [10.0.1.12], node: b, interface: tap2 }
load_balancers:
  - { name: lb, network: n, vip_addresses: [10.0.1.200], listeners: [
      { name: l1, protocol: tcp, protocol_port: 80, default_pool: web }] }
pools:
  - name: web
    health_monitor: { type: ping, delay: 1, timeout: 1 }
    members:
      - { name: m1, address: 10.0.1.11, protocol_port: 80 }
      - { name: m2, address: 10.0.1.12, protocol_port: 80 }
nodes: [{ name: a, vtep: 192.0.2.1 }, { name: b, vtep: 192.0.2.2 }]
"#;

/// How long something may take that happens at once.
const SOON: Duration = Duration::from_secs(10);

/// Node a's, without its thread, with what tells it.
fn alone() -> (Health, watch::Sender<Own>, watch::Sender<Arc<health::Health>>) {
    let (tell_own, own) = watch::channel(Own::default());
    let (tell_others, others) = watch::channel(Arc::default());
    let health = Health {
        node: "a".to_owned(),
        store: None,
        memory: Memory::new("/nonexistent/health.json".into()),
        wanted: watch::channel(None).0,
        frames: mpsc::channel(1).0,
        own,
        others,
        share: None,
        index: Index::default(),
        not_up: BTreeMap::new(),
    };
    (health, tell_own, tell_others)
}

#[test]
fn others_that_recover_are_news_and_those_that_leave_are_not() {
    let topology = crate::topology::parse("test", DOCUMENT).expect("a topology in order");
    let (mut health, tell_own, tell_others) = alone();
    tell_own.send_replace(Own { words: down(&["m1"]), ..Own::default() });
    let mut follow = |words: Words, alive, topology: &Topology| {
        let words = Some(words);
        tell_others.send_replace(Arc::new([("b".to_owned(), NodeHealth { words, alive })].into()));
        let own = health.own.borrow().words.clone();
        let others = health.others.borrow().clone();
        let index = Index::of(topology, &Spoken::of(&own, &others));
        let now = index.not_up("a", &own, &others);
        let before = std::mem::replace(&mut health.index, index);
        let news = health.news(&before, &now, topology);
        health.index = before;
        assert_eq!(health.not_up(topology), now);
        news.into_iter().map(|it| (it.member, it.node, it.state)).collect::<Vec<_>>()
    };
    let m2 = |state| vec![("m2".to_owned(), "b".to_owned(), state)];
    assert_eq!(follow(down(&["m2"]), true, &topology), m2(MemberHealth::Down));
    assert_eq!(follow(down(&["m2"]), true, &topology), []);
    // Nobody speaks of the pool any more.
    tell_own.send_replace(Own::default());
    assert_eq!(follow(Words::default(), true, &topology), m2(MemberHealth::Up));
    assert_eq!(follow(Words::default(), false, &topology), m2(MemberHealth::Lost));
    assert_eq!(follow(Words::default(), true, &topology), m2(MemberHealth::Up));
    assert_eq!(follow(down(&["m2"]), true, &topology), m2(MemberHealth::Down));
    let without = DOCUMENT.replace("      - { name: m2, address: 10.0.1.12, protocol_port: 80 }\n", "");
    let without = crate::topology::parse("test", &without).expect("a topology in order");
    assert_eq!(follow(Words::default(), true, &without), []);
}

#[tokio::test]
async fn its_own_words_are_heard_when_nobody_tells_of_others() {
    let (health, tell_own, tell_others) = alone();
    let mut changes = health.changes();
    drop(tell_others);
    for words in [down(&["m1"]), Words::default()] {
        tell_own.send_replace(Own { words, ..Own::default() });
        tokio::time::timeout(SOON, changes.next()).await.expect("there is something new");
    }
    let nothing = tokio::time::timeout(Duration::from_millis(50), changes.next()).await;
    assert!(nothing.is_err(), "once each");
    drop(tell_own);
    let nothing = tokio::time::timeout(Duration::from_millis(50), changes.next()).await;
    assert!(nothing.is_err(), "nobody is there any more");
}

/// A node says that it is there by its first list, also if that is empty, and by what it said last, if it remembers none.
#[tokio::test]
async fn the_thread_tells_when_there_is_something_to_go_by() {
    let (want, wanted) = watch::channel(None);
    let (frames, ear) = mpsc::channel(1);
    let (recall, recalled) = watch::channel(None);
    let (tell_own, mut own) = watch::channel(Own::default());
    let socket = FrameSender::open().expect("a socket");
    let tell: Tell = Arc::new(|_, _| {});
    let thread = run(Checker::new(Words::default()), socket, wanted, ear, recalled, tell_own, tell);
    let script = async {
        let mut told = async || {
            tokio::time::timeout(SOON, own.changed()).await.expect("it tells").expect("it runs");
            own.borrow_and_update().clone()
        };
        recall.send_replace(Some(down(&["m1"])));
        let first = Own { words: down(&["m1"]), is_remembered: true, is_checked: false };
        assert_eq!(told().await, first, "what was said before, which nothing replaces yet");
        want.send_replace(Some(Arc::new(Vec::new())));
        assert_eq!(told().await, Own { words: Words::default(), is_remembered: true, is_checked: true });
        drop((want, frames));
    };
    tokio::time::timeout(SOON, async { tokio::join!(thread, script) }).await.expect("it ends with the agent");
}

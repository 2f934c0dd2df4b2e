//! Changing the topology: all of a change or nothing of it, and never over somebody else's.
//!
//! A change is worked out against a snapshot, checked as the whole document it would make, and written by a
//! transaction that holds only if nothing else was written since. etcd takes 128 operations and 1.5 MiB in a
//! transaction; a larger change is **staged** first, under keys that mean nothing to anybody, and comes in force
//! as a whole by one write of the head that names it. What is staged then moves to the objects' own keys piece by
//! piece, which changes nothing that anybody sees; whoever writes next finishes that if it was interrupted.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, bail};
use etcd_client::{Compare, CompareOp, DeleteOptions, Txn, TxnOp};

use super::{
    client::{Snapshot, Store, bounded, patient},
    keys::{Key, Keys, ObjectName},
    record::{Head, Ids, Record, SCHEMA, Staged, objects_of, spec_of},
    report::NodeState,
};
use crate::topology::{self, DERIVED_VNIS, Kind, Problems, Tree, TreeKind, derive_vni, derive_vrid};

/// Objects of a change that is written at once. etcd's own limit is 128 operations; the head is one.
const AT_ONCE: usize = 100;
/// Bytes of it.
const BYTES_AT_ONCE: usize = 1 << 20;
/// Objects moved out of a staged change at once, by two operations each.
const MOVED_AT_ONCE: usize = 60;
/// Changes staged so long ago and not in force were given up by their writers.
const GIVEN_UP: Duration = Duration::from_secs(3600);
/// Times a change is worked out anew because somebody else was quicker.
const ATTEMPTS: u32 = 20;

/// What is to be changed.
pub enum Wish<'a> {
    /// The objects of a document are to be as it says; `prune`: and there are to be no others.
    Apply { file: &'a str, document: &'a Tree, prune: bool },
    /// These objects are to be gone.
    Delete(&'a [ObjectName]),
}

/// One object's part of a change.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    pub object: ObjectName,
    /// `None`: there was none, or it was damaged.
    pub before: Option<Record>,
    /// `None`: there will be none.
    pub after: Option<Record>,
    /// The revision `before` was written at; 0: there was none.
    revision: i64,
}

/// A change that is worked out.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// What differs, by name.
    pub steps: Vec<Step>,
    /// The topology's nodes after it.
    pub nodes: Vec<String>,
    /// The last router number given away.
    routers: u32,
}

/// What became of a change.
#[derive(Clone, Debug)]
pub struct Done {
    pub plan: Plan,
    /// The revision it is in force from; the present one if there was nothing to change.
    pub revision: i64,
}

/// Works a change out, without doing anything.
pub fn plan(keys: &Keys, snapshot: &Snapshot, wish: &Wish<'_>) -> Result<Plan> {
    let stored = snapshot.objects(keys)?;
    let (head, _) = head_of(keys, snapshot)?;
    // With the trees of the file, for their lines.
    let mut wanted: BTreeMap<&ObjectName, (Record, Option<&Tree>)> = BTreeMap::new();
    let from_file = match wish {
        Wish::Apply { document, .. } => objects_of(document),
        Wish::Delete(_) => BTreeMap::new(),
    };
    let gone = |object: &ObjectName| match wish {
        Wish::Apply { prune, .. } => *prune && !from_file.contains_key(object),
        Wish::Delete(names) => names.contains(object),
    };
    if let Wish::Delete(names) = wish
        && let Some(absent) = names.iter().find(|name| !stored.contains_key(name))
    {
        bail!("there is no {absent}; `vrouter get {}` lists what there is", absent.kind.section());
    }
    let mut broken = Vec::new();
    for (object, (record, _)) in &stored {
        if gone(object) || from_file.contains_key(object) {
            continue;
        }
        match (record, wish) {
            (Ok(record), _) => drop(wanted.insert(object, (record.clone(), None))),
            // To have less is never worse.
            (Err(_), Wish::Delete(_)) => broken.push(object.clone()),
            (Err(wrong), Wish::Apply { .. }) => bail!(
                "{object} in etcd cannot be used: {wrong}; nothing can be checked against it: apply it anew, or delete \
                 it, first"
            ),
        }
    }
    for (object, &tree) in &from_file {
        let record = Record::new(spec_of(tree));
        let ids = match stored.get(object) {
            Some((Ok(before), _)) if gateway_network(before) == gateway_network(&record) => before.ids,
            // A VRID is one of the network it was given on.
            Some((Ok(before), _)) => Ids { vrid: None, ..before.ids },
            _ => Ids::default(),
        };
        let record = Record { ids, ..record };
        wanted.insert(object, (record, Some(tree)));
    }
    let mut routers = head.routers;
    allocate(&mut wanted, &mut routers);
    let file = match wish {
        Wish::Apply { file, .. } => file,
        Wish::Delete(_) => "the topology without it",
    };
    check(file, &wanted, &broken)?;
    let nodes =
        wanted.keys().filter(|object| object.kind == Kind::Node).map(|object| object.name.clone()).collect();
    let mut steps = Vec::new();
    let names: BTreeSet<&ObjectName> = stored.keys().chain(wanted.keys().copied()).collect();
    for object in names.into_iter().filter(|object| !broken.contains(object)) {
        let (before, revision) = match stored.get(object) {
            Some((record, revision)) => (record.as_ref().ok().cloned(), *revision),
            None => (None, 0),
        };
        let after = wanted.get(object).map(|(record, _)| record.clone());
        let damaged = before.is_none() && revision > 0;
        if before != after || damaged {
            steps.push(Step { object: object.clone(), before, after, revision });
        }
    }
    Ok(Plan { steps, nodes, routers })
}

/// The external network that a router is on.
fn gateway_network(record: &Record) -> Option<&str> {
    record.spec.get("gateway")?.get("network")?.as_str()
}

/// Gives networks and routers that are new their numbers.
fn allocate(wanted: &mut BTreeMap<&ObjectName, (Record, Option<&Tree>)>, routers: &mut u32) {
    let stated = |record: &Record| {
        let stated = record.spec.get("vni").and_then(serde_json::Value::as_u64);
        stated.and_then(|vni| u32::try_from(vni).ok())
    };
    let mut taken: HashSet<u32> =
        wanted.values().filter_map(|(record, _)| stated(record).or(record.ids.vni)).collect();
    // By external network.
    let vrid = |record: &Record| {
        let gateway = record.spec.get("gateway")?;
        let network = gateway.get("network")?.as_str()?.to_owned();
        let stated = gateway.get("vrrp").and_then(|vrrp| vrrp.get("vrid")?.as_u64());
        Some((network, stated.and_then(|vrid| u8::try_from(vrid).ok())))
    };
    let mut vrids: HashSet<(String, u8)> = wanted
        .values()
        .filter_map(|(record, _)| {
            let (network, stated) = vrid(record)?;
            Some((network, stated.or(record.ids.vrid)?))
        })
        .collect();
    for (object, (record, _)) in wanted.iter_mut() {
        match object.kind {
            Kind::Network if stated(record).is_some() => record.ids.vni = None,
            Kind::Network if record.ids.vni.is_none() => {
                let first = derive_vni(&object.name);
                let free = (first..=*DERIVED_VNIS.end()).chain(DERIVED_VNIS).find(|vni| taken.insert(*vni));
                record.ids.vni = free;
            }
            Kind::Router => {
                if record.ids.router.is_none() {
                    *routers += 1;
                    record.ids.router = Some(*routers);
                }
                match vrid(record) {
                    Some((network, None)) if record.ids.vrid.is_none() => {
                        record.ids.vrid =
                            derive_vrid(&object.name, |vrid| vrids.insert((network.clone(), vrid)));
                    }
                    Some((_, None)) => {}
                    // It states one, or is on no external network.
                    _ => record.ids.vrid = None,
                }
            }
            _ => {}
        }
    }
}

/// Checks the whole document that the change would make.
fn check(
    file: &str,
    wanted: &BTreeMap<&ObjectName, (Record, Option<&Tree>)>,
    broken: &[ObjectName],
) -> Result<()> {
    let mut sections: BTreeMap<Kind, Vec<Tree>> = BTreeMap::new();
    for (object, (record, tree)) in wanted {
        let item = match tree {
            Some(tree) => with_ids(tree, record.ids),
            None => record.tree().map_err(|wrong| anyhow::anyhow!("{object} in etcd: {wrong}"))?,
        };
        sections.entry(object.kind).or_default().push(item);
    }
    let scalar =
        |text: &str| Tree { line: 0, kind: TreeKind::Scalar { text: text.to_owned(), quoted: false } };
    let fields = sections
        .into_iter()
        .map(|(kind, items)| (scalar(kind.section()), Tree { line: 0, kind: TreeKind::Sequence(items) }))
        .collect();
    let broken = broken.iter().map(|object| (object.kind, object.name.as_str()));
    match topology::check_beside(file, &Tree { line: 0, kind: TreeKind::Mapping(fields) }, broken) {
        Ok(_) => Ok(()),
        Err(problems) => Err(located(problems).into()),
    }
}

/// A problem without a line is about what is stored already.
fn located(problems: Problems) -> Problems {
    let mut located = Problems::new(&problems.file);
    for problem in &problems {
        let object = if problem.line == 0 {
            format!("{} (as stored)", problem.object)
        } else {
            problem.object.clone()
        };
        located.push(problem.line, object, problem.message.clone(), problem.remedy.clone());
    }
    located
}

fn with_ids(tree: &Tree, ids: Ids) -> Tree {
    let mut tree = tree.clone();
    if let Some(vni) = ids.vni {
        set(&mut tree, &["vni"], &vni.to_string());
    }
    if let (Some(vrid), Some(_)) = (ids.vrid, tree.field("gateway")) {
        set(&mut tree, &["gateway", "vrrp", "vrid"], &vrid.to_string());
    }
    tree
}

/// Sets a field of an object, or of one inside it. What is no object is left for the check to name.
fn set(tree: &mut Tree, path: &[&str], text: &str) {
    let ([name, rest @ ..], line) = (path, tree.line) else { return };
    let TreeKind::Mapping(fields) = &mut tree.kind else { return };
    let scalar = |text: &str| Tree { line, kind: TreeKind::Scalar { text: text.to_owned(), quoted: false } };
    if rest.is_empty() {
        fields.retain(|(key, _)| key.as_text() != Some(name));
        fields.push((scalar(name), scalar(text)));
        return;
    }
    if !fields.iter().any(|(key, _)| key.as_text() == Some(name)) {
        fields.push((scalar(name), Tree { line, kind: TreeKind::Mapping(Vec::new()) }));
    }
    for (_, inside) in fields.iter_mut().filter(|(key, _)| key.as_text() == Some(name)) {
        set(inside, rest, text);
    }
}

/// Does what is wished. Somebody else's change meanwhile is no obstacle, unless it is to the same objects.
/// `expected`: only if this is the revision of the last change.
pub async fn change(store: &mut Store, wish: &Wish<'_>, expected: Option<i64>, wait: bool) -> Result<Done> {
    let mut attempts = Attempts::default();
    for _ in 0..ATTEMPTS {
        if let Some(done) =
            patient(async || attempt(store, wish, expected, wait, &mut attempts).await).await?
        {
            return Ok(done);
        }
    }
    bail!("the topology is changed by others all the time: gave up after {ATTEMPTS} tries; try again")
}

/// What was tried so far.
#[derive(Default)]
struct Attempts {
    /// As it was worked out the first time.
    first: Option<Plan>,
    /// What was written under a name, or not: no answer came.
    written: Vec<(String, Plan)>,
}

/// `None`: somebody else was quicker.
async fn attempt(
    store: &mut Store,
    wish: &Wish<'_>,
    expected: Option<i64>,
    wait: bool,
    attempts: &mut Attempts,
) -> Result<Option<Done>> {
    let snapshot = settled(store).await?;
    let (head, head_revision) = head_of(store.keys(), &snapshot)?;
    if let Some((_, plan)) = attempts.written.iter().find(|(id, _)| *id == head.change) {
        return Ok(Some(Done { plan: plan.clone(), revision: head_revision }));
    }
    if let Some(expected) = expected.filter(|&expected| expected != head_revision) {
        bail!(
            "the topology was changed since: its last change is revision {head_revision}, not {expected}; look at it \
             again (`vrouter diff`), and apply with that revision"
        );
    }
    let plan = plan(store.keys(), &snapshot, wish)?;
    if let Some(first) = &attempts.first {
        refuse_conflict(first, &plan)?;
    }
    if plan.steps.is_empty() && !wait {
        return Ok(Some(Done { plan, revision: snapshot.revision }));
    }
    let id = change_id()?;
    attempts.written.push((id.clone(), plan.clone()));
    attempts.first.get_or_insert_with(|| plan.clone());
    let revision = commit(store, &head, head_revision, &plan, id, wait).await?;
    Ok(revision.map(|revision| Done { plan, revision }))
}

fn head_of(keys: &Keys, snapshot: &Snapshot) -> Result<(Head, i64)> {
    snapshot.head(keys).map_err(|wrong| anyhow::anyhow!("the topology's head in etcd: {wrong}"))
}

/// The second time a change is worked out, what it overwrites has to be what it was the first time.
fn refuse_conflict(first: &Plan, now: &Plan) -> Result<()> {
    for step in &now.steps {
        let before = first.steps.iter().find(|other| other.object == step.object);
        if before.is_none_or(|before| before.revision != step.revision) {
            bail!(
                "{} was changed by somebody else meanwhile (revision {}): nothing was written; look at it (`vrouter \
                 get {} {}`) and try again",
                step.object,
                step.revision,
                step.object.kind.section(),
                step.object.name
            );
        }
    }
    Ok(())
}

/// A snapshot in which no change is staged and in force: what an interrupted writer left is finished first.
pub async fn settled(store: &mut Store) -> Result<Snapshot> {
    loop {
        let snapshot = store.snapshot().await?;
        let (head, revision) = head_of(store.keys(), &snapshot)?;
        if head.pending.is_empty() {
            clear_given_up(store, &snapshot).await;
            return Ok(snapshot);
        }
        unstage(store, &snapshot, &head, revision).await?;
    }
}

/// Writes a plan. `None`: somebody else has written since.
async fn commit(
    store: &mut Store,
    head: &Head,
    head_revision: i64,
    plan: &Plan,
    id: String,
    wait: bool,
) -> Result<Option<i64>> {
    let mut head = Head { schema: SCHEMA, change: id.clone(), routers: plan.routers, wait, ..head.clone() };
    let keys = store.keys().clone();
    let unchanged = Compare::mod_revision(keys.head(), CompareOp::Equal, head_revision);
    let operations: Vec<TxnOp> = plan
        .steps
        .iter()
        .map(|step| {
            let key = keys.object(&step.object);
            match &step.after {
                Some(record) => TxnOp::put(key, record.bytes(), None),
                None => TxnOp::delete(key, None),
            }
        })
        .collect();
    let bytes: usize =
        plan.steps.iter().filter_map(|step| step.after.as_ref()).map(|record| record.bytes().len()).sum();
    if operations.len() <= AT_ONCE && bytes <= BYTES_AT_ONCE {
        let operations = [operations, vec![TxnOp::put(keys.head(), head.bytes(), None)]].concat();
        return transact(store, vec![unchanged], operations).await;
    }
    let mut batch = Batch::default();
    for step in &plan.steps {
        let staged = step.after.clone().map_or(Staged::Delete, Staged::Put);
        batch.put(store, keys.staged(&id, &step.object), staged.bytes()).await?;
    }
    batch.flush(store).await?;
    head.pending.push(id.clone());
    let still_there = plan
        .steps
        .iter()
        .take(1)
        .map(|step| Compare::mod_revision(keys.staged(&id, &step.object), CompareOp::Greater, 0));
    let conditions = still_there.chain([unchanged]).collect();
    let revision = transact(store, conditions, vec![TxnOp::put(keys.head(), head.bytes(), None)]).await?;
    match revision {
        // In force. Moving it is tidying up; another writer does it if this one cannot.
        Some(_) => drop(settled(store).await),
        None => remove_staged(store, &id).await?,
    }
    Ok(revision)
}

/// Cuts a list into parts of so many elements and so many bytes at the most; an element that is larger is a part.
fn chunks<T>(list: &[T], most: usize, bytes: usize, len: impl Fn(&T) -> usize) -> Vec<&[T]> {
    let (mut parts, mut from, mut sum) = (Vec::new(), 0, 0);
    for (at, element) in list.iter().enumerate() {
        sum += len(element);
        if at > from && (at - from == most || sum > bytes) {
            parts.push(&list[from..at]);
            (from, sum) = (at, len(element));
        }
    }
    if from < list.len() {
        parts.push(&list[from..]);
    }
    parts
}

/// Puts in as few transactions as etcd takes.
#[derive(Default)]
struct Batch {
    operations: Vec<TxnOp>,
    bytes: usize,
}

impl Batch {
    async fn put(&mut self, store: &mut Store, key: String, value: Vec<u8>) -> Result<()> {
        if self.operations.len() == AT_ONCE || self.bytes + value.len() > BYTES_AT_ONCE {
            self.flush(store).await?;
        }
        self.bytes += value.len();
        self.operations.push(TxnOp::put(key, value, None));
        Ok(())
    }

    async fn flush(&mut self, store: &mut Store) -> Result<()> {
        let Self { operations, .. } = std::mem::take(self);
        if !operations.is_empty() {
            transact(store, Vec::new(), operations).await?;
        }
        Ok(())
    }
}

/// Runs a transaction; the revision it made, unless a condition did not hold.
async fn transact(
    store: &mut Store,
    conditions: Vec<Compare>,
    operations: Vec<TxnOp>,
) -> Result<Option<i64>> {
    let transaction = Txn::new().when(conditions).and_then(operations);
    let answer = bounded(store.client().txn(transaction)).await.context("cannot write to etcd")?;
    let revision = answer.header().map_or(0, etcd_client::ResponseHeader::revision);
    Ok(answer.succeeded().then_some(revision))
}

/// Moves the oldest change that is staged and in force to the objects' own keys.
async fn unstage(store: &mut Store, snapshot: &Snapshot, head: &Head, head_revision: i64) -> Result<()> {
    let Some(id) = head.pending.first() else { return Ok(()) };
    let keys = store.keys().clone();
    let prefix = keys.staged_of(Some(id));
    let staged = snapshot.raw.range(prefix.clone()..).take_while(|(key, _)| key.starts_with(&prefix));
    let staged: Vec<_> = staged.collect();
    for chunk in chunks(&staged, MOVED_AT_ONCE, BYTES_AT_ONCE, |(_, raw)| raw.value.len()) {
        let (mut conditions, mut operations) = (Vec::new(), Vec::new());
        for (key, raw) in chunk {
            // Another writer may have moved it already, and a third may have changed the object since.
            conditions.push(Compare::mod_revision(key.as_str(), CompareOp::Equal, raw.revision));
            if let Some(Key::Staged { object, .. }) = keys.read(key.as_bytes()) {
                let own = keys.object(&object);
                match Staged::read(&raw.value) {
                    Ok(Staged::Put(record)) => operations.push(TxnOp::put(own, record.bytes(), None)),
                    Ok(Staged::Delete) => operations.push(TxnOp::delete(own, None)),
                    // As it was found: readers name it.
                    Err(_) => operations.push(TxnOp::put(own, raw.value.clone(), None)),
                }
            }
            operations.push(TxnOp::delete(key.as_str(), None));
        }
        if transact(store, conditions, operations).await?.is_none() {
            return Ok(());
        }
    }
    let after = Head { pending: head.pending.iter().skip(1).cloned().collect(), wait: false, ..head.clone() };
    let unchanged = Compare::mod_revision(keys.head(), CompareOp::Equal, head_revision);
    transact(store, vec![unchanged], vec![TxnOp::put(keys.head(), after.bytes(), None)]).await?;
    Ok(())
}

async fn remove_staged(store: &mut Store, id: &str) -> Result<()> {
    let prefix = store.keys().staged_of(Some(id));
    let options = DeleteOptions::new().with_prefix();
    bounded(store.client().delete(prefix, Some(options))).await.context("cannot write to etcd")?;
    Ok(())
}

/// Removes what writers staged and never brought in force. A failure is of no consequence.
async fn clear_given_up(store: &mut Store, snapshot: &Snapshot) {
    let keys = store.keys().clone();
    let prefix = keys.staged_of(None);
    let staged = snapshot.raw.range(prefix.clone()..).take_while(|(key, _)| key.starts_with(&prefix));
    let ids: BTreeSet<String> = staged
        .filter_map(|(key, _)| match keys.read(key.as_bytes()) {
            Some(Key::Staged { change, .. }) => Some(change),
            _ => None,
        })
        .collect();
    for id in
        ids.iter().filter(|id| made(id).is_none_or(|made| now().saturating_sub(made) > GIVEN_UP.as_secs()))
    {
        if let Err(error) = remove_staged(store, id).await {
            tracing::debug!("cannot remove the given-up change {id}: {error:#}");
        }
    }
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// A name no other change has, which says when it was made.
fn change_id() -> Result<String> {
    let uuid = std::fs::read_to_string("/proc/sys/kernel/random/uuid")
        .context("cannot make a name for the change")?;
    Ok(format!("{:x}-{}", now(), uuid.trim()))
}

fn made(id: &str) -> Option<u64> {
    u64::from_str_radix(id.split('-').next()?, 16).ok()
}

/// How far the nodes are with a change.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize)]
pub struct Progress {
    /// It is in force there.
    pub in_force: Vec<String>,
    /// Not yet, or not without problems: what they say.
    pub behind: BTreeMap<String, NodeState>,
    /// No agent runs there.
    pub absent: Vec<String>,
}

/// Looks how far `nodes` are with what was written at `revision`.
pub async fn progress(store: &mut Store, nodes: &[String], revision: i64) -> Result<Progress> {
    let mut states = store.states().await?;
    let mut progress = Progress::default();
    for node in nodes {
        match states.remove(node) {
            None => progress.absent.push(node.clone()),
            Some(state) if state.in_force >= revision => progress.in_force.push(node.clone()),
            Some(state) => drop(progress.behind.insert(node.clone(), state)),
        }
    }
    Ok(progress)
}

/// The same until every node that runs has it, or for no longer than `at_most`.
pub async fn wait(
    store: &mut Store,
    nodes: &[String],
    revision: i64,
    at_most: Duration,
    mut told: impl FnMut(&Progress),
) -> Result<Progress> {
    const LOOK: Duration = Duration::from_millis(50);
    let end = tokio::time::Instant::now() + at_most;
    loop {
        let progress = patient(async || progress(store, nodes, revision).await).await?;
        told(&progress);
        if progress.behind.is_empty() || tokio::time::Instant::now() >= end {
            return Ok(progress);
        }
        tokio::time::sleep(LOOK).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::client::Raw;

    const DOCUMENT: &str = r#"
networks:
  - name: one
    external: true
    subnets: [{ name: one4, cidr: 203.0.113.0/24, gateway: 203.0.113.1 }]
  - name: two
    external: true
    subnets: [{ name: two4, cidr: 198.51.100.0/24, gateway: 198.51.100.1 }]
routers:
  - { name: r1, gateway: { network: one, address: 203.0.113.10 } }
  - { name: r2, gateway: { network: two, address: 198.51.100.10 } }
"#;

    /// etcd after a document was applied to what it had.
    fn applied(keys: &Keys, snapshot: &Snapshot, text: &str) -> Snapshot {
        let document = topology::read_tree("test", text).unwrap();
        let wish = Wish::Apply { file: "test", document: &document, prune: false };
        let plan = plan(keys, snapshot, &wish).unwrap();
        let mut after = Snapshot { revision: snapshot.revision + 1, raw: snapshot.raw.clone() };
        for Step { object, after: record, .. } in plan.steps {
            let raw = Raw { value: record.unwrap().bytes(), revision: after.revision };
            after.raw.insert(keys.object(&object), raw);
        }
        after
    }

    fn vrid(keys: &Keys, snapshot: &Snapshot, router: &str) -> u8 {
        let objects = snapshot.objects(keys).unwrap();
        let (record, _) = &objects[&ObjectName::new(Kind::Router, router)];
        record.as_ref().unwrap().ids.vrid.unwrap()
    }

    #[test]
    fn parts_are_as_many_and_as_large_as_etcd_takes() {
        let cut = |list: &[usize]| -> Vec<Vec<usize>> {
            chunks(list, 3, 10, |len| *len).into_iter().map(<[usize]>::to_vec).collect()
        };
        assert!(cut(&[]).is_empty());
        assert_eq!(cut(&[1, 1, 1, 1]), [vec![1, 1, 1], vec![1]]);
        assert_eq!(cut(&[6, 4, 6, 5, 5]), [vec![6, 4], vec![6], vec![5, 5]]);
        assert_eq!(cut(&[20, 1, 20]), [vec![20], vec![1], vec![20]]);
    }

    #[test]
    fn a_vrid_is_of_the_network_it_was_given_on() {
        let keys = Keys::new("/vrouter");
        let mut first = applied(&keys, &Snapshot::default(), DOCUMENT);
        // As if both had been given the same, each on its network.
        let r1 = ObjectName::new(Kind::Router, "r1");
        let (record, _) = first.objects(&keys).unwrap().remove(&r1).unwrap();
        let mut record = record.unwrap();
        record.ids.vrid = Some(vrid(&keys, &first, "r2"));
        let number = record.ids.router;
        first.raw.insert(keys.object(&r1), Raw { value: record.bytes(), revision: 1 });
        let again = applied(&keys, &first, DOCUMENT);
        assert_eq!(vrid(&keys, &again, "r1"), vrid(&keys, &again, "r2"), "it keeps what it was given");
        // It moves to where the other is.
        let moved =
            DOCUMENT.replace("network: one, address: 203.0.113.10", "network: two, address: 198.51.100.11");
        let moved = applied(&keys, &again, &moved);
        assert_ne!(vrid(&keys, &moved, "r1"), vrid(&keys, &moved, "r2"));
        let (record, _) = moved.objects(&keys).unwrap().remove(&r1).unwrap();
        assert_eq!(record.unwrap().ids.router, number, "what is the router's own stays");
    }
}

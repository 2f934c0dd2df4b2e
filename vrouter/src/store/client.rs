//! A connection to etcd, and everything under `config/` as it is at one revision.

use std::{
    collections::BTreeMap,
    future::Future,
    hash::{BuildHasher as _, RandomState},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use etcd_client::{Client, ConnectOptions, Error, GetOptions, GetResponse, KvClient, WatchClient};

use super::{
    config::{REQUEST_TIMEOUT, StoreConfig},
    health::{self, Kept},
    keys::{Key, Keys, ObjectName},
    record::{Head, Record, Staged, Unusable},
    report::NodeState,
};

/// Keys asked for at once.
const PAGE: i64 = 1000;
/// A page of large objects, or what happened while nobody watched.
const MESSAGE_MAX: usize = 256 << 20;
/// Times a snapshot is begun again because its revision was compacted meanwhile.
const ATTEMPTS: u32 = 3;
/// How long a request is repeated that fails for reasons that pass, and how often.
const PATIENCE: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(200);

/// A key's value and the revision it was written at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Raw {
    pub value: Vec<u8>,
    pub revision: i64,
}

/// Everything under `config/` at one revision.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    pub revision: i64,
    /// By key; what is no key of ours is left out.
    pub raw: BTreeMap<String, Raw>,
}

/// Objects that are in force: what each says, or why that cannot be used, and the revision it was written at.
pub type Objects = BTreeMap<ObjectName, (Result<Record, Unusable>, i64)>;

/// A connection.
#[derive(Clone)]
pub struct Store {
    client: Client,
    keys: Keys,
}

impl Store {
    /// Connects to one member that answers, whichever does. The client's own choice among several would be the one
    /// that refuses the quickest.
    pub async fn connect(config: &StoreConfig) -> Result<Self> {
        let options = config.options()?;
        let mut endpoints: Vec<&String> = config.endpoints.iter().collect();
        // Not all clients to the same one.
        endpoints.sort_by_cached_key(|endpoint| RandomState::new().hash_one(endpoint));
        let mut refused = Vec::new();
        for endpoint in endpoints {
            match Self::connect_to(config, endpoint, options.clone()).await {
                Ok(store) => return Ok(store),
                // The others would say the same.
                Err(error) if !is_transient(&error) => {
                    return Err(error.context(format!("cannot connect to etcd at {endpoint}")));
                }
                Err(error) => refused.push((endpoint, error)),
            }
        }
        refused.sort_by_key(|(endpoint, _)| *endpoint);
        let each = refused.iter().map(|(endpoint, error)| format!("{endpoint}: {error:#}"));
        let text = format!("no member of etcd answers: {}", each.collect::<Vec<_>>().join("; "));
        Err(Failure { text, kind: Kind::Transient }.into())
    }

    /// The same, and goes on with another member when that one dies: requests may fail on the way, and have to be
    /// repeated ([`patient`]).
    pub async fn connect_to_all(config: &StoreConfig) -> Result<Self> {
        let store = Self::connect(config).await?;
        for endpoint in &config.endpoints {
            store.client.add_endpoint(endpoint).await.map_err(explained)?;
        }
        Ok(store)
    }

    async fn connect_to(config: &StoreConfig, endpoint: &str, options: ConnectOptions) -> Result<Self> {
        let client = bounded(Client::connect([endpoint], Some(options))).await?;
        let store = Self { client, keys: config.keys.clone() };
        // It has to know a leader: a member that is cut off from the others is no help.
        let options = GetOptions::new().with_count_only();
        bounded(store.kv().get(store.keys.head(), Some(options))).await?;
        Ok(store)
    }

    /// The layout of its keys.
    pub fn keys(&self) -> &Keys {
        &self.keys
    }

    /// For what has no method of its own.
    pub fn client(&mut self) -> &mut Client {
        &mut self.client
    }

    /// For large answers.
    pub fn kv(&self) -> KvClient {
        self.client.kv_client().max_decoding_message_size(MESSAGE_MAX)
    }

    /// The same for what happens from now on.
    pub fn watcher(&self) -> WatchClient {
        self.client.watch_client().max_decoding_message_size(MESSAGE_MAX)
    }

    /// Everything under `config/`.
    pub async fn snapshot(&mut self) -> Result<Snapshot> {
        let prefix = self.keys.config().to_owned();
        for _ in 0..ATTEMPTS {
            match self.range(&prefix).await {
                Ok((revision, raw)) => return Ok(Snapshot { revision, raw }),
                Err(error) if is_other_history(&error) => {}
                Err(error) => return Err(error.context("cannot read the topology from etcd")),
            }
        }
        bail!("cannot read the topology from etcd: it is compacted faster than it can be read")
    }

    /// One key's value.
    pub async fn snapshot_of(&mut self, key: &str) -> Result<Option<Raw>> {
        let mut answer =
            self.get_patiently(key.as_bytes(), &GetOptions::new()).await.context("cannot read from etcd")?;
        let kv = answer.take_kvs().into_iter().next();
        Ok(kv.map(|kv| {
            let revision = kv.mod_revision();
            Raw { value: kv.into_key_value().1, revision }
        }))
    }

    /// How all nodes are that run.
    pub async fn states(&mut self) -> Result<BTreeMap<String, NodeState>> {
        let prefix = self.keys.states().to_owned();
        let (_, raw) = self.range(&prefix).await.context("cannot read the nodes' states from etcd")?;
        let states = raw.into_iter().filter_map(|(key, raw)| {
            let node = self.keys.read_state(key.as_bytes())?;
            Some((node, NodeState::read(&raw.value)))
        });
        Ok(states.collect())
    }

    /// What nodes say of the members they check, and the revision that is of.
    pub async fn health(&mut self) -> Result<(i64, BTreeMap<String, Kept>)> {
        let prefix = self.keys.healths().to_owned();
        let (revision, raw) = self.range(&prefix).await.context("cannot read members' health from etcd")?;
        let mut kept = BTreeMap::new();
        for (key, raw) in raw {
            health::note(&self.keys, &mut kept, key.as_bytes(), Some(&raw.value));
        }
        Ok((revision, kept))
    }

    /// As [`patient`], which the compiler cannot tell to be fit for another thread.
    async fn get_patiently(&self, key: &[u8], options: &GetOptions) -> Result<GetResponse> {
        let end = Instant::now() + PATIENCE;
        loop {
            match bounded(self.kv().get(key.to_vec(), Some(options.clone()))).await {
                Err(error) if is_transient(&error) && Instant::now() < end => tokio::time::sleep(PAUSE).await,
                outcome => return outcome,
            }
        }
    }

    /// All keys with a prefix at one revision, page by page.
    async fn range(&self, prefix: &str) -> Result<(i64, BTreeMap<String, Raw>)> {
        let end = end_of(prefix);
        let (mut from, mut revision, mut raw) = (prefix.as_bytes().to_vec(), 0, BTreeMap::new());
        loop {
            let mut options = GetOptions::new().with_range(end.clone()).with_limit(PAGE);
            if revision > 0 {
                options = options.with_revision(revision);
            }
            let mut answer = self.get_patiently(&from, &options).await?;
            if revision == 0 {
                revision = answer.header().map_or(0, etcd_client::ResponseHeader::revision);
            }
            let more = answer.more();
            let kvs = answer.take_kvs();
            // The next key after the last.
            from = kvs.last().map(|kv| [kv.key(), &[0]].concat()).unwrap_or_default();
            for kv in kvs {
                let revision = kv.mod_revision();
                let (key, value) = kv.into_key_value();
                if let Ok(key) = String::from_utf8(key) {
                    raw.insert(key, Raw { value, revision });
                }
            }
            if !more || from.is_empty() {
                return Ok((revision, raw));
            }
        }
    }
}

impl Snapshot {
    /// What is in force, and the revision it was written at; 0 if it never was.
    pub fn head(&self, keys: &Keys) -> Result<(Head, i64), Unusable> {
        match self.raw.get(&keys.head()) {
            Some(raw) => Ok((Head::read(&raw.value)?, raw.revision)),
            None => Ok((Head::default(), 0)),
        }
    }

    /// The objects that are in force, with those of staged changes.
    pub fn objects(&self, keys: &Keys) -> Result<Objects> {
        let (head, _) = self.head(keys).map_err(|wrong| anyhow::anyhow!("{}: {wrong}", keys.head()))?;
        let mut objects = BTreeMap::new();
        for (key, raw) in &self.raw {
            if let Some(Key::Object(object)) = keys.read(key.as_bytes()) {
                let record = Record::read(&object, &raw.value);
                objects.insert(object, (record, raw.revision));
            }
        }
        for change in &head.pending {
            let prefix = keys.staged_of(Some(change));
            for (key, raw) in self.raw.range(prefix.clone()..).take_while(|(key, _)| key.starts_with(&prefix))
            {
                let Some(Key::Staged { object, .. }) = keys.read(key.as_bytes()) else { continue };
                match Staged::read(&raw.value) {
                    Ok(Staged::Put(record)) => objects.insert(object, (Ok(record), raw.revision)),
                    Ok(Staged::Delete) => objects.remove(&object),
                    Err(wrong) => objects.insert(object, (Err(wrong), raw.revision)),
                };
            }
        }
        Ok(objects)
    }
}

/// The first key after all that begin with a prefix.
pub fn end_of(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}

/// Why a request failed: in few words, the same each time for the same cause, and never with what was sent.
#[derive(Debug, thiserror::Error)]
#[error("{text}")]
struct Failure {
    text: String,
    kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// It may succeed in a moment.
    Transient,
    /// What was asked for is older than what etcd still has.
    Compacted,
    /// It is newer than what it has.
    Future,
    /// This user may not.
    Denied,
    Final,
}

/// A request that no member answers in time has failed.
pub async fn bounded<T>(request: impl Future<Output = Result<T, Error>>) -> Result<T> {
    match tokio::time::timeout(REQUEST_TIMEOUT, request).await {
        Ok(answer) => answer.map_err(explained),
        Err(_) => {
            let text = format!("etcd does not answer within {} seconds", REQUEST_TIMEOUT.as_secs());
            Err(Failure { text, kind: Kind::Transient }.into())
        }
    }
}

/// Asks again, for a while, when etcd is between leaders or a member has just died. What is asked for may be done
/// more than once.
pub async fn patient<T>(mut act: impl AsyncFnMut() -> Result<T>) -> Result<T> {
    let end = Instant::now() + PATIENCE;
    loop {
        match act().await {
            Err(error) if is_transient(&error) && Instant::now() < end => tokio::time::sleep(PAUSE).await,
            outcome => return outcome,
        }
    }
}

/// Whether the same may succeed in a moment. Whether it was done is not known.
pub fn is_transient(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Failure>().is_some_and(|failure| failure.kind == Kind::Transient)
}

/// Whether etcd has not, or no more, what was asked for.
pub fn is_other_history(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<Failure>()
        .is_some_and(|failure| matches!(failure.kind, Kind::Compacted | Kind::Future))
}

/// Whether what was asked for is older than what etcd still has.
pub fn is_compacted(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Failure>().is_some_and(|failure| failure.kind == Kind::Compacted)
}

/// Whether this user may not.
pub fn is_denied(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Failure>().is_some_and(|failure| failure.kind == Kind::Denied)
}

/// What etcd says, in words that help.
pub fn explained(error: Error) -> anyhow::Error {
    /// gRPC's codes.
    const DEADLINE_EXCEEDED: i32 = 4;
    const UNAVAILABLE: i32 = 14;
    let (text, kind) = match &error {
        Error::GRpcStatus(status) => match status.message() {
            "etcdserver: permission denied" => (
                "permission denied: this user's roles do not allow it (docs/operations.md lists the roles)"
                    .to_owned(),
                Kind::Denied,
            ),
            "etcdserver: user name is empty" => {
                ("it wants a user: give --etcd-user and --etcd-password-file".to_owned(), Kind::Final)
            }
            "etcdserver: authentication failed, invalid user ID or password" => {
                ("wrong user or password".to_owned(), Kind::Final)
            }
            message => {
                let passes = matches!(i32::from(status.code()), UNAVAILABLE | DEADLINE_EXCEEDED)
                    || ["leader", "timed out", "transport", "h2 protocol"]
                        .iter()
                        .any(|it| message.contains(it));
                let kind = match passes {
                    _ if message.contains("compacted") => Kind::Compacted,
                    _ if message.contains("future revision") => Kind::Future,
                    true => Kind::Transient,
                    false => Kind::Final,
                };
                (message.trim_start_matches("etcdserver: ").to_owned(), kind)
            }
        },
        Error::TransportError(_) | Error::IoError(_) => (error.to_string(), Kind::Transient),
        _ => (error.to_string(), Kind::Final),
    };
    Failure { text: format!("etcd: {text}"), kind }.into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::Kind;

    #[test]
    fn staged_objects_count_once_they_are_in_force() {
        let keys = Keys::new("/vrouter");
        let name = |name: &str| ObjectName::new(Kind::Network, name);
        let record = |name: &str, mtu: u32| {
            let spec = serde_json::json!({ "name": name, "mtu": mtu });
            Record::new(spec.as_object().cloned().unwrap_or_default())
        };
        let mut snapshot = Snapshot { revision: 9, ..Snapshot::default() };
        let mut put =
            |key: String, value: Vec<u8>, revision| snapshot.raw.insert(key, Raw { value, revision });
        put(keys.object(&name("web")), record("web", 1400).bytes(), 3);
        put(keys.object(&name("db")), record("db", 1400).bytes(), 3);
        put(keys.staged("1", &name("web")), Staged::Put(record("web", 1300)).bytes(), 5);
        put(keys.staged("1", &name("db")), Staged::Delete.bytes(), 5);
        put(keys.staged("2", &name("new")), Staged::Put(record("new", 1300)).bytes(), 6);
        let before = snapshot.objects(&keys).unwrap();
        assert_eq!(before.keys().map(|it| it.name.as_str()).collect::<Vec<_>>(), ["db", "web"]);
        let head = Head { schema: 1, pending: vec!["1".to_owned()], ..Head::default() };
        snapshot.raw.insert(keys.head(), Raw { value: head.bytes(), revision: 7 });
        let after = snapshot.objects(&keys).unwrap();
        assert_eq!(after.len(), 1);
        assert_eq!(after[&name("web")], (Ok(record("web", 1300)), 5));
    }
}

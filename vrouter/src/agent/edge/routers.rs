//! The virtual routers of this node: their machines, the sockets they hear and speak by, and the map that tells the
//! data path.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::IpAddr,
    os::fd::AsRawFd,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use nix::time::{ClockId, clock_gettime};
use socket2::Socket;
use tokio::{
    io::{Interest, unix::AsyncFd},
    sync::mpsc,
    task::JoinHandle,
};
use vrouter_common::tables::{MASTER_LINGER, Master, MasterKey};

use super::{
    Participant, VirtualRouterStatus,
    machine::{Action, Machine, RESIGN, Setting, State},
    vrrp::{self, Advertisement, Wrong},
};
use crate::{agent::frame_socket, compile::virtual_mac, data_path::Pins, kernel::Map};

/// Frames that wait to be looked at.
const HEARD: usize = 1024;
/// The largest announcement: 255 IPv6 addresses would be 4 KiB, which no Ethernet carries.
const FRAME_MAX: usize = 2048;
/// How long what is sent to this node is carried after another took over.
const LINGER: Duration = Duration::from_nanos(MASTER_LINGER);

/// A frame, and where it came in.
pub type Heard = (u32, Vec<u8>);

struct Member {
    participant: Participant,
    machine: Machine,
    key: MasterKey,
    /// What the map says, as far as this thread knows.
    speaks: bool,
    since: Instant,
    transitions: u64,
    /// The other that announced itself last.
    other: Option<(IpAddr, u8, Instant)>,
    refused: BTreeMap<&'static str, u64>,
    /// What is odd about what others announce.
    note: Option<String>,
    /// Why the last announcement could not be sent.
    mute: Option<String>,
}

/// Hears on an interface until it is dropped.
struct Ear(Vec<JoinHandle<()>>);

impl Drop for Ear {
    fn drop(&mut self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}

/// All of them.
pub struct Routers {
    map: Map<MasterKey, Master>,
    members: BTreeMap<MasterKey, Member>,
    ears: BTreeMap<u32, Result<Ear, String>>,
    speaker: Socket,
    sender: mpsc::Sender<Heard>,
    receiver: mpsc::Receiver<Heard>,
    /// Of which another is the master now, and until when this node carries what still comes.
    lingering: BTreeMap<MasterKey, Instant>,
    complaint: Option<String>,
}

impl Routers {
    /// Opens the pin and a socket in the network namespace of the calling thread.
    pub fn open(pins: &Pins) -> Result<Self> {
        let (sender, receiver) = mpsc::channel(HEARD);
        let speaker = frame_socket::open()
            .context("cannot open a packet socket: run the agent as root (CAP_NET_RAW)")?;
        Ok(Self {
            map: Map::open(&pins.maps(), "MASTERS")?,
            members: BTreeMap::new(),
            ears: BTreeMap::new(),
            speaker,
            sender,
            receiver,
            lingering: BTreeMap::new(),
            complaint: None,
        })
    }

    /// From now on these, and no others.
    pub fn follow(&mut self, participants: &[Participant], now: Instant) {
        let key = |it: &Participant| MasterKey::new(it.router.network_id, it.router.vrid, it.router.ipv6);
        let wanted: BTreeMap<MasterKey, &Participant> =
            participants.iter().map(|participant| (key(participant), participant)).collect();
        let gone: Vec<_> = self.members.keys().filter(|key| !wanted.contains_key(key)).copied().collect();
        for key in gone {
            self.leave(key, now);
            self.members.remove(&key);
        }
        let interfaces: BTreeSet<u32> = participants.iter().filter_map(|it| it.ifindex).collect();
        self.ears.retain(|ifindex, _| interfaces.contains(ifindex));
        for ifindex in interfaces {
            if !self.ears.contains_key(&ifindex) {
                self.ears.insert(ifindex, self.listen(ifindex));
            }
        }
        for (key, participant) in wanted {
            self.join(key, participant.clone(), now);
        }
        self.sweep();
    }

    fn join(&mut self, key: MasterKey, participant: Participant, now: Instant) {
        let setting = Setting {
            priority: participant.router.priority,
            interval: Duration::from_millis(u64::from(participant.router.interval_ms)),
            preempt: participant.router.preempt,
            source: participant.source,
        };
        if !self.members.contains_key(&key) {
            let machine = Machine::new(setting);
            // An earlier agent's word: nobody contradicted it as long as it is not silenced.
            let word = self.map.lookup(&key).ok().flatten();
            let speaks = word.is_some_and(|master| master.speaks());
            if !speaks && word.is_some() {
                // It may have flows from the time when it was.
                self.lingering.insert(key, now + LINGER);
            }
            let member = Member {
                participant: participant.clone(),
                machine,
                key,
                speaks,
                since: now,
                transitions: 0,
                other: None,
                refused: BTreeMap::new(),
                note: None,
                mute: None,
            };
            self.members.insert(key, member);
        }
        let Some(member) = self.members.get_mut(&key) else { return };
        let moved = member.participant.ifindex != participant.ifindex;
        member.participant = participant;
        member.machine.set(setting);
        member.note = None;
        let hears =
            member.participant.ifindex.is_some_and(|ifindex| matches!(self.ears.get(&ifindex), Some(Ok(_))));
        let may = member.participant.hindrance.is_none() && hears;
        if !may || moved {
            self.leave(key, now);
        }
        let Some(member) = self.members.get_mut(&key) else { return };
        if may && member.machine.state() == State::Initialize {
            member.since = now;
            if member.speaks {
                member.machine.resume(now);
                self.act(key, Action::TakeOver, now);
            } else {
                member.machine.start(now);
            }
        }
    }

    /// Takes part no more, and says so to those who wait to take over.
    fn leave(&mut self, key: MasterKey, now: Instant) {
        let Some(member) = self.members.get_mut(&key) else { return };
        if member.machine.state() != State::Initialize {
            member.since = now;
        }
        let action = member.machine.stop();
        self.silence(key);
        self.act(key, action, now);
    }

    /// Gives up everything, so that others take over at once. The data path answers on until one does: there may be
    /// none.
    pub fn resign(&mut self) {
        let mastered = self.mastered();
        for key in mastered {
            let outcome = self.map.set(&key, &Master { until: monotonic(), is_master: 1, silenced: 0 });
            self.told(outcome);
            self.announce(key, RESIGN);
        }
    }

    /// Forgets what earlier agents said of virtual routers that are no more.
    fn sweep(&mut self) {
        let outcome = self.map.keys().and_then(|keys| {
            let stale = keys.into_iter().filter(|key| !self.members.contains_key(key));
            stale.into_iter().try_for_each(|key| {
                let now = monotonic();
                match self.map.lookup(&key)? {
                    Some(master) if !master.speaks() && master.until > now => Ok(()),
                    _ => self.map.remove(&key),
                }
            })
        });
        if let Err(error) = outcome {
            self.complain(format!("cannot tell the data path of virtual routers: {error:#}"));
        }
    }

    /// When there is something to be done.
    pub fn due(&self) -> Option<Instant> {
        let machines = self.members.values().filter_map(|member| member.machine.due());
        machines.chain(self.lingering.values().copied()).min()
    }

    /// Does what is due.
    pub fn tick(&mut self, now: Instant) {
        self.lingering.retain(|_, until| *until > now);
        let due: Vec<_> = self
            .members
            .iter()
            .filter(|(_, member)| member.machine.due().is_some_and(|due| due <= now))
            .map(|(key, _)| *key)
            .collect();
        for key in due {
            if let Some(member) = self.members.get_mut(&key) {
                let action = member.machine.tick(now);
                self.act(key, action, now);
            }
        }
    }

    /// Waits for a frame.
    pub async fn hear(&mut self) -> Heard {
        match self.receiver.recv().await {
            Some(heard) => heard,
            // A sender is in `self`.
            None => std::future::pending().await,
        }
    }

    /// A frame that is there already.
    pub fn heard_already(&mut self) -> Option<Heard> {
        self.receiver.try_recv().ok()
    }

    /// Takes a frame of protocol 112.
    pub fn take(&mut self, (ifindex, frame): Heard, now: Instant) {
        let advertisement = match Advertisement::read(&frame) {
            Ok(advertisement) => advertisement,
            Err(wrong) => {
                // Whose it is, is not to be trusted either: it counts for all on the interface.
                let name = match wrong {
                    Wrong::Malformed => "malformed",
                    Wrong::Ttl => "ttl",
                    Wrong::Version => "version",
                    Wrong::Checksum => "checksum",
                };
                for member in self.members.values_mut().filter(|it| it.participant.ifindex == Some(ifindex)) {
                    *member.refused.entry(name).or_default() += 1;
                }
                return;
            }
        };
        let Advertisement { vrid, priority, interval, source, addresses } = advertisement;
        let found = self.members.values_mut().find(|member| {
            let router = &member.participant.router;
            member.participant.ifindex == Some(ifindex)
                && router.vrid == vrid
                && router.ipv6 == source.is_ipv6()
        });
        let Some(member) = found else { return };
        if source == member.participant.source {
            *member.refused.entry("own_address").or_default() += 1;
            return;
        }
        // RFC 5798, 7.1: worth a note, and no reason to have two masters.
        let own: BTreeSet<_> = member.participant.router.addresses.iter().collect();
        member.note = (own != addresses.iter().collect()).then(|| {
            format!(
                "{source} announces other addresses for VRID {vrid}: {}: is the VRID somebody else's?",
                list(&addresses)
            )
        });
        if priority > 0 {
            member.other = Some((source, priority, now));
        }
        let (key, before) = (member.key, member.machine.state());
        let action = member.machine.hear(priority, interval, source, now);
        // An earlier agent of this node was master; another is now.
        let outlived = member.speaks && matches!(before, State::Backup { .. }) && priority > 0;
        if outlived {
            self.silence(key);
        }
        self.act(key, action, now);
    }

    fn act(&mut self, key: MasterKey, action: Action, now: Instant) {
        let Some(member) = self.members.get_mut(&key) else { return };
        match action {
            Action::None => {}
            Action::TakeOver => {
                (member.since, member.transitions, member.other) = (now, member.transitions + 1, None);
                tracing::info!(router = %member.participant.router.router, vrid = key.vrid, "master");
                // First the data path, which answers for it; then those who will ask.
                self.speak(key);
                let priority = self.members[&key].participant.router.priority;
                self.announce(key, priority);
            }
            Action::Announce(priority) => {
                if priority > 0 {
                    self.speak(key);
                }
                self.announce(key, priority);
            }
            Action::Yield => {
                (member.since, member.transitions) = (now, member.transitions + 1);
                tracing::info!(router = %member.participant.router.router, vrid = key.vrid, "backup");
                self.silence(key);
            }
        }
    }

    /// The data path answers for it, also without this thread, until another announces itself.
    fn speak(&mut self, key: MasterKey) {
        let Some(member) = self.members.get_mut(&key) else { return };
        member.speaks = true;
        self.lingering.remove(&key);
        let until = monotonic() + nanoseconds(member.machine.down_interval());
        let outcome = self.map.set(&key, &Master { until, is_master: 1, silenced: 0 });
        self.told(outcome);
    }

    /// The data path answers for it no more.
    fn silence(&mut self, key: MasterKey) {
        let Some(member) = self.members.get_mut(&key) else { return };
        if !member.speaks {
            return;
        }
        member.speaks = false;
        self.lingering.insert(key, Instant::now() + LINGER);
        let until = monotonic() + nanoseconds(LINGER);
        let outcome = self.map.set(&key, &Master { until, is_master: 0, silenced: 0 });
        self.told(outcome);
    }

    fn told(&mut self, outcome: Result<()>) {
        match outcome {
            Ok(()) => self.complaint = None,
            Err(error) => self.complain(format!("cannot tell the data path of virtual routers: {error:#}")),
        }
    }

    fn announce(&mut self, key: MasterKey, priority: u8) {
        let Some(member) = self.members.get_mut(&key) else { return };
        let Participant { router, ifindex, source, .. } = &member.participant;
        let Some(ifindex) = *ifindex else { return };
        let advertisement = Advertisement {
            vrid: router.vrid,
            priority,
            interval: Duration::from_millis(u64::from(router.interval_ms)),
            source: *source,
            addresses: router.addresses.clone(),
        };
        let frame = advertisement.frame(virtual_mac(router.vrid, router.ipv6));
        let to = frame_socket::address(ifindex, [frame[12], frame[13]]);
        let sent = self.speaker.send_to(&frame, &to);
        member.mute = sent.err().map(|error| format!("cannot announce: {error}"));
    }

    /// Tries again what did not work.
    pub fn retry(&mut self) {
        let deaf: Vec<u32> =
            self.ears.iter().filter(|(_, ear)| ear.is_err()).map(|(ifindex, _)| *ifindex).collect();
        for ifindex in deaf {
            self.ears.insert(ifindex, self.listen(ifindex));
            let those = self.members.values().filter(|it| it.participant.ifindex == Some(ifindex));
            let those: Vec<_> = those.map(|member| (member.key, member.participant.clone())).collect();
            for (key, participant) in those {
                self.join(key, participant, Instant::now());
            }
        }
        if !self.members.is_empty() {
            self.sweep();
        }
    }

    fn listen(&self, ifindex: u32) -> Result<Ear, String> {
        let open = |ethertype, proto_at, group| -> io::Result<JoinHandle<()>> {
            let socket = ear(ifindex, ethertype, proto_at, group)?;
            // SAFETY: it has one descriptor, the same until it is dropped.
            let socket = unsafe { AsyncFd::register_with_interest(socket, Interest::READABLE) }
                .map_err(io::Error::from)?;
            Ok(tokio::spawn(hear(socket, ifindex, self.sender.clone())))
        };
        let v4 = open(libc::ETH_P_IP as u16, 23, vrrp::GROUP_MAC_V4);
        let v6 = open(libc::ETH_P_IPV6 as u16, 20, vrrp::GROUP_MAC_V6);
        match (v4, v6) {
            (Ok(v4), Ok(v6)) => Ok(Ear(vec![v4, v6])),
            (Err(error), other) | (other, Err(error)) => {
                drop(other.map(|task| Ear(vec![task])));
                Err(format!("cannot hear announcements on interface {ifindex}: {error}"))
            }
        }
    }

    /// Those this node is the master of.
    pub fn mastered(&self) -> BTreeSet<MasterKey> {
        self.members.values().filter(|member| member.machine.is_master()).map(|member| member.key).collect()
    }

    /// Those of which another is the master now, and this node still carries what comes.
    pub fn lingering(&self) -> BTreeSet<MasterKey> {
        self.lingering.keys().copied().collect()
    }

    /// What does not work.
    pub fn notes(&self) -> impl Iterator<Item = String> {
        let deaf = self.ears.values().filter_map(|ear| ear.as_ref().err().cloned());
        deaf.chain(self.complaint.clone()).collect::<Vec<_>>().into_iter()
    }

    /// How they are.
    pub fn status(&self, now: Instant) -> Vec<VirtualRouterStatus> {
        let row = |member: &Member| {
            let router = &member.participant.router;
            let down = member.machine.down_interval();
            let other = member.other.filter(|(_, _, at)| now.saturating_duration_since(*at) < down * 2);
            VirtualRouterStatus {
                router: router.router.clone(),
                network: router.network.clone(),
                vrid: router.vrid,
                family: if router.ipv6 { "ipv6" } else { "ipv4" },
                state: match member.machine.state() {
                    State::Initialize => "off",
                    State::Backup { .. } => "backup",
                    State::Master { .. } => "master",
                },
                priority: router.priority,
                master: other.map(|(source, ..)| source),
                master_priority: other.map(|(_, priority, _)| priority),
                addresses: router.addresses.clone(),
                interval_ms: router.interval_ms,
                down_ms: down.as_millis() as u64,
                preempt: router.preempt,
                gateways: router.carriers.clone(),
                note: [&member.participant.hindrance, &member.mute, &member.note]
                    .into_iter()
                    .flatten()
                    .next()
                    .cloned(),
                since_seconds: now.saturating_duration_since(member.since).as_secs(),
                transitions: member.transitions,
                refused: member.refused.clone(),
            }
        };
        self.members.values().map(row).collect()
    }

    fn complain(&mut self, text: String) {
        if self.complaint.as_ref() != Some(&text) {
            tracing::error!("{text}");
        }
        self.complaint = Some(text);
    }
}

fn list(addresses: &[IpAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX / 2)
}

/// The clock of `bpf_ktime_get_ns`.
fn monotonic() -> u64 {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |time| nanoseconds(Duration::from(time)))
}

/// Passes frames on; those that come too thick are lost, as on a wire.
async fn hear(socket: AsyncFd<Socket>, ifindex: u32, to: mpsc::Sender<Heard>) {
    while let Ok(mut ready) = socket.readable().await {
        let mut frame = vec![0; FRAME_MAX];
        let read = ready.try_io(|socket| {
            // SAFETY: the buffer is as long as is said; the descriptor is open as long as the socket lives.
            let len = unsafe { libc::recv(socket.as_raw_fd(), frame.as_mut_ptr().cast(), frame.len(), 0) };
            if len < 0 { Err(io::Error::last_os_error()) } else { Ok(len as usize) }
        });
        match read {
            Ok(Ok(len)) => {
                frame.truncate(len);
                let _ = to.try_send((ifindex, frame));
                // There may be another, and another: others get their turn.
                tokio::task::consume_budget().await;
            }
            // The interface went down; it is the same one when it is up again.
            Ok(Err(_)) | Err(_) => tokio::task::yield_now().await,
        }
    }
}

/// A socket that receives frames of protocol 112 on an interface.
fn ear(ifindex: u32, ethertype: u16, proto_at: u32, group: [u8; 6]) -> io::Result<Socket> {
    // Bound when the filter is there.
    let socket = frame_socket::open()?;
    let instruction = |code: u32, jt, jf, k| libc::sock_filter { code: code as u16, jt, jf, k };
    let mut filter = [
        instruction(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 0, 0, proto_at),
        instruction(
            libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K,
            0,
            1,
            u32::from(vrouter_common::wire::PROTO_VRRP),
        ),
        instruction(libc::BPF_RET | libc::BPF_K, 0, 0, FRAME_MAX as u32),
        instruction(libc::BPF_RET | libc::BPF_K, 0, 0, 0),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    set_option(&socket, libc::SOL_SOCKET, libc::SO_ATTACH_FILTER, &program)?;
    let mut membership = libc::packet_mreq {
        mr_ifindex: ifindex as i32,
        mr_type: libc::PACKET_MR_MULTICAST as u16,
        mr_alen: 6,
        mr_address: [0; 8],
    };
    membership.mr_address[..6].copy_from_slice(&group);
    set_option(&socket, libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP, &membership)?;
    socket.bind(&frame_socket::address(ifindex, ethertype.to_be_bytes()))?;
    Ok(socket)
}

fn set_option<T>(socket: &Socket, level: i32, name: i32, value: &T) -> io::Result<()> {
    let len = size_of::<T>() as libc::socklen_t;
    // SAFETY: the value is a live `T` of that length, which is what the option takes.
    let done =
        unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, std::ptr::from_ref(value).cast(), len) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use socket2::{Domain, Type};

    use super::*;

    #[tokio::test]
    async fn whoever_has_much_to_say_keeps_nobody_from_his_turn() {
        const FRAMES: usize = 200;
        let (here, there) = Socket::pair(Domain::UNIX, Type::SEQPACKET, None).unwrap();
        here.set_nonblocking(true).unwrap();
        for _ in 0..FRAMES {
            there.send(&[1; 60]).unwrap();
        }
        let (sender, mut receiver) = mpsc::channel(HEARD);
        // SAFETY: it has one descriptor, the same until it is dropped.
        let here = unsafe { AsyncFd::register_with_interest(here, Interest::READABLE) }.unwrap();
        let _ear = Ear(vec![tokio::spawn(hear(here, 7, sender))]);
        receiver.recv().await.unwrap();
        let at_once = 1 + receiver.len();
        assert!(at_once < FRAMES, "{at_once} in a row");
        for _ in 1..FRAMES {
            assert_eq!(receiver.recv().await.unwrap(), (7, vec![1; 60]));
        }
    }
}

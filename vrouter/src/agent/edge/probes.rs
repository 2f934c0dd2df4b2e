//! The gateways this node depends on: asked again and again whether they carry. And the answers to those who ask
//! this node.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    time::{Duration, Instant},
};

use tokio::net::UdpSocket;

use super::{
    GatewayStatus, Wanted,
    sbfd::{self, Control, State},
};
use crate::compile::GatewayPeer;

/// Questions without an answer after which a gateway is dead.
const MULTIPLIER: u8 = 3;
const TTL: u32 = 255;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Health {
    Unknown,
    Up,
    Down,
    AdminDown,
}

#[derive(Debug)]
struct Session {
    /// Its discriminator.
    mine: u32,
    health: Health,
    /// When it spoke last, or when it was asked first.
    heard: Instant,
    asked: Instant,
    due: Instant,
    since: Instant,
    transitions: u64,
    rtt: Option<Duration>,
}

/// Both sides.
#[derive(Default)]
pub struct Probes {
    wanted: Wanted,
    sessions: BTreeMap<GatewayPeer, Session>,
    last_discriminator: u32,
    /// Asks.
    initiator: Option<UdpSocket>,
    /// Answers.
    reflector: Option<UdpSocket>,
    complaint: Option<String>,
}

/// A datagram that came, to which socket.
pub enum Heard {
    Answer(Control),
    Question(Control, SocketAddrV4),
    Noise,
}

impl Probes {
    /// From now on these.
    pub async fn follow(&mut self, wanted: &Wanted, now: Instant) {
        if self.wanted.vtep != wanted.vtep {
            (self.initiator, self.reflector) = (None, None);
        }
        self.wanted = wanted.clone();
        self.sessions.retain(|peer, _| wanted.gateways.contains(peer));
        for peer in &wanted.gateways {
            if !self.sessions.contains_key(peer) {
                self.last_discriminator = self.last_discriminator.wrapping_add(1).max(1);
                let session = Session {
                    mine: self.last_discriminator,
                    health: Health::Unknown,
                    heard: now,
                    asked: now,
                    due: now,
                    since: now,
                    transitions: 0,
                    rtt: None,
                };
                self.sessions.insert(peer.clone(), session);
            }
        }
        self.retry().await;
    }

    /// Opens what is not open.
    pub async fn retry(&mut self) {
        let Some(vtep) = self.wanted.vtep else { return };
        let mut complaint = None;
        if self.initiator.is_none() && !self.sessions.is_empty() {
            match bind(vtep, 0).await {
                Ok(socket) => self.initiator = Some(socket),
                Err(error) => complaint = Some(format!("cannot ask gateways from {vtep}: {error}")),
            }
        }
        if self.reflector.is_none() && !self.wanted.in_service.is_empty() {
            match bind(vtep, sbfd::PORT).await {
                Ok(socket) => self.reflector = Some(socket),
                Err(error) => {
                    complaint = Some(format!(
                        "cannot answer at UDP {vtep}:{} whether this gateway carries, so that others do not use it: {error}",
                        sbfd::PORT
                    ));
                }
            }
        }
        if complaint != self.complaint {
            if let Some(text) = &complaint {
                tracing::warn!("{text}");
            }
            self.complaint = complaint;
        }
    }

    /// When there is something to be done.
    pub fn due(&self) -> Option<Instant> {
        self.sessions.values().map(|session| session.due).min()
    }

    /// Nobody is to blame for answers that waited here.
    pub fn forgive(&mut self, late: Duration) {
        for session in self.sessions.values_mut() {
            session.heard += late;
        }
    }

    /// Asks those whose time has come, and gives up on those that are silent.
    pub async fn tick(&mut self, now: Instant) {
        let interval = self.wanted.probe_interval;
        for (peer, session) in self.sessions.iter_mut().filter(|(_, session)| session.due <= now) {
            if now.saturating_duration_since(session.heard) > interval * u32::from(MULTIPLIER) {
                session.turn(Health::Down, peer, now);
            }
            let question = Control {
                state: if session.health == Health::Up { State::Up } else { State::Down },
                demand: true,
                multiplier: MULTIPLIER,
                mine: session.mine,
                yours: peer.vni,
                interval,
            };
            if let Some(initiator) = &self.initiator {
                // What cannot be sent is not answered, which is what counts.
                let _ =
                    initiator.try_send_to(&question.bytes(), SocketAddrV4::new(peer.vtep, sbfd::PORT).into());
            }
            session.asked = now;
            session.due = now + interval;
        }
    }

    /// Waits for a datagram.
    pub async fn hear(&mut self) -> Heard {
        async fn receive(socket: Option<&UdpSocket>) -> (Option<Control>, Option<SocketAddrV4>) {
            let Some(socket) = socket else { return std::future::pending().await };
            let mut bytes = [0; sbfd::LEN * 2];
            match socket.recv_from(&mut bytes).await {
                Ok((len, SocketAddr::V4(from))) => (Control::read(&bytes[..len]), Some(from)),
                // A message of ICMP about something sent before.
                _ => (None, None),
            }
        }
        tokio::select! {
            (control, from) = receive(self.initiator.as_ref()) => match (control, from) {
                (Some(control), Some(from)) if self.is_of_gateway(from) => Heard::Answer(control),
                _ => Heard::Noise,
            },
            (control, from) = receive(self.reflector.as_ref()) => match (control, from) {
                (Some(control), Some(from)) if self.wanted.peers.contains(from.ip()) => {
                    Heard::Question(control, from)
                }
                _ => Heard::Noise,
            },
        }
    }

    fn is_of_gateway(&self, from: SocketAddrV4) -> bool {
        from.port() == sbfd::PORT && self.sessions.keys().any(|peer| peer.vtep == *from.ip())
    }

    /// Takes it.
    pub fn take(&mut self, heard: Heard, now: Instant) {
        match heard {
            Heard::Noise => {}
            Heard::Question(question, from) => {
                let in_service = self.wanted.in_service.contains(&question.yours);
                if let (Some(answer), Some(reflector)) = (question.reflect(in_service), &self.reflector) {
                    let _ = reflector.try_send_to(&answer.bytes(), from.into());
                }
            }
            Heard::Answer(answer) => {
                let found = self
                    .sessions
                    .iter_mut()
                    .find(|(peer, session)| session.mine == answer.yours && peer.vni == answer.mine);
                let Some((peer, session)) = found else { return };
                session.heard = now;
                session.rtt = Some(now.saturating_duration_since(session.asked));
                let health = if answer.state == State::Up { Health::Up } else { Health::AdminDown };
                session.turn(health, peer, now);
            }
        }
    }

    /// Those that do not carry.
    pub fn dead(&self) -> BTreeSet<(String, String)> {
        let is_dead = |session: &Session| matches!(session.health, Health::Down | Health::AdminDown);
        let dead = self.sessions.iter().filter(|(_, session)| is_dead(session));
        dead.map(|(peer, _)| (peer.network.clone(), peer.node.clone())).collect()
    }

    /// What does not work.
    pub fn notes(&self) -> impl Iterator<Item = String> {
        self.complaint.clone().into_iter()
    }

    /// How they are.
    pub fn status(&self, now: Instant) -> Vec<GatewayStatus> {
        let row = |(peer, session): (&GatewayPeer, &Session)| GatewayStatus {
            network: peer.network.clone(),
            node: peer.node.clone(),
            vtep: peer.vtep,
            state: match session.health {
                Health::Unknown => "unknown",
                Health::Up => "up",
                Health::Down => "down",
                Health::AdminDown => "admin_down",
            },
            since_seconds: now.saturating_duration_since(session.since).as_secs(),
            transitions: session.transitions,
            rtt_us: session.rtt.map(|rtt| rtt.as_micros() as u64),
        };
        self.sessions.iter().map(row).collect()
    }
}

impl Session {
    fn turn(&mut self, health: Health, peer: &GatewayPeer, now: Instant) {
        if self.health == health {
            return;
        }
        match health {
            Health::Up => tracing::info!(gateway = %peer.node, network = %peer.network, "gateway carries"),
            _ => {
                tracing::warn!(gateway = %peer.node, network = %peer.network, ?health, "gateway does not carry")
            }
        }
        (self.health, self.since) = (health, now);
        self.transitions += 1;
    }
}

async fn bind(vtep: Ipv4Addr, port: u16) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(SocketAddrV4::new(vtep, port)).await?;
    socket.set_ttl(TTL)?;
    Ok(socket)
}

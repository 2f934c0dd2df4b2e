//! One port's connections to the metadata service: between its frames and the tasks that answer its requests.
//!
//! Nothing here waits for anybody. What a task has to say is held by a pipe of bounded size until the workload takes
//! it, and the other way round; who is slow fills its own pipe, and who opens more connections than it may have loses
//! its own: first those that are over, then those that never became one.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use smoltcp::{iface::SocketHandle, socket::tcp::State};
use tokio::{
    io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf},
    sync::watch,
};

use super::client::Client;
use crate::agent::services::{
    frame::{Received, wrap},
    stack::Stack,
};

/// The service's addresses.
pub const ADDRESSES: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 169, 254)),
    IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0xa9fe, 0xa9fe)),
];
/// The service's port.
pub const PORT: u16 = 80;
/// Connections of one port, those included that have just ended, or whose task has not yet.
pub const CONNECTIONS: usize = 16;
/// Bytes under way to a workload.
const SEND: usize = 16 << 10;
/// Bytes between a connection and its task, for each direction.
const PIPE: usize = 16 << 10;
/// Until a connection must have come about.
const HALF_OPEN: Duration = Duration::from_secs(5);
/// How long a workload may take to take the end of an answer.
const LINGER: Duration = Duration::from_secs(20);
/// How long a connection may take in all.
const LIFE: Duration = Duration::from_secs(150);
/// How often these are looked at.
const TICK: Duration = Duration::from_secs(1);

const SYN: u8 = 0x02;
const ACK: u8 = 0x10;

/// A conversation that begins: one end of its pipe, and whom it is with.
pub struct Opened {
    pub pipe: DuplexStream,
    pub from: IpAddr,
    pub client: Arc<Client>,
    pub end: End,
}

/// Tells a conversation that its connection has ended, and, held until it is over itself, that it is not. (Its pipe
/// would not tell: a workload that has said all it wants to may still be waiting for the answer.)
pub struct End(watch::Receiver<bool>);

impl End {
    /// Waits for it.
    pub async fn come(&mut self) {
        // A port that is forgotten with its connections says nothing.
        let _ = self.0.wait_for(|has_ended| *has_ended).await;
    }
}

/// What a port wants to be done.
#[derive(Default)]
pub struct Wants {
    pub frames: Vec<Vec<u8>>,
    pub opened: Vec<Opened>,
}

/// A port.
pub struct Guest {
    pub client: Arc<Client>,
    stack: Stack,
    connections: Vec<Connection>,
    /// Conversations that have been told that their connections ended, and are not over yet.
    ending: Vec<watch::Sender<bool>>,
    waker: Waker,
    pub due: Instant,
}

struct Connection {
    handle: SocketHandle,
    peer: (IpAddr, u16),
    /// Hardware addresses as of its last frame: the workload's, and the one it sends to.
    link: Link,
    since: Instant,
    pipe: Pipe,
    /// Tells its conversation that it has ended.
    end: Option<watch::Sender<bool>>,
}

type Link = ([u8; 6], [u8; 6]);

enum Pipe {
    /// There is no connection yet.
    None,
    Open(DuplexStream),
    /// The workload has said all it wants to.
    HeardOut(DuplexStream),
    /// The task has.
    Ended(Instant),
}

impl Guest {
    /// `waker`: woken when a task has taken or given something.
    pub fn new(client: Arc<Client>, seed: u64, waker: Waker, now: Instant) -> Self {
        let stack = Stack::new(&ADDRESSES, client.mtu, seed, now);
        Self { client, stack, connections: Vec::new(), ending: Vec::new(), waker, due: now }
    }

    /// Connections, those included that have just ended, or whose conversation has not yet. It changes with
    /// [`Self::receive`] and [`Self::work`] alone.
    pub fn connections(&self) -> usize {
        self.connections.len() + self.ending.len()
    }

    /// Takes a segment; `room`: whether the node takes another connection. `Err`: why it was refused.
    pub fn receive(
        &mut self,
        received: &Received<'_>,
        room: bool,
        now: Instant,
        wants: &mut Wants,
    ) -> Result<(), &'static str> {
        let (Some((from, PORT)), true) = (received.tcp_ports(), ADDRESSES.contains(&received.dst)) else {
            return Err("malformed");
        };
        let flags = *received.payload.get(13).ok_or("malformed")?;
        if !self.client.has(received.src) {
            return Err("foreign_address");
        }
        let (peer, link, begins) =
            ((received.src, from), (received.from, received.to), flags & (SYN | ACK) == SYN);
        let known = self.connections.iter().position(|it| it.peer == peer);
        let known = known.filter(|&at| {
            let is_over = begins && matches!(self.state(at), State::Closed | State::TimeWait);
            if is_over {
                self.forget(at);
            }
            !is_over
        });
        if let Some(at) = known {
            self.connections[at].link = link;
        }
        self.ending.retain(|end| !end.is_closed());
        let mut result = Ok(());
        let mut listener = None;
        if begins && known.is_none() {
            if self.make_room(room) {
                listener = Some(self.stack.listen(PORT, SEND));
            } else {
                // The stack tells the workload, for nobody listens.
                result = Err("too_many_connections");
            }
        }
        self.stack.receive(received.packet);
        self.stack.poll(now);
        if let Some(handle) = listener {
            if self.stack.socket(handle).remote_endpoint().is_some() {
                self.connections.push(Connection {
                    handle,
                    peer,
                    link,
                    since: now,
                    pipe: Pipe::None,
                    end: None,
                });
            } else {
                self.stack.remove(handle);
                result = Err("malformed");
            }
        }
        self.flush(Some((peer, link)), wants);
        self.work(now, wants);
        result
    }

    /// Does what is to be done now.
    pub fn work(&mut self, now: Instant, wants: &mut Wants) {
        self.stack.poll(now);
        for at in 0..self.connections.len() {
            self.pump(at, now, wants);
        }
        self.stack.poll(now);
        self.flush(None, wants);
        for at in (0..self.connections.len()).rev() {
            // One that is reset before it came about listens again.
            if matches!(self.state(at), State::Closed | State::Listen) {
                self.forget(at);
            }
        }
        self.ending.retain(|end| !end.is_closed());
        self.due = self.stack.next_due(now).unwrap_or(now + TICK).min(now + TICK);
    }

    /// Moves what there is in both directions.
    fn pump(&mut self, at: usize, now: Instant, wants: &mut Wants) {
        let connection = &mut self.connections[at];
        let socket = self.stack.socket(connection.handle);
        let age = now.saturating_duration_since(connection.since);
        let limit = match (socket.state(), &connection.pipe) {
            (State::Closed | State::Listen, _) => return,
            (State::SynReceived, _) => HALF_OPEN,
            (_, Pipe::Ended(since)) => since.saturating_duration_since(connection.since) + LINGER,
            _ => LIFE,
        };
        if age >= limit {
            connection.pipe = Pipe::Ended(now);
            return socket.abort();
        }
        if socket.state() == State::SynReceived {
            return;
        }
        if let Pipe::None = connection.pipe {
            let (near, far) = tokio::io::duplex(PIPE);
            connection.pipe = Pipe::Open(near);
            let (end, ended) = watch::channel(false);
            connection.end = Some(end);
            let (from, client) = (connection.peer.0, self.client.clone());
            wants.opened.push(Opened { pipe: far, from, client, end: End(ended) });
        }
        let mut context = Context::from_waker(&self.waker);
        if let Pipe::Open(pipe) = &mut connection.pipe {
            while socket.can_recv() {
                let given = socket.recv(|bytes| match Pin::new(&mut *pipe).poll_write(&mut context, bytes) {
                    Poll::Ready(Ok(given)) => (given, given),
                    // The task listens no more: what it says is still to be heard.
                    Poll::Ready(Err(_)) => (bytes.len(), bytes.len()),
                    Poll::Pending => (0, 0),
                });
                if given.unwrap_or_default() == 0 {
                    break;
                }
            }
        }
        if !socket.may_recv() {
            connection.pipe = match std::mem::replace(&mut connection.pipe, Pipe::Ended(now)) {
                Pipe::Open(mut pipe) => {
                    // It has no more to do than to take a note.
                    let _ = Pin::new(&mut pipe).poll_shutdown(&mut context);
                    Pipe::HeardOut(pipe)
                }
                other => other,
            };
        }
        let mut has_ended = false;
        if let Pipe::Open(pipe) | Pipe::HeardOut(pipe) = &mut connection.pipe {
            while socket.can_send() && !has_ended {
                let taken = socket.send(|room| {
                    let mut buffer = ReadBuf::new(room);
                    match Pin::new(&mut *pipe).poll_read(&mut context, &mut buffer) {
                        Poll::Pending => (0, Some(0)),
                        Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {
                            (buffer.filled().len(), Some(buffer.filled().len()))
                        }
                        Poll::Ready(_) => (0, None),
                    }
                });
                match taken {
                    Ok(Some(0)) | Err(_) => break,
                    Ok(taken) => has_ended = taken.is_none(),
                }
            }
            // It cannot be told anything any more.
            has_ended |= !socket.may_send();
        }
        if has_ended {
            connection.pipe = Pipe::Ended(now);
            if let Some(end) = &connection.end {
                end.send_replace(true);
            }
            socket.close();
        }
        if let Pipe::Ended(_) = connection.pipe {
            while socket.can_recv() {
                if socket.recv(|bytes| (bytes.len(), ())).is_err() {
                    break;
                }
            }
        }
    }

    /// Whether another connection may be; it may cost one that is over, or that never became one.
    fn make_room(&mut self, room: bool) -> bool {
        if self.connections() < CONNECTIONS && room {
            return true;
        }
        let rank = |state: State| match state {
            State::Closed | State::TimeWait => Some(0),
            State::SynReceived | State::Listen => Some(1),
            _ => None,
        };
        let states: Vec<_> = (0..self.connections.len()).map(|at| self.state(at)).collect();
        let ranked = states.into_iter().enumerate().filter_map(|(at, state)| Some((rank(state)?, at)));
        // They stand in the order in which they came.
        let Some((_, at)) = ranked.min() else { return false };
        let before = self.connections();
        self.forget(at);
        self.connections() < before
    }

    fn state(&mut self, at: usize) -> State {
        self.stack.socket(self.connections[at].handle).state()
    }

    fn forget(&mut self, at: usize) {
        let connection = self.connections.remove(at);
        self.stack.remove(connection.handle);
        if let Some(end) = connection.end.filter(|end| !end.is_closed()) {
            end.send_replace(true);
            self.ending.push(end);
        }
    }

    /// Puts what the stack sends into frames; `asker`: for answers to a segment of no connection.
    fn flush(&mut self, asker: Option<((IpAddr, u16), Link)>, wants: &mut Wants) {
        while let Some(packet) = self.stack.transmit() {
            // As a frame, to be read by what reads frames.
            let frame = wrap([0; 6], [0; 6], &packet);
            let Some(read) = Received::parse(&frame) else { continue };
            let peer = read.tcp_ports().map(|(_, to)| (read.dst, to));
            let connection = self.connections.iter().find(|it| Some(it.peer) == peer);
            let asker = asker.filter(|(asker, _)| Some(*asker) == peer).map(|(_, link)| link);
            if let Some((workload, service)) = connection.map(|it| it.link).or(asker) {
                wants.frames.push(wrap(workload, service, &packet));
            }
        }
    }
}

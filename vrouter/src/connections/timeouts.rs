//! How long each state is kept without a packet: nf_conntrack's defaults, all of them to be changed.

use std::{collections::BTreeMap, fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

macro_rules! timeouts {
    ($($(#[doc = $doc:literal])+ $variant:ident: $name:literal = $seconds:literal,)+) => {
        /// A kind of silence. The names are those of nf_conntrack's sysctls.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Timeout { $($(#[doc = $doc])+ $variant,)+ }

        impl Timeout {
            /// Every one, in the order of their numbers.
            pub const ALL: &[Self] = &[$(Self::$variant,)+];
            const DEFAULTS: &[u32] = &[$($seconds,)+];

            /// The name in configuration and output.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)+ }
            }
        }
    };
}

timeouts! {
    /// A SYN that nobody answered.
    TcpSynSent: "tcp_syn_sent" = 120,
    /// A handshake without its last ACK.
    TcpSynRecv: "tcp_syn_recv" = 60,
    /// An open connection.
    TcpEstablished: "tcp_established" = 432_000,
    /// One side has closed.
    TcpFinWait: "tcp_fin_wait" = 120,
    /// One side has closed, the other knows.
    TcpCloseWait: "tcp_close_wait" = 60,
    /// Both have closed, one does not hear it.
    TcpLastAck: "tcp_last_ack" = 30,
    /// Both have closed.
    TcpTimeWait: "tcp_time_wait" = 120,
    /// Reset.
    TcpClose: "tcp_close" = 10,
    /// Data without a handshake, unanswered.
    TcpUnacknowledged: "tcp_unacknowledged" = 300,
    /// UDP, unanswered or answered once.
    Udp: "udp" = 30,
    /// UDP both ways for more than two seconds.
    UdpStream: "udp_stream" = 120,
    /// ICMP echoes.
    Icmp: "icmp" = 30,
    /// ICMPv6 echoes.
    Icmpv6: "icmpv6" = 30,
    /// Every other protocol.
    Generic: "generic" = 600,
}

/// Seconds by [`Timeout`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Timeouts([u32; Timeout::ALL.len()]);

impl Timeouts {
    /// The longest: entries hold 32 bits of a clock of up to 1000 ticks per second, and the walks that find
    /// them idle need time.
    pub const SECONDS_MAX: u32 = 30 * 86_400;

    /// How long a kind is kept.
    pub fn get(&self, timeout: Timeout) -> Duration {
        Duration::from_secs(u64::from(self.0[timeout as usize]))
    }

    /// Changes one; refuses what no clock could measure.
    pub fn set(&mut self, timeout: Timeout, seconds: u32) -> Result<(), String> {
        check_seconds(i64::from(seconds)).map_err(|error| format!("{}: {error}", timeout.name()))?;
        self.0[timeout as usize] = seconds;
        Ok(())
    }

    /// The shortest: nothing younger can be expired.
    pub fn shortest(&self) -> Duration {
        Duration::from_secs(u64::from(self.0.iter().copied().min().unwrap_or(0)))
    }

    /// What is configured on top of these.
    pub fn with(mut self, changes: &[(Timeout, u32)]) -> Self {
        for &(timeout, seconds) in changes {
            self.0[timeout as usize] = seconds;
        }
        self
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        let mut seconds = [0; Timeout::ALL.len()];
        seconds.copy_from_slice(Timeout::DEFAULTS);
        Self(seconds)
    }
}

fn check_seconds(seconds: i64) -> Result<u32, String> {
    let max = Timeouts::SECONDS_MAX;
    u32::try_from(seconds)
        .ok()
        .filter(|seconds| (1..=max).contains(seconds))
        .ok_or_else(|| format!("{seconds} is no timeout: give 1 to {max} seconds (30 days)"))
}

impl fmt::Display for Timeout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Timeout {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL.iter().find(|timeout| timeout.name() == text).copied().ok_or_else(|| {
            let known: Vec<_> = Self::ALL.iter().map(|timeout| timeout.name()).collect();
            format!("there is no timeout {text:?}; there are: {}", known.join(", "))
        })
    }
}

/// `NAME=SECONDS`, as flags have it.
pub fn parse_assignment(text: &str) -> Result<(Timeout, u32), String> {
    let (name, seconds) =
        text.split_once('=').ok_or("write NAME=SECONDS, as in tcp_established=86400".to_owned())?;
    let timeout: Timeout = name.trim().parse()?;
    let seconds = seconds.trim();
    let number: i64 =
        seconds.parse().map_err(|_| format!("{timeout}: {seconds:?} is not a whole number of seconds"))?;
    Ok((timeout, check_seconds(number).map_err(|error| format!("{timeout}: {error}"))?))
}

impl<'de> Deserialize<'de> for Timeout {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

/// A number in order, so that the complaint is about its place in the file.
#[derive(Clone, Copy)]
struct Seconds(u32);

impl<'de> Deserialize<'de> for Seconds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        check_seconds(i64::deserialize(deserializer)?).map(Self).map_err(de::Error::custom)
    }
}

/// A table of names and seconds; what is not in it has its default.
impl<'de> Deserialize<'de> for Timeouts {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let changes = BTreeMap::<Timeout, Seconds>::deserialize(deserializer)?;
        let changes: Vec<_> = changes.into_iter().map(|(timeout, seconds)| (timeout, seconds.0)).collect();
        Ok(Self::default().with(&changes))
    }
}

impl Serialize for Timeouts {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(Timeout::ALL.iter().map(|timeout| (timeout.name(), self.0[*timeout as usize])))
    }
}

//! Who gets a copy of a flooded frame (behaviour L5): the ports of this node that may have it, and, if it came from one
//! of them, the other nodes. Each program walks the lists itself; who is asked about next, and what is said of them, is
//! here.

use crate::{parse::Headers, plan::Ingress, policy, reason::DropReason, tables::*};

/// The lists of a network, half walked.
#[derive(Clone, Copy, Debug)]
pub struct Round {
    network: Scoped,
    /// The receiver to be asked about next.
    cursor: u32,
    /// The port it came from, which gets no copy; 0: it came from another node.
    except: u32,
}

/// Receivers one frame is copied to at the most, of either list.
pub const RECEIVERS_MAX: u32 = 8192;

/// What there is to do for one receiver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next<'t> {
    /// A copy goes to this port's interface.
    Port(u32),
    /// A copy goes to the node of this number, by this way.
    Node(u32, &'t Underlay),
    /// It gets none; if it was refused, that was counted.
    Nobody,
    /// There are no more.
    End,
}

impl Round {
    /// From the first port of this node on.
    #[inline(always)]
    pub fn new(bank: u32, network: u32, ingress: &Ingress) -> Self {
        let except = if ingress.tunnelled() { 0 } else { ingress.zone };
        Self { network: Scoped::new(bank, network), cursor: FLOOD_LOCAL, except }
    }

    /// From the first of the other nodes on. False: there is none.
    #[inline(always)]
    pub fn remote<T: Tables>(&mut self, tables: &T) -> bool {
        self.cursor = FLOOD_REMOTE;
        tables.flood(&self.key()).is_some()
    }

    #[inline(always)]
    fn key(&self) -> FloodKey {
        FloodKey { network: self.network, cursor: self.cursor }
    }

    /// The next port. `headers`: what was read of the frame, with a later fragment's ports.
    #[inline(always)]
    pub fn port<'t, T: Tables>(&mut self, tables: &'t T, headers: &Headers) -> Next<'t> {
        let Some(receiver) = tables.flood(&self.key()) else {
            return Next::End;
        };
        self.cursor = receiver.next;
        if receiver.at == self.except {
            return Next::Nobody;
        }
        let key = BindingKey { ifindex: Scoped::new(self.network.bank(), receiver.at) };
        let Some(binding) = tables.binding(&key) else {
            return Next::Nobody;
        };
        if policy::floods_to(tables, self.network.bank(), binding, headers) {
            Next::Port(receiver.at)
        } else {
            tables.count_drop(DropReason::PolicyIngress, 0);
            Next::Nobody
        }
    }

    /// The next node. `bytes`: the frame's, with its outer headers.
    #[inline(always)]
    pub fn node<'t, T: Tables>(&mut self, tables: &'t T, bytes: u64) -> Next<'t> {
        let Some(receiver) = tables.flood(&self.key()) else {
            return Next::End;
        };
        self.cursor = receiver.next;
        match tables.underlay(receiver.at).filter(|way| way.flags & UNDERLAY_RESOLVED != 0) {
            Some(way) => Next::Node(receiver.at, way),
            None => {
                tables.count_drop(DropReason::UnderlayUnreachable, bytes);
                Next::Nobody
            }
        }
    }
}

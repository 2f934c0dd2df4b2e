//! What members answer, from the services' channel to the thread that asked.

use std::time::Instant;

use tokio::sync::mpsc::{Sender, error::TrySendError};

use super::Frame;
use crate::agent::services::{Asker, FrameSender, Kind, Refused, Service};

/// Hands over; it answers nothing itself.
pub struct Answers(pub Sender<Frame>);

impl Service for Answers {
    fn kinds(&self) -> &'static [Kind] {
        &[Kind::Health]
    }

    fn answer(
        &mut self,
        asker: &Asker<'_>,
        frame: &[u8],
        _: &FrameSender,
        _: Instant,
    ) -> Result<&'static str, Refused> {
        match self.0.try_send((asker.ifindex, frame.to_vec())) {
            Ok(()) => Ok("taken"),
            // It is repeated, as if it had been lost on the way.
            Err(TrySendError::Full(_)) => Err(Refused::TOO_MANY),
            Err(TrySendError::Closed(_)) => Err(Refused::NOT_SERVED),
        }
    }
}

//! Waiting for what is to come about.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Looks again and again until `found` finds something, and returns it; `what` is for the message.
pub fn for_some<T>(what: &str, timeout: Duration, mut found: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + timeout;
    loop {
        let outcome = found();
        if let Ok(Some(value)) = outcome {
            return Ok(value);
        }
        if Instant::now() > deadline {
            match outcome {
                Err(error) => return Err(error.context(format!("{what}: not in {timeout:?}"))),
                Ok(_) => bail!("{what}: not in {timeout:?}"),
            }
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Looks again and again until `is_so`; `what` is for the message.
pub fn until(what: &str, timeout: Duration, mut is_so: impl FnMut() -> Result<bool>) -> Result<()> {
    for_some(what, timeout, || Ok(is_so()?.then_some(())))
}

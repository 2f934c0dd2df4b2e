//! Emptying conntrack's table: one message of ctnetlink.

use std::{
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use anyhow::{Context as _, Result};

const NFNL_SUBSYS_CTNETLINK: u16 = 1;
const IPCTNL_MSG_CT_DELETE: u16 = 2;
/// A netlink header, then: family (any), version, resource.
const LEN: usize = 20;

/// Forgets every connection of the namespace the caller is in.
pub fn flush() -> Result<()> {
    ask().context("cannot empty conntrack's table (ctnetlink)")
}

fn ask() -> Result<()> {
    // SAFETY: a call without pointers.
    let socket = unsafe {
        libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::NETLINK_NETFILTER)
    };
    if socket < 0 {
        return Err(io::Error::last_os_error().into());
    }
    // SAFETY: the kernel just made this descriptor for us.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    let mut request = [0_u8; LEN];
    request[0..4].copy_from_slice(&(LEN as u32).to_ne_bytes());
    request[4..6].copy_from_slice(&(NFNL_SUBSYS_CTNETLINK << 8 | IPCTNL_MSG_CT_DELETE).to_ne_bytes());
    request[6..8].copy_from_slice(&((libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16).to_ne_bytes());
    // SAFETY: the buffer is as long as is said.
    let sent = unsafe { libc::send(socket.as_raw_fd(), request.as_ptr().cast(), LEN, 0) };
    if sent != LEN as isize {
        return Err(io::Error::last_os_error().into());
    }
    let mut answer = [0_u8; 256];
    // SAFETY: the buffer is as long as is said.
    let got = unsafe { libc::recv(socket.as_raw_fd(), answer.as_mut_ptr().cast(), answer.len(), 0) };
    if got < LEN as isize {
        return Err(io::Error::last_os_error().into());
    }
    // The acknowledgement: a header and an error number, 0 or negative.
    match i32::from_ne_bytes([answer[16], answer[17], answer[18], answer[19]]) {
        0 => Ok(()),
        error => Err(io::Error::from_raw_os_error(-error).into()),
    }
}

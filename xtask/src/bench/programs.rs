//! The tiny XDP programs around what is measured: a dozen instructions are easier to trust when they are
//! written out.

use super::bpf::{Hook, Insn, Map, insn};

/// Bytes at the start of a frame that are written every time: frames are recycled as they came back.
pub const WRITTEN: usize = 48;
/// Offset of an IPv4 frame's source address.
pub const SRC: i16 = 26;
/// Offset of its destination address.
pub const DST: i16 = 30;
/// Flows that differ in their source port before the next address is taken.
pub const PORTS: u32 = 1 << PORT_BITS;
/// The first source port.
pub const FIRST_PORT: u16 = 0x4000;
/// Bytes of a key of vrouter's flow table.
pub const KEY_LEN: usize = 44;
/// Bytes of a value of vrouter's flow table.
pub const VALUE_LEN: usize = 144;

/// What [`empty`] ends with.
pub const EMPTY_VERDICT: u32 = XDP_DROP as u32;

const PORT_BITS: i32 = 10;
const IDENTIFICATION: i16 = 18;
const SOURCE_PORT: i16 = 34;
const PAYLOAD: i16 = 42;
const TC_UNSPEC: i32 = -1;
const TC_SHOT: i32 = 2;
const XDP_DROP: i32 = 1;
const XDP_PASS: i32 = 2;
const XDP_TX: i32 = 3;
const MAP_LOOKUP: i32 = 1;
const TAIL_CALL: i32 = 12;
const REDIRECT: i32 = 23;
const EXIT: Insn = insn(0x95, 0, 0, 0, 0);

const fn mov_imm(dst: u8, immediate: i32) -> Insn {
    insn(0xb7, dst, 0, 0, immediate)
}

const fn mov(dst: u8, src: u8) -> Insn {
    insn(0xbf, dst, src, 0, 0)
}

const fn add_imm(dst: u8, immediate: i32) -> Insn {
    insn(0x07, dst, 0, 0, immediate)
}

const fn load16(dst: u8, src: u8, offset: i16) -> Insn {
    insn(0x69, dst, src, offset, 0)
}

const fn load32(dst: u8, src: u8, offset: i16) -> Insn {
    insn(0x61, dst, src, offset, 0)
}

const fn load64(dst: u8, src: u8, offset: i16) -> Insn {
    insn(0x79, dst, src, offset, 0)
}

const fn store16(dst: u8, offset: i16, src: u8) -> Insn {
    insn(0x6b, dst, src, offset, 0)
}

const fn store32(dst: u8, offset: i16, src: u8) -> Insn {
    insn(0x63, dst, src, offset, 0)
}

const fn store64(dst: u8, offset: i16, src: u8) -> Insn {
    insn(0x7b, dst, src, offset, 0)
}

const fn store32_imm(dst: u8, offset: i16, immediate: i32) -> Insn {
    insn(0x62, dst, 0, offset, immediate)
}

const fn call(helper: i32) -> Insn {
    insn(0x85, 0, 0, 0, helper)
}

/// The address of a map (`value`: of its only value).
fn map_address(dst: u8, map: &Map, value: bool) -> [Insn; 2] {
    [insn(0x18, dst, 1 + u8::from(value), 0, map.number()), insn(0, 0, 0, 0, 0)]
}

fn ends_with(verdict: i32) -> [Insn; 2] {
    [mov_imm(0, verdict), EXIT]
}

/// r7 = the frame; frames shorter than `len` are dropped.
fn open(len: i32) -> Vec<Insn> {
    open_at(Hook::Xdp, len)
}

fn open_at(hook: Hook, len: i32) -> Vec<Insn> {
    let (data, drop) = match hook {
        Hook::Xdp => (0, XDP_DROP),
        Hook::Tc => (76, TC_SHOT),
    };
    let mut program = vec![
        load32(7, 1, data),     // r7 = ctx->data
        load32(3, 1, data + 4), // r3 = ctx->data_end
        mov(4, 7),              // r4 = r7 + len
        add_imm(4, len),        //
        insn(0xbd, 4, 3, 2, 0), // if r4 <= r3 goto past the end
    ];
    program.extend(ends_with(drop));
    program
}

/// What is not IPv4 goes on to whom it is for: neighbours must stay resolved.
fn pass_unless_ipv4() -> Vec<Insn> {
    pass_unless_ipv4_at(Hook::Xdp)
}

fn pass_unless_ipv4_at(hook: Hook) -> Vec<Insn> {
    let pass = match hook {
        Hook::Xdp => XDP_PASS,
        Hook::Tc => TC_UNSPEC,
    };
    let mut program = vec![load16(1, 7, 12), insn(0x15, 1, 0, 2, 0x0008)];
    program.extend(ends_with(pass));
    program
}

fn write(bytes: &[u8]) -> impl Iterator<Item = Insn> {
    let words = bytes.chunks_exact(4).map(|word| i32::from_ne_bytes([word[0], word[1], word[2], word[3]]));
    (0_i16..).step_by(4).zip(words).map(|(at, word)| store32_imm(7, at, word))
}

fn redirect(ifindex: u32) -> [Insn; 4] {
    [mov_imm(1, ifindex as i32), mov_imm(2, 0), call(REDIRECT), EXIT]
}

/// Drops every IPv4 frame.
pub fn sink(hook: Hook) -> Vec<Insn> {
    let drop = match hook {
        Hook::Xdp => XDP_DROP,
        Hook::Tc => TC_SHOT,
    };
    [open_at(hook, 14), pass_unless_ipv4_at(hook), ends_with(drop).to_vec()].concat()
}

/// Sends every IPv4 frame back where it came from (the interface `ifindex`), as the answer to it: addresses and
/// ports change places. The sums over them stay.
pub fn reflector(hook: Hook, ifindex: u32) -> Vec<Insn> {
    let mut program = [open_at(hook, 38), pass_unless_ipv4_at(hook)].concat();
    for (one, other) in [(SRC, DST), (0, 6)] {
        program.extend([load32(1, 7, one), load32(2, 7, other), store32(7, one, 2), store32(7, other, 1)]);
    }
    for (one, other) in [(4, 10), (SOURCE_PORT, SOURCE_PORT + 2)] {
        program.extend([load16(1, 7, one), load16(2, 7, other), store16(7, one, 2), store16(7, other, 1)]);
    }
    match hook {
        Hook::Xdp => program.extend(ends_with(XDP_TX)),
        Hook::Tc => program.extend(redirect(ifindex)),
    }
    program
}

/// Writes `bytes` (a multiple of four) over the start of every frame, and redirects it to an interface.
pub fn rewrite(bytes: &[u8], ifindex: u32) -> Vec<Insn> {
    let mut program = open(i32::try_from(bytes.len()).unwrap_or(0));
    program.extend(write(bytes));
    program.extend(redirect(ifindex));
    program
}

/// Swaps the hardware addresses of every frame and sends it back.
pub fn send_back() -> Vec<Insn> {
    let mut program = open(14);
    for at in [0, 2, 4] {
        let (one, other) = (at, at + 6);
        program.extend([load16(1, 7, one), load16(2, 7, other), store16(7, one, 2), store16(7, other, 1)]);
    }
    program.extend(ends_with(XDP_TX));
    program
}

/// Looks up each frame's flow in `table` and goes by what it finds there: interface index and MACs. `zone`:
/// where vrouter's key has the interface. All that any data path with a flow table must do, and nothing else.
pub fn hash_redirect(table: &Map, zone: u32) -> Vec<Insn> {
    let mut program = [open(38), pass_unless_ipv4()].concat();
    // The key, on the stack: see `key`.
    for at in [-44, -28] {
        program.extend([store32_imm(10, at, 0), store32_imm(10, at + 4, 0)]);
        program.push(store32_imm(10, at + 8, 0xffff_0000_u32 as i32));
    }
    program.extend([load32(1, 7, SRC), store32(10, -32, 1), load32(1, 7, DST), store32(10, -16, 1)]);
    program.extend([store32_imm(10, -12, zone as i32), load32(1, 7, SOURCE_PORT), store32(10, -8, 1)]);
    program.extend([insn(0x71, 1, 7, 23, 0), store32(10, -4, 1)]);
    program.extend(map_address(1, table, false));
    program.extend([mov(2, 10), add_imm(2, -(KEY_LEN as i32)), call(MAP_LOOKUP)]);
    program.push(insn(0x55, 0, 0, 2, 0)); // if r0 != 0 goto past the end
    program.extend(ends_with(XDP_DROP));
    for at in [0, 4, 8] {
        program.extend([load32(1, 0, 4 + at), store32(7, at, 1)]);
    }
    program.extend([load32(1, 0, 0), mov_imm(2, 0), call(REDIRECT), EXIT]);
    program
}

/// The key [`hash_redirect`] makes of a frame, which is vrouter's.
pub fn key(src: [u8; 4], dst: [u8; 4], zone: u32, sport: u16, dport: u16) -> [u8; KEY_LEN] {
    const UDP: u8 = 17;
    let mut key = [0; KEY_LEN];
    for (at, address) in [(0, src), (16, dst)] {
        key[at + 10..at + 12].fill(0xff);
        key[at + 12..at + 16].copy_from_slice(&address);
    }
    key[32..36].copy_from_slice(&zone.to_ne_bytes());
    key[36..38].copy_from_slice(&sport.to_be_bytes());
    key[38..40].copy_from_slice(&dport.to_be_bytes());
    key[40] = UDP;
    key
}

/// Which flow comes next, and the range they are taken from in turns.
pub struct Turns {
    pub next: u64,
    pub end: u64,
    pub start: u64,
}

impl Turns {
    /// Bytes of it in its map.
    pub const LEN: usize = 24;

    /// As it lies there.
    pub fn bytes(&self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        for (part, word) in bytes.chunks_exact_mut(8).zip([self.next, self.end, self.start]) {
            part.copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }
}

/// Makes the frames of many flows, which [`Turns`] in `turns` counts: writes `frame` over each, and in it the
/// flow's source port and the low half of the address at `varied`; redirects it to an interface. What the
/// flow's numbers add to the checksums, identification and payload take away.
pub fn generate(frame: &[u8], varied: i16, turns: &Map, ifindex: u32) -> Vec<Insn> {
    let base =
        usize::try_from(varied).map_or(0, |at| i32::from(u16::from_be_bytes([frame[at + 2], frame[at + 3]])));
    let mut program = open(WRITTEN as i32);
    program.extend(map_address(6, turns, true));
    program.extend([
        load64(8, 6, 0),        // r8 = next
        mov(1, 8),              // r1 = r8 + 1
        add_imm(1, 1),          //
        load64(2, 6, 8),        // r2 = end
        insn(0xad, 1, 2, 1, 0), // if r1 < r2 goto store
        load64(1, 6, 16),       // r1 = start
        store64(6, 0, 1),       // next = r1
    ]);
    program.extend(write(&frame[..WRITTEN]));
    program.extend([
        mov(1, 8),                      // r1 = be16(base + (r8 >> PORT_BITS))
        insn(0x77, 1, 0, 0, PORT_BITS), //
        add_imm(1, base),               //
        insn(0xdc, 1, 0, 0, 16),        //
        store16(7, varied + 2, 1),      //
        insn(0xa7, 1, 0, 0, 0xffff),    // r1 ^= 0xffff
        store16(7, IDENTIFICATION, 1),  //
        store16(7, PAYLOAD, 1),         //
        mov(1, 8),                      // r1 = be16(FIRST_PORT + (r8 & (PORTS - 1)))
        insn(0x57, 1, 0, 0, PORTS as i32 - 1),
        add_imm(1, FIRST_PORT as i32), //
        insn(0xdc, 1, 0, 0, 16),       //
        store16(7, SOURCE_PORT, 1),    //
        insn(0xa7, 1, 0, 0, 0xffff),   //
        store16(7, PAYLOAD + 2, 1),    //
    ]);
    program.extend(redirect(ifindex));
    program
}

/// Writes a frame's header as it should be, and calls the only program of `programs` on it: one packet, again
/// and again.
pub fn wrapper(frame: &[u8], programs: &Map) -> Vec<Insn> {
    let mut program = vec![mov(6, 1)];
    program.extend(open(WRITTEN as i32));
    program.extend(write(&frame[..WRITTEN]));
    program.push(mov(1, 6));
    program.extend(map_address(2, programs, false));
    program.extend([mov_imm(3, 0), call(TAIL_CALL)]);
    program.extend(ends_with(0));
    program
}

/// Does nothing.
pub fn empty() -> Vec<Insn> {
    ends_with(XDP_DROP).to_vec()
}

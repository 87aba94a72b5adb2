//! Which frames of a host's interface come up to us: a filter the kernel runs on each.
//!
//! Read `Documentation/networking/filter.rst` (classic BPF) and bpf(4) of FreeBSD first, then
//! `run_filter` in `net/packet/af_packet.c`: it sees the frame from its Ethernet header on, without the
//! VLAN tag, which is beside it. The host's own traffic, all the other frames of a busy interface, is
//! dropped there for the price of a few instructions, before it is copied.

use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd as _};

use libc::sock_filter as Op;

/// Stations a program can be made for: five instructions each of the 4,096 the kernel takes.
pub const MAX_STATIONS: usize = 512;

/// Which frames are ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Take {
    /// Those for these stations, at most [`MAX_STATIONS`], and for groups; without a VLAN tag, or with
    /// one that only says a priority, which is taken off.
    Stations(Vec<[u8; 6]>),
    /// All but those for the interface's own station, which is the host's: for a port of a bridge. A
    /// VLAN tag stays where it is.
    AllBut([u8; 6]),
}

/// Octets passed up of an accepted frame: more than any has.
const WHOLE: u32 = 0x4_0000;
/// Loads of what is beside the frame (`SKF_AD_OFF` of `<linux/filter.h>`).
const VLAN_TAG: u32 = beside(libc::SKF_AD_VLAN_TAG);
const VLAN_TAG_PRESENT: u32 = beside(libc::SKF_AD_VLAN_TAG_PRESENT);

const fn beside(what: libc::c_int) -> u32 {
    (libc::SKF_AD_OFF + what).cast_unsigned()
}

/// Lets `socket` receive what `take` says and nothing else, from now on.
///
/// # Errors
/// `EINVAL` for more stations than a program can hold.
pub(crate) fn attach(socket: impl AsFd, take: &Take) -> io::Result<()> {
    let mut program = program(take);
    let len = u16::try_from(program.len()).map_err(io::Error::other)?;
    let whole = libc::sock_fprog { len, filter: program.as_mut_ptr() };
    let octets = libc::socklen_t::try_from(mem::size_of_val(&whole)).map_err(io::Error::other)?;
    // SAFETY: `whole` is a `sock_fprog` of that length whose `filter` points at `len` instructions; it and they
    // outlive the call, which copies them and writes nothing (`sk_attach_filter`).
    let done = unsafe {
        libc::setsockopt(
            socket.as_fd().as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            (&raw const whole).cast(),
            octets,
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The program: what it returns is how many octets of the frame are passed up.
fn program(take: &Take) -> Vec<Op> {
    match take {
        Take::Stations(stations) => {
            let mut program = Vec::new();
            // for a group?  go on behind the stations
            let behind = 5 * stations.len() + 1;
            program.push(load_octet(0));
            program.push(unless(libc::BPF_JSET, 1, 1));
            program.push(go_on(behind));
            for (at, station) in stations.iter().enumerate() {
                // for this station?  go on behind the others and the refusal
                program.extend(matches(station));
                program.push(go_on(behind - 5 * (at + 1)));
            }
            program.push(give(0));
            // untagged, or of no VLAN?
            program.push(load_word(VLAN_TAG_PRESENT));
            program.push(unless(libc::BPF_JEQ, 0, 1));
            program.push(give(WHOLE));
            program.push(load_word(VLAN_TAG));
            program.push(unless(libc::BPF_JSET, 0x0fff, 1));
            program.push(give(0));
            program.push(give(WHOLE));
            program
        }
        Take::AllBut(station) => {
            let mut program = matches(station).to_vec();
            program.extend([give(0), give(WHOLE)]);
            program
        }
    }
}

/// Goes to the next instruction if the frame is for `station`, else past that one.
fn matches([a, b, c, d, e, f]: &[u8; 6]) -> [Op; 4] {
    let (upper, lower) = (u16::from_be_bytes([*a, *b]), u32::from_be_bytes([*c, *d, *e, *f]));
    [
        load_word(2),
        unless(libc::BPF_JEQ, lower, 3),
        load_half(0),
        unless(libc::BPF_JEQ, upper.into(), 1),
    ]
}

fn op(code: u32, jt: u8, jf: u8, k: u32) -> Op {
    Op { code: u16::try_from(code).expect("codes are of 16 bits"), jt, jf, k }
}

fn load_word(at: u32) -> Op {
    op(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, at)
}

fn load_half(at: u32) -> Op {
    op(libc::BPF_LD | libc::BPF_H | libc::BPF_ABS, 0, 0, at)
}

fn load_octet(at: u32) -> Op {
    op(libc::BPF_LD | libc::BPF_B | libc::BPF_ABS, 0, 0, at)
}

/// Skips `past` instructions unless what was loaded compares so with `k`.
fn unless(how: u32, k: u32, past: u8) -> Op {
    op(libc::BPF_JMP | how | libc::BPF_K, 0, past, k)
}

/// Skips `past` instructions.
fn go_on(past: usize) -> Op {
    let past = u32::try_from(past).expect("a program is short");
    op(libc::BPF_JMP | libc::BPF_JA, 0, 0, past)
}

fn give(octets: u32) -> Op {
    op(libc::BPF_RET | libc::BPF_K, 0, 0, octets)
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: [u8; 6] = [2, 0, 0, 0, 0, 0xa];
    const B: [u8; 6] = [2, 0, 0, 0, 0, 0xb];

    /// What the kernel's interpreter would return (bpf(4)), for the instructions used here.
    fn run(program: &[Op], dst: [u8; 6], tag: Option<u16>) -> u32 {
        let mut frame = [0; 60];
        frame[..6].copy_from_slice(&dst);
        let (mut at, mut loaded) = (0, 0);
        for _ in 0..10_000 {
            let Op { code, jt, jf, k } = program[at];
            let code = u32::from(code);
            at += 1;
            let place = k as usize;
            let holds = match code & 0xf0 {
                libc::BPF_JSET => loaded & k != 0,
                _ => loaded == k,
            };
            match code & 0x07 {
                libc::BPF_RET => return k,
                libc::BPF_JMP if code & 0xf0 == libc::BPF_JA => at += place,
                libc::BPF_JMP => at += usize::from(if holds { jt } else { jf }),
                _ if k == VLAN_TAG_PRESENT => loaded = tag.is_some().into(),
                _ if k == VLAN_TAG => loaded = tag.unwrap_or(0).into(),
                _ => {
                    let octets = match code & 0x18 {
                        libc::BPF_W => 4,
                        libc::BPF_H => 2,
                        _ => 1,
                    };
                    let octets = &frame[place..place + octets];
                    loaded = octets.iter().fold(0, |word, octet| word << 8 | u32::from(*octet));
                }
            }
        }
        panic!("never returns");
    }

    #[test]
    fn stations_and_groups_pass_and_nobody_else() {
        for count in [1, 2, MAX_STATIONS] {
            let numbered = |n: usize| {
                let [.., a, b] = n.to_be_bytes();
                [2, 0, 0, 1, a, b]
            };
            let mut stations: Vec<_> = (1..count).map(numbered).collect();
            stations.push(A);
            let program = program(&Take::Stations(stations.clone()));
            assert!(program.len() <= 4096);
            for station in stations {
                assert_eq!(run(&program, station, None), WHOLE, "{station:?} of {count}");
            }
            assert_eq!(run(&program, [0xff; 6], None), WHOLE);
            assert_eq!(run(&program, [0x33, 0x33, 0xff, 0, 0, 1], None), WHOLE);
            assert_eq!(run(&program, B, None), 0);
            // Half of an address is not one.
            assert_eq!(run(&program, [4, 0, 0, 0, 0, 0xa], None), 0);
            assert_eq!(run(&program, [2, 0, 0, 0, 1, 0xa], None), 0);
        }
    }

    #[test]
    fn frames_of_another_vlan_are_not_ours_and_a_priority_is_no_vlan() {
        let program = program(&Take::Stations(vec![A]));
        assert_eq!(run(&program, A, Some(0x6000)), WHOLE);
        assert_eq!(run(&program, A, Some(10)), 0);
        assert_eq!(run(&program, [0xff; 6], Some(0x600a)), 0);
    }

    #[test]
    fn a_bridge_gets_all_but_what_is_the_hosts() {
        let program = program(&Take::AllBut(A));
        assert_eq!(run(&program, A, None), 0);
        for other in [B, [0xff; 6], [1, 0x80, 0xc2, 0, 0, 0]] {
            assert_eq!(run(&program, other, Some(10)), WHOLE);
        }
    }
}

//! TAPs on kernels that know less than this one, played by a filter on ioctl(2).
//!
//! The filter stays with its thread and all that come of it, so each case attaches in a process of
//! its own, in a network of its own, and tells by its status.

use std::ffi::OsStr;
use std::net::UdpSocket;
use std::process::{Command, ExitCode};

use netns::{EndpointConfig, Kind, Netns, Opened, SpawnConfig, attach, spawn_in_new_namespaces};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, apply_filter,
};

use crate::Case;
use crate::lab::{config, eventually, receive};

pub(crate) const CASES: &[Case] = &[
    ("without_virtio_headers_a_tap_is_plain", || under("without-headers")),
    ("without_offloads_a_tap_is_plain", || under("without-offloads")),
    ("without_udp_segmentation_tcp_has_its_own", || under("without-udp-segmentation")),
];

/// Variable that makes this program attach under the kernel it names.
pub(crate) const KERNEL: &str = "PONTOON_NETNS_TEST_KERNEL";

fn under(kernel: &str) {
    let path = std::env::var_os("PATH").expect("a path");
    let spawn = SpawnConfig {
        argv: vec![std::env::current_exe().expect("ourselves").into()],
        env: Some(vec![(KERNEL.into(), kernel.into()), ("PATH".into(), path)]),
        new_net: true,
        ..SpawnConfig::default()
    };
    let mut running = spawn_in_new_namespaces(spawn).expect("spawn").release().expect("release");
    assert!(running.wait().expect("wait").success(), "{kernel}");
}

/// The child's part.
pub(crate) fn attach_under(kernel: &OsStr) -> ExitCode {
    match kernel.to_str() {
        Some("without-headers") => {
            refuse(libc::TUNSETVNETHDRSZ, &[]);
            is_plain();
        }
        Some("without-offloads") => {
            refuse(libc::TUNSETOFFLOAD, &[]);
            is_plain();
        }
        // Before Linux 6.2: the whole word is refused for one of these.
        Some("without-udp-segmentation") => {
            refuse(libc::TUNSETOFFLOAD, &[libc::TUN_F_USO4, libc::TUN_F_USO6]);
            offloads_tcp_only();
        }
        _ => return ExitCode::FAILURE,
    }
    ExitCode::SUCCESS
}

/// From here on `request` is invalid; with `bits`, where its argument has any of them.
fn refuse(request: libc::Ioctl, bits: &[libc::c_uint]) {
    let argument = |number, operator, value| {
        SeccompCondition::new(number, SeccompCmpArgLen::Dword, operator, value).expect("of six")
    };
    let request = || argument(1, SeccompCmpOp::Eq, request);
    let rule = |conditions| SeccompRule::new(conditions).expect("conditions");
    let mut rules: Vec<_> = bits
        .iter()
        .map(|bit| u64::from(*bit))
        .map(|bit| rule(vec![request(), argument(2, SeccompCmpOp::MaskedEq(bit), bit)]))
        .collect();
    if rules.is_empty() {
        rules.push(rule(vec![request()]));
    }
    let filter = SeccompFilter::new(
        [(libc::SYS_ioctl, rules)].into(),
        SeccompAction::Allow,
        SeccompAction::Errno(libc::EINVAL.cast_unsigned()),
        std::env::consts::ARCH.try_into().expect("an architecture of seccomp's"),
    );
    let program: BpfProgram = filter.and_then(TryInto::try_into).expect("a filter");
    apply_filter(&program).expect("prctl");
}

/// A TAP asked for with offloads and two queues has neither, and carries bare frames.
fn is_plain() {
    let wanted = EndpointConfig { queues: 2, ..config("eth0", 2, Kind::Tap) };
    let endpoint = attach(&Netns::current().expect("ours"), &wanted).expect("attach");
    assert_eq!((endpoint.opened, endpoint.queues.len()), (Opened::TapPlain, 1));
    let interfaces = netns::interfaces().expect("rtnetlink answers");
    let found = interfaces.iter().find(|found| found.name == "eth0").expect("attached");
    assert_eq!((found.ifindex, found.up), (endpoint.ifindex, true));
    assert_eq!(interfaces.len(), 2, "the first attempt is gone: {interfaces:?}");
    // Whom nobody knows is asked for by ARP: a frame to all stations, nothing before it.
    let socket = UdpSocket::bind("192.0.2.2:0").expect("our address");
    socket.send_to(b"anybody", "192.0.2.9:9").expect("send");
    let mut frame = [0; 2048];
    eventually("the question is read", || {
        receive(&endpoint, &endpoint.queues[0], &mut frame).is_some() && frame[12..14] == [8, 6]
    });
    assert_eq!(frame[..12], [[0xff; 6], wanted.mac].concat());
}

fn offloads_tcp_only() {
    let endpoint =
        attach(&Netns::current().expect("ours"), &config("eth0", 2, Kind::Tap)).expect("attach");
    assert_eq!(endpoint.opened, Opened::TapOffload);
    let shown = Command::new("ethtool").args(["-k", "eth0"]).output().expect("ethtool");
    let shown = String::from_utf8_lossy(&shown.stdout);
    for line in ["tcp-segmentation-offload: on", "tx-udp-segmentation: off"] {
        assert!(shown.contains(line), "{line}: {shown}");
    }
}

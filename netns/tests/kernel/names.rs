//! Named namespaces beside `ip netns`, in both directions.

use std::fs;
use std::path::Path;
use std::process::Command;

use netns::{Error, Target, named};

use crate::Case;
use crate::lab::eventually;

pub(crate) const CASES: &[Case] = &[
    ("ip_uses_what_we_named", ip_uses_what_we_named),
    ("we_use_what_ip_named", we_use_what_ip_named),
    ("a_name_is_taken_once", a_name_is_taken_once),
    ("left_overs_and_links_are_removed", left_overs_and_links_are_removed),
    ("names_spread_to_other_mount_namespaces", names_spread_to_other_mount_namespaces),
];

fn ip(line: &str) -> String {
    let output = Command::new("ip").args(line.split_whitespace()).output().expect("iproute2");
    let out = String::from_utf8_lossy(&output.stdout).into_owned();
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "ip {line}: {err}");
    out
}

fn names() -> Vec<String> {
    named::list().expect("list").into_iter().map(|named| named.name).collect()
}

fn ip_uses_what_we_named() {
    named::create("ours").expect("create");
    assert_eq!(names(), ["ours"]);
    assert!(ip("netns list").starts_with("ours"));
    let shown = ip("netns exec ours ip link show dev lo");
    assert!(shown.contains("LOOPBACK,UP"), "{shown}");
    let inode = named::list().expect("list")[0].inode.expect("mounted");
    let Ok(target) = "ours".parse::<Target>();
    assert_eq!(target.open().expect("open").inode(), inode);
    let read = ip("netns exec ours readlink /proc/self/ns/net");
    assert_eq!(read.trim(), format!("net:[{inode}]"));
    ip("netns delete ours");
    assert!(names().is_empty());
    let err = target.open().expect_err("deleted");
    assert!(err.to_string().starts_with("no network namespace ours: /run/netns/ours"), "{err}");
}

fn we_use_what_ip_named() {
    ip("netns add theirs");
    ip("netns exec theirs ip link add dummy0 type veth peer name dummy1");
    assert_eq!(names(), ["theirs"]);
    let view = netns::look(&Target::Name("theirs".to_owned()).open().expect("open")).expect("look");
    assert!(view.interfaces.iter().any(|found| found.name == "dummy0"), "{view:?}");
    named::remove("theirs").expect("remove");
    assert_eq!(ip("netns list"), "");
    assert!(!Path::new("/run/netns/theirs").exists());
}

fn a_name_is_taken_once() {
    named::create("once").expect("create");
    let err = named::create("once").expect_err("taken");
    assert!(matches!(&err, Error::NamespaceExists { name } if name == "once"), "{err:#}");
    assert!(err.to_string().contains("`pontoon ns rm once`"), "{err}");
    let again = Command::new("ip").args(["netns", "add", "once"]).output().expect("iproute2");
    assert!(!again.status.success());
    named::remove("once").expect("remove");
    let err = named::remove("once").expect_err("removed");
    assert!(matches!(err, Error::NoSuchNamespace { .. }), "{err:#}");
    for bad in ["", ".", "..", "a/b", &"x".repeat(256)] {
        let err = named::create(bad).expect_err("no name");
        assert!(matches!(err, Error::BadNamespaceName { .. }), "{err:#}");
        assert!(matches!(named::remove(bad), Err(Error::BadNamespaceName { .. })));
    }
    named::create(&"x".repeat(255)).expect("just fits");
    named::remove(&"x".repeat(255)).expect("remove");
}

fn left_overs_and_links_are_removed() {
    named::create("first").expect("create, for the directory");
    fs::write("/run/netns/leftover", "").expect("write");
    std::os::unix::fs::symlink("/proc/self/ns/net", "/run/netns/link").expect("link");
    let found = named::list().expect("list");
    let inode = |name| found.iter().find(|named| named.name == name).expect("listed").inode;
    assert_eq!(inode("leftover"), None);
    assert_eq!(inode("link"), Some(netns::Netns::current().expect("/proc").inode()));
    let err = Target::Name("leftover".to_owned()).open().expect_err("a plain file");
    assert!(matches!(err, Error::NotANamespace { .. }), "{err:#}");
    for name in ["leftover", "link", "first"] {
        named::remove(name).expect(name);
    }
    assert!(names().is_empty());
}

fn names_spread_to_other_mount_namespaces() {
    named::create("early").expect("create");
    let mut other = Command::new("unshare")
        .args(["--mount", "--propagation", "unchanged", "cat"])
        .stdin(std::process::Stdio::piped())
        .spawn()
        .expect("util-linux");
    let seen = |name: &str| {
        let mounts = fs::read_to_string(format!("/proc/{}/mounts", other.id())).expect("alive");
        mounts.contains(&format!("/run/netns/{name} "))
    };
    let ours = fs::read_link("/proc/self/ns/mnt").expect("/proc");
    eventually("unshare has unshared", || {
        fs::read_link(format!("/proc/{}/ns/mnt", other.id())).is_ok_and(|theirs| theirs != ours)
    });
    named::create("late").expect("create");
    assert!(seen("early") && seen("late"));
    named::remove("late").expect("remove");
    assert!(!seen("late"));
    named::remove("early").expect("remove");
    drop(other.stdin.take());
    other.wait().expect("it ends with its input");
}

//! The words of `first-bridge`: what the tutorial types at each step, and what there is to learn.

use super::report::Step;

pub(super) const PREFACE: &str = "\
first-bridge: the tutorial \"How container networks work\" (容器网络原理), by pontoon instead of the
kernel's bridge and iptables. All of it happens in namespaces that go when it ends.

   netns0  172.18.0.10 ──┐                       host                      world
                         br0  172.18.0.1 ══ 10.0.2.15 eth0 ──── eth0 10.0.2.2 ── 223.5.5.5
   netns1  172.18.0.20 ──┘   (pontoon)        the host's own       its router    the Internet";

pub(super) const GROUND: Step = Step {
    title: "The ground: a host, its router, the Internet",
    tutorial: "(a virtual machine with eth0 10.0.2.15, which VirtualBox routes to the Internet)",
    why: "A process sees the network of the namespace it is in and of no other, so a namespace makes a \
          whole machine here: this lab's \"host\" is one, and its Internet another, joined by a veth \
          pair. What you type on this host cannot reach your real one.",
};

pub(super) const NAMESPACES: Step = Step {
    title: "Network namespaces (network namespace)",
    tutorial: "ip netns add netns0; ip netns exec netns0 ip link",
    why: "A new namespace has a loopback of its own and nothing else: no card, no route, no rule. Its \
          name is only a file below /run/netns that keeps it alive, the same one `ip netns` makes. (The \
          tutorial's lo is DOWN until `ip link set lo up`; `pontoon ns add` has done that already.)",
};

pub(super) const CONTAINERS: Step = Step {
    title: "Container to container (容器连通容器)",
    tutorial: "\
ip link add veth0 type veth peer name ceth0; ip link set ceth0 netns netns0   (twice)
ip addr add 172.18.0.10/16 dev ceth0; ip link set ceth0 up   (in each)
ip link add br0 type bridge; ip link set veth0 master br0; ip link set veth1 master br0
ping -c 2 172.18.0.20; ip neigh",
    why: "The first ping is really an ARP request, \"who has 172.18.0.20?\", to everybody. The switch \
          notes behind which port each sender sits (its FDB: stations) and the containers note whose \
          address is which station (their neighbours: IP to MAC). Two tables, two owners: a bridge never \
          looks at an IP address, and that is why the TTL is still 64.",
};

pub(super) const NO_GATEWAY: Step = Step {
    title: "Without a gateway: two ways not to arrive (容器连通 root namespace)",
    tutorial: "ping 10.0.2.15   (in netns0)\nping -c 2 172.18.0.10   (on the host)",
    why: "Both fail, at different places. The container has no route, so its own kernel refuses before \
          a frame is made: tcpdump would show nothing at all. The host has a default route, so the \
          packet leaves, by the wrong door; a router that knows no such network sends it back in words. \
          Look at who speaks: your kernel (\"connect: …\"), or somebody else (\"From 10.0.2.2 …\").",
};

pub(super) const GATEWAY: Step = Step {
    title: "A gateway on the switch (给 br0 分配 IP)",
    tutorial: "\
ip addr add 172.18.0.1/16 dev br0; ip route
ip route add default via 172.18.0.1   (in each container)
ping -c 2 172.18.0.10; ping -c 2 10.0.2.15",
    why: "An address on the switch does two things at once: it gives the containers somebody to send \
          everything else to, and, by its prefix, it gives the host the route 172.18.0.0/16. Each \
          direction needs its own: with only one of them requests arrive and answers do not, which looks \
          exactly like a lost request.",
};

pub(super) const UPLINK: Step = Step {
    title: "Container to the Internet (容器连通外界)",
    tutorial: "\
ping 223.5.5.5   (hangs)
iptables -t nat -A POSTROUTING -s 172.18.0.0/16 ! -o br0 -j MASQUERADE
ping -c 2 223.5.5.5",
    why: "In the tutorial the request does go out, from 172.18.0.10, and nobody out there knows a way \
          back: silence. Pontoon does not send what cannot be answered and says so at once. With the \
          uplink the world sees the host's address, as MASQUERADE would have it; pontoon needs no rule \
          and no privilege for that, since it sends from the host's own sockets. One hop less in the TTL \
          is the gateway: now the packet was routed.",
};

pub(super) const PUBLISH: Step = Step {
    title: "A published port (容器端口发布)",
    tutorial: "\
python3 -m http.server --bind 172.18.0.10 5000; curl 172.18.0.10:5000; curl 10.0.2.15:5000
iptables -t nat -A PREROUTING -d 10.0.2.15 -p tcp --dport 5000 -j DNAT --to-destination 172.18.0.10:5000
iptables -t nat -A OUTPUT     -d 10.0.2.15 -p tcp --dport 5000 -j DNAT --to-destination 172.18.0.10:5000
modprobe br_netfilter; curl 10.0.2.15:5000",
    why: "Before, nobody listens on the host's port, and its kernel says so. The tutorial needs a rule \
          for packets that come in, another for those that start here (they never pass PREROUTING), and \
          a module for the other container. Pontoon listens on \
          the host and calls the container in the client's own name, so the server's log shows the \
          client. Two have no name the container could answer to: 127.0.0.1, which is put through inside \
          the namespace and calls as the container itself, and its own neighbour, which calls as the host (hairpin NAT, RFC 4787 REQ-9): an \
          answer straight to the neighbour would come from an address it never called.",
};

pub(super) const TABLES: Step = Step {
    title: "What the switch knows",
    tutorial: "brctl showmacs br0; ip neigh; conntrack -L; iptables -t nat -nvL",
    why: "FDB, neighbours, flows: which port, which station, which translation. A packet that does not \
          arrive is missing from one of them, and the counts say for what reason: every frame that came \
          in was forwarded, taken by the gateway, or dropped with a name.",
};

pub(super) const DOWN: Step = Step {
    title: "Taking it down",
    tutorial: "(ip netns del; ip link del; and each iptables rule once more with -D)",
    why: "Interfaces are held by nothing but the daemon's descriptors, so they cannot outlive it, not \
          even when it is killed. On the host there never was a rule to forget.",
};

/// How to look around while the lab is up.
pub(super) fn keep(pid: u32) -> String {
    format!(
        "
The lab is up. In another terminal, as the same user:
  PONTOON_SOCKET=/proc/{pid}/root/run/pontoon/pontoon.sock pontoon ps
  pontoon ns exec pid:{pid} -- ip address                              on its host
  pontoon ns exec /proc/{pid}/root/run/netns/netns0 -- ip address      in netns0
Press Enter to take it down."
    )
}

//! Where the wires end: namespaces, TAP and veth endpoints, links, addresses and routes.
//!
//! All that pontoon asks of the kernel's network configuration is asked here, by netlink and system
//! calls; no program is executed for it. This crate holds the workspace's only `unsafe`.
//!
//! A program that uses it calls [`enter_child_if_asked`] first thing in `main`: user namespaces can
//! only be entered by a process of one thread, so the program is re-executed to enter them.
//!
//! Each arrow below is a `use`, and no way leads back:
//!
//! ```text
//!   attach ─▶ child ─▶ job ─▶ inside ─┬─▶ tap | veth ─▶ packet
//!          (or a thread)  (as data)   └─▶ link ─▶ table ─▶ netlink
//!   interface ─▶ packet ─▶ filter       the host's own;  watch: what becomes of them
//!   unshare ─▶ child ─▶ command ────────▶ link     pontoon run and exec;  signals while they run
//!   target ─▶ named ─▶ namespace ───────▶ link     who is meant, and the descriptor that is it
//!
//!   endpoint: what is wanted, and what it then is     wire: to the child and back
//!   ifname, sockopt, datagram, ioctl: system calls made safe    error: in whose words
//! ```

mod attach;
mod child;
mod command;
pub mod datagram;
mod endpoint;
mod error;
mod filter;
mod ifname;
mod inside;
mod interface;
mod ioctl;
mod job;
pub mod link;
mod maker;
pub mod named;
mod namespace;
mod netlink;
mod packet;
pub mod priority;
mod signals;
pub mod sockopt;
pub mod table;
mod tap;
mod target;
mod unshare;
mod veth;
mod watch;
mod wire;

pub use attach::{add_addresses, add_routes, attach, detach, look, set_gateways, sockets_in};
pub use child::enter_child_if_asked;
pub use endpoint::{Endpoint, EndpointConfig, Kind, Opened};
pub use error::Error;
pub use filter::{MAX_STATIONS, Take};
pub use interface::{Facts, Interface as HostInterface, candidates, look_at, open_interface};
pub use job::SocketKind;
pub use maker::SocketMaker;
pub use named::NamedNetns;
pub use namespace::Netns;
pub use packet::{packet_sockets, recv_frame, send_frame};
pub use table::{
    Interface, Neighbour, Route, View, host_addresses, interfaces, neighbours, routes,
};
pub use target::Target;
pub use unshare::{
    ExecConfig, Held, Mounts, NewUser, Running, SpawnConfig, exec_in, exit_code,
    spawn_in_new_namespaces, user_namespaces_blocked,
};
pub use watch::{LinkEvent, LinkWatch};

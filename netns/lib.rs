//! Where the wires end: namespaces, TAP and veth endpoints, links, addresses and routes.
//!
//! All that pontoon asks of the kernel's network configuration is asked here, by netlink and system
//! calls; no program is executed for it. This crate holds the workspace's only `unsafe`.
//!
//! A program that uses it calls [`enter_child_if_asked`] first thing in `main`: user namespaces can
//! only be entered by a process of one thread, so the program is re-executed to enter them.
//!
//! ```text
//!   target ─▶ namespace ─▶ job ─▶ endpoint ─▶ tap | veth ─▶ packet
//!  (who?)      (a descriptor)│        └─▶ link ─▶ netlink ◀─ table (what is there)
//!                            └─ child ─▶ wire      another user namespace: by a process of one thread
//!   unshare ─▶ child ─▶ command                    pontoon run and exec;  signals while they run
//!   named: as ip netns       sockopt, ioctl: system calls made safe       error: in whose words
//! ```

mod child;
mod command;
mod endpoint;
mod error;
mod ifname;
mod ioctl;
mod job;
pub mod link;
pub mod named;
mod namespace;
mod netlink;
mod packet;
mod signals;
pub mod sockopt;
pub mod table;
mod tap;
mod target;
mod unshare;
mod veth;
mod wire;

pub use child::enter_child_if_asked;
pub use endpoint::{
    Endpoint, EndpointConfig, Kind, Opened, SocketKind, View, add_addresses, add_routes, attach,
    detach, look, set_gateways, sockets_in,
};
pub use error::Error;
pub use named::NamedNetns;
pub use namespace::Netns;
pub use packet::{packet_sockets, recv_frame, send_frame};
pub use table::{Interface, Neighbour, Route, host_addresses, interfaces, neighbours, routes};
pub use target::Target;
pub use unshare::{
    ExecConfig, Held, Mounts, NewUser, Running, SpawnConfig, exec_in, exit_code,
    spawn_in_new_namespaces, user_namespaces_blocked,
};

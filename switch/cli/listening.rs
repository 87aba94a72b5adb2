//! `run -P`: publish each port the command begins to listen on.
//!
//! A namespace tells nobody that something listens in it, so its `/proc/PID/net/tcp` is looked at
//! every second, as pasta does.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use ::daemon::client::Client;
use ::daemon::owner::listening_ports;

use crate::failure::note;
use crate::port;

/// How often the command's sockets are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The thread that looks; dropped, it ends.
#[derive(Debug)]
pub(crate) struct Listening {
    until: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Listening {
    /// Publishes what process `pid` listens on as ports of `endpoint`.
    pub(crate) fn publish(socket: &Path, endpoint: &str, pid: u32) -> io::Result<Self> {
        let client = Client::new(socket)?;
        let endpoint = endpoint.to_owned();
        let (until, ended) = mpsc::channel();
        let work = move || {
            let mut seen = BTreeSet::new();
            while ended.recv_timeout(LOOK_EVERY) == Err(RecvTimeoutError::Timeout) {
                for inside in ports(pid) {
                    // Tried once: a refusal would be the same every second.
                    if seen.insert(inside) {
                        match client.publish(&endpoint, vec![inside.to_string()]) {
                            Ok(ports) => note(format_args!("published {}", port::summary(&ports))),
                            Err(error) => note(format_args!("publish {inside}: {error}")),
                        }
                    }
                }
            }
        };
        let thread = thread::Builder::new().name("listening".to_owned()).spawn(work)?;
        Ok(Self { until: Some(until), thread: Some(thread) })
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        drop(self.until.take());
        if let Some(thread) = self.thread.take() {
            // Its panic was printed when it happened.
            let _ = thread.join();
        }
    }
}

/// The TCP ports that listen in the namespace of process `pid`; none once it has ended.
fn ports(pid: u32) -> BTreeSet<u16> {
    let read = |table: &str| std::fs::read_to_string(format!("/proc/{pid}/net/{table}"));
    let tables = ["tcp", "tcp6"].map(|table| read(table).unwrap_or_default());
    tables.iter().flat_map(|table| listening_ports(table)).collect()
}

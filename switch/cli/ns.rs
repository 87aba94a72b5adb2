//! `pontoon ns`: named namespaces, interchangeable with those of `ip netns`.

use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use netns::{Mounts, Target, named};
use serde::Serialize;

use crate::attach::each;
use crate::exec;
use crate::failure::Outcome;
use crate::output::{Listing, table};

/// Create, list, remove and enter named namespaces
///
/// The same ones as `ip netns` has: files below /run/netns. Needs root; `pontoon run` makes nameless
/// ones without.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pontoon ns add blue
  pontoon attach blue --network bridge
  pontoon ns exec blue -- ip address
  pontoon ns rm blue")]
pub(crate) struct Ns {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Create a namespace, with its loopback up
    #[command(after_help = "Example:\n  pontoon ns add blue")]
    Add {
        /// Its name
        name: String,
    },
    /// List named namespaces
    #[command(visible_alias = "list", after_help = "Example:\n  pontoon ns ls --format json")]
    Ls(Ls),
    /// Remove names; a namespace goes once nobody uses it
    #[command(visible_alias = "del", after_help = "Example:\n  pontoon ns rm blue")]
    Rm {
        /// Their names
        #[arg(required = true, value_name = "NAME")]
        names: Vec<String>,
    },
    /// Run a command in a named namespace, as ip netns exec does
    #[command(after_help = "\
Files of /etc/netns/NAME stand over those of the same names in /etc, and /sys shows the namespace.

Example:
  pontoon ns exec blue -- ip route")]
    Exec {
        /// Its name, or any other target: pid:42, a path
        name: String,
        /// The command and its arguments
        #[arg(required = true, trailing_var_arg = true, value_name = "CMD")]
        command: Vec<OsString>,
    },
}

#[derive(Debug, Args)]
struct Ls {
    #[command(flatten)]
    listing: Listing,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Row {
    name: String,
    path: PathBuf,
    netns: Option<String>,
}

impl Ns {
    pub(crate) fn go(self) -> Outcome {
        match self.command {
            Command::Add { name } => {
                named::create(&name)?;
                Ok(ExitCode::SUCCESS)
            }
            Command::Rm { names } => each(&names, named::remove),
            Command::Ls(ls) => {
                let rows: Vec<Row> = named::list()?.into_iter().map(row).collect();
                ls.listing.print(&rows, text)
            }
            Command::Exec { name, command } => {
                let Ok(target) = name.parse::<Target>();
                let bind_mounts = match &target {
                    Target::Name(name) => files_of(name),
                    _ => Vec::new(),
                };
                exec::run(&target, command, Mounts::Private { bind_mounts, sysfs: true })
            }
        }
    }
}

/// The files of `/etc/netns/NAME` and what they stand over, `ip-netns(8)`.
fn files_of(name: &str) -> Vec<(PathBuf, PathBuf)> {
    let Ok(files) = fs::read_dir(format!("/etc/netns/{name}")) else { return Vec::new() };
    let pair = |file: fs::DirEntry| (file.path(), PathBuf::from("/etc").join(file.file_name()));
    files.flatten().map(pair).filter(|(_, over)| over.exists()).collect()
}

fn row(found: named::NamedNetns) -> Row {
    let netns = found.inode.map(|inode| format!("net:[{inode}]"));
    Row { name: found.name, path: found.path, netns }
}

fn text(rows: &[Row]) -> String {
    let cells = |row: &Row| {
        vec![
            row.name.clone(),
            row.netns.clone().unwrap_or_default(),
            row.path.display().to_string(),
        ]
    };
    table(&["NAME", "NAMESPACE", "PATH"], rows.iter().map(cells))
}

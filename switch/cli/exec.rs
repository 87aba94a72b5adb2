//! `pontoon exec`.

use std::ffi::OsString;
use std::process::ExitCode;

use ::daemon::api::Endpoint;
use clap::Args;
use netns::{ExecConfig, Mounts, Target};

use crate::failure::{Failure, Outcome, of_command};
use crate::output::daemon;

/// Run a command in an endpoint's namespace
///
/// Works as nsenter does: in the network namespace, and in the user namespace that owns it. For
/// endpoints of `pontoon run` the command also sees their /etc/resolv.conf and /etc/hosts. Ends with
/// the command's status; 125 if pontoon failed, 126 if the command cannot be executed, 127 if it is
/// not found, 128 and the number of the signal that ended it.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pontoon exec web -- ip address
  pontoon exec 18722c02cb87 -- cat /etc/resolv.conf")]
pub(crate) struct Exec {
    /// Name or id of the endpoint
    #[arg(value_name = "ENDPOINT")]
    name: String,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "CMD")]
    command: Vec<OsString>,
}

impl Exec {
    pub(crate) fn go(self) -> Outcome {
        let endpoint = daemon()
            .and_then(|daemon| daemon.endpoint(&self.name).map_err(Failure::from))
            .map_err(Failure::of_run)?;
        in_namespace_of(&endpoint, self.command)
    }
}

/// Runs a command where `endpoint` is, and ends with its status.
pub(crate) fn in_namespace_of(endpoint: &Endpoint, argv: Vec<OsString>) -> Outcome {
    let Ok(target) = endpoint.target.parse::<Target>();
    let mounts = if endpoint.own_mounts { Mounts::Joined } else { Mounts::Ours };
    // The target may stand for another by now; a number nobody can read is that of none.
    let number = endpoint.netns.strip_prefix("net:[").and_then(|rest| rest.strip_suffix(']'));
    let netns = Some(number.and_then(|number| number.parse().ok()).unwrap_or_default());
    finish(&target, ExecConfig { argv, mounts, netns, ..ExecConfig::default() })
}

/// Runs a command in a namespace, and ends with its status.
pub(crate) fn run(target: &Target, argv: Vec<OsString>, mounts: Mounts) -> Outcome {
    finish(target, ExecConfig { argv, mounts, ..ExecConfig::default() })
}

fn finish(target: &Target, config: ExecConfig) -> Outcome {
    let status = netns::exec_in(target, config).map_err(of_command)?;
    Ok(ExitCode::from(netns::exit_code(status)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_runs_where_the_endpoint_is_or_nowhere() {
        // As if the target's number were another process's by now.
        for netns in ["net:[1]", ""] {
            let endpoint =
                Endpoint { target: ".".into(), netns: netns.into(), ..Endpoint::default() };
            let refused = in_namespace_of(&endpoint, vec!["true".into()]).expect_err("another");
            assert!(format!("{refused:?}").contains("by now"), "{refused:?}");
        }
    }
}

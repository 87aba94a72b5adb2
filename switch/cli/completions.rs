//! `pontoon completions` and `pontoon man`: made of the same description as `--help`.

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Command};
use clap_complete::Shell;

use crate::failure::{Failure, Outcome};

/// Print a completion script for a shell
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pontoon completions bash > ~/.local/share/bash-completion/completions/pontoon
  pontoon completions fish > ~/.config/fish/completions/pontoon.fish")]
pub(crate) struct Completions {
    /// The shell
    shell: Shell,
}

impl Completions {
    /// Prints the script for `pontoon`, the whole program.
    pub(crate) fn go(self, mut pontoon: Command) -> Outcome {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut pontoon, "pontoon", &mut script);
        crate::output::print(String::from_utf8_lossy(&script).trim_end())
    }
}

/// Print the manual page, or write the pages of all commands to a directory
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pontoon man | man -l -
  pontoon man --directory ~/.local/share/man/man1")]
pub(crate) struct Man {
    /// Where to write pontoon.1, pontoon-run.1 and so on
    #[arg(long, value_name = "DIR")]
    directory: Option<PathBuf>,
}

impl Man {
    /// Prints or writes the pages of `pontoon`, the whole program.
    pub(crate) fn go(self, pontoon: Command) -> Outcome {
        match &self.directory {
            None => {
                let page = page(pontoon)?;
                crate::output::print(String::from_utf8_lossy(&page).trim_end())
            }
            Some(directory) => {
                let written = clap_mangen::generate_to(pontoon, directory);
                let wrong =
                    |error| Failure::new(format!("write to {}: {error}", directory.display()));
                written.map(|()| ExitCode::SUCCESS).map_err(wrong)
            }
        }
    }
}

fn page(command: Command) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    clap_mangen::Man::new(command).render(&mut text)?;
    Ok(text)
}

//! `pontoon lab`: not part of this build yet.

use clap::{Args, Subcommand};

use crate::failure::{Failure, Outcome};

/// Run the tutorials as labs that check themselves
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  pontoon lab ls\n  pontoon lab run NAME")]
pub(crate) struct Lab {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the labs
    #[command(after_help = "Example:\n  pontoon lab ls")]
    Ls,
    /// Run a lab
    #[command(after_help = "Example:\n  pontoon lab run NAME")]
    Run {
        /// Its name
        name: String,
    },
}

impl Lab {
    pub(crate) fn go(self) -> Outcome {
        let what = match self.command {
            Command::Ls => "list labs".to_owned(),
            Command::Run { name } => format!("run lab {name}"),
        };
        Err(Failure::new(format!("{what}: this build has no labs")))
    }
}

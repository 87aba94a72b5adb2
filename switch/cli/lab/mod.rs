//! `pontoon lab`: the tutorials, done by pontoon and checked while they are done.
//!
//! ```text
//! machine   this program once more, root of namespaces of its own       interrupt  Ctrl-C
//! topology  a host, its card, the world beyond                          child      processes, deadlines
//! session   types pontoon's commands ─▶ station  ping, get, serve …     checks     who answers, who not
//! first_bridge  the steps                                               report     text, JSON
//! ```

mod checks;
mod child;
mod first_bridge;
mod first_bridge_text;
mod interrupt;
mod machine;
mod report;
mod session;
mod station;
mod topology;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum as _};
use serde::Serialize;

use crate::failure::{Failure, Outcome, note};
use crate::output::{Listing, table};
use interrupt::Interrupt;
use report::{Report, Telling};
use session::{Session, Stop};

/// Run the tutorials as labs that check themselves
///
/// A lab makes a host, containers and an Internet of its own, all of it namespaces, types pontoon's
/// commands there, and compares what it sees with what the tutorial promises. It needs no root and no
/// other program, touches nothing outside, and leaves nothing behind.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  pontoon lab ls\n  pontoon lab run first-bridge")]
pub(crate) struct Lab {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the labs
    #[command(visible_alias = "list", after_help = "Example:\n  pontoon lab ls")]
    Ls(Ls),
    Run(Run),
    /// (for the labs) be a program in a namespace
    #[command(hide = true, subcommand)]
    Station(station::Station),
}

#[derive(Debug, Args)]
struct Ls {
    #[command(flatten)]
    listing: Listing,
}

/// Run a lab; the exit status is 0 if every check passed, else 1
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  pontoon lab run first-bridge
  pontoon lab run first-bridge --keep
  pontoon lab run first-bridge --without 'network set br0 --uplink sockets'
  pontoon lab run first-bridge --format json | jq '.Steps[].Checks[] | select(.Passed | not)'")]
struct Run {
    /// Its name
    name: String,
    /// How to tell what happens
    #[arg(long, value_enum, default_value_t, value_name = "FORMAT")]
    format: Telling,
    /// Leave it up after the last check, until Enter is pressed
    #[arg(long)]
    keep: bool,
    /// Leave a command out, to see what it is needed for
    #[arg(long, value_name = "COMMAND")]
    without: Option<String>,
    /// (for pontoon itself) be the lab's own machine
    #[arg(long, hide = true)]
    inside: bool,
}

/// A lab.
#[derive(Clone, Copy, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Lesson {
    name: &'static str,
    title: &'static str,
    steps: usize,
    #[serde(skip)]
    run: fn(&mut Session, bool) -> Result<(), Stop>,
}

const LESSONS: [Lesson; 1] = [Lesson {
    name: "first-bridge",
    title: "Containers, their bridge, the host and the Internet (容器网络原理)",
    steps: first_bridge::STEPS,
    run: first_bridge::run,
}];

impl Lab {
    pub(crate) fn go(self) -> Outcome {
        match self.command {
            Command::Ls(ls) => ls.listing.print(&LESSONS, text),
            Command::Run(run) => run.go(),
            Command::Station(station) => station.go(),
        }
    }
}

fn text(lessons: &[Lesson]) -> String {
    let cells = |lesson: &Lesson| {
        vec![lesson.name.to_owned(), lesson.steps.to_string(), lesson.title.to_owned()]
    };
    table(&["NAME", "STEPS", "TITLE"], lessons.iter().map(cells))
}

impl Run {
    fn go(self) -> Outcome {
        let Some(lesson) = LESSONS.into_iter().find(|lesson| lesson.name == self.name) else {
            let why = format!("there is no lab {:?}; `pontoon lab ls` lists them", self.name);
            return Err(Failure::new(why));
        };
        if !self.inside {
            return machine::start(&self.arguments());
        }
        machine::enter()?;
        self.inside(lesson)
    }

    /// The same command for the second self.
    fn arguments(&self) -> Vec<OsString> {
        let format = self.format.to_possible_value().map(|value| value.get_name().to_owned());
        let mut arguments = vec!["lab".to_owned(), "run".to_owned(), self.name.clone()];
        arguments.extend(format.map(|format| format!("--format={format}")));
        arguments.extend(self.keep.then(|| "--keep".to_owned()));
        arguments.extend(self.without.as_ref().map(|line| format!("--without={line}")));
        arguments.into_iter().map(OsString::from).collect()
    }

    fn inside(self, lesson: Lesson) -> Outcome {
        let interrupt = Interrupt::catch()?;
        let _strays = child::Strays::adopt()?;
        let report = Report::new(lesson.name, self.format);
        let without =
            self.without.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "));
        let mut session = Session::new(report, interrupt, without);
        let ended = (lesson.run)(&mut session, self.keep);
        session.clean_up();
        session.report.finish(ended.is_ok())?;
        match ended {
            Ok(()) => {
                session.left_out_as_asked()?;
                Ok(ExitCode::from(u8::from(!session.report.passed())))
            }
            // Ctrl-C is every process's, so our children may have gone first.
            Err(Stop::Broken(failure)) if !session.is_interrupted() => Err(failure),
            Err(_) => {
                note("interrupted; the lab is taken down");
                Ok(ExitCode::from(interrupt::STATUS))
            }
        }
    }
}

//! What a lab tells: step by step while it runs, or as one JSON document at its end.

use std::io::{self, IsTerminal as _, Write as _};
use std::time::Instant;

use clap::ValueEnum;
use serde::Serialize;

use crate::failure::{Outcome, note};
use crate::output::print_json;

/// How a lab is told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Telling {
    /// Step by step, while it runs
    #[default]
    Text,
    /// One JSON document, at its end
    Json,
}

/// Columns of running text.
const WIDTH: usize = 92;

/// What a step is about, in the tutorial's order.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Step {
    pub(crate) title: &'static str,
    /// What the tutorial has the reader type, a command a line.
    pub(crate) tutorial: &'static str,
    /// What there is to learn.
    pub(crate) why: &'static str,
}

/// What was looked at, and how it should be.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Check {
    what: String,
    expected: String,
    seen: String,
    passed: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Command {
    command: String,
    status: Option<u8>,
    output: String,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Told {
    number: usize,
    title: &'static str,
    tutorial: Vec<&'static str>,
    commands: Vec<Command>,
    checks: Vec<Check>,
    why: &'static str,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Document<'a> {
    lab: &'a str,
    passed: usize,
    failed: usize,
    complete: bool,
    seconds: f64,
    steps: &'a [Told],
}

/// The telling of one lab.
#[derive(Debug)]
pub(crate) struct Report {
    lab: &'static str,
    format: Telling,
    colour: bool,
    started: Instant,
    steps: Vec<Told>,
}

impl Report {
    pub(crate) fn new(lab: &'static str, format: Telling) -> Self {
        let unwanted = std::env::var_os("NO_COLOR").is_some_and(|set| !set.is_empty());
        let colour = io::stdout().is_terminal() && !unwanted;
        Self { lab, format, colour, started: Instant::now(), steps: Vec::new() }
    }

    /// Words before the first step.
    pub(crate) fn preface(&self, text: &str) {
        self.say(text);
    }

    /// Words to whoever sits there, whatever standard output is for.
    pub(crate) fn tell(&self, text: &str) {
        match self.format {
            Telling::Json => note(text),
            Telling::Text => self.say(text),
        }
    }

    /// Begins a step.
    pub(crate) fn begin(&mut self, step: &Step) {
        let number = self.steps.len();
        self.say(&format!("\n{}", self.paint(BOLD, &format!("{number}  {}", step.title))));
        let tutorial: Vec<_> = step.tutorial.lines().collect();
        for (at, line) in tutorial.iter().enumerate() {
            self.entry(if at == 0 { "tutorial" } else { "" }, &self.paint(DIM, line));
        }
        let (title, why) = (step.title, step.why);
        self.steps.push(Told { number, title, tutorial, commands: vec![], checks: vec![], why });
    }

    /// A command is typed.
    pub(crate) fn command(&mut self, line: &str) {
        let first = self.steps.last().is_none_or(|step| step.commands.is_empty());
        self.entry(if first { "pontoon" } else { "" }, &self.paint(CYAN, &format!("$ {line}")));
        if let Some(step) = self.steps.last_mut() {
            let command = line.to_owned();
            step.commands.push(Command { command, status: None, output: String::new() });
        }
    }

    /// Shows what the last command said.
    pub(crate) fn show(&self, output: &str) {
        for line in output.lines() {
            self.entry("", &format!("  {line}"));
        }
    }

    /// Keeps how the last command ended, and what it said.
    pub(crate) fn ended(&mut self, output: &str, status: Option<u8>) {
        if let Some(command) = self.steps.last_mut().and_then(|step| step.commands.last_mut()) {
            command.output = output.to_owned();
            command.status = status;
        }
    }

    /// Something was looked at.
    pub(crate) fn check(&mut self, what: &str, expected: &str, seen: &str, passed: bool) {
        let verdict =
            if passed { self.paint(GREEN, "ok      ") } else { self.paint(RED, "FAILED  ") };
        self.say(&format!("  {verdict}  {what}"));
        self.entry("expected", expected);
        for (at, line) in seen.lines().enumerate() {
            self.entry(if at == 0 { "seen" } else { "" }, line);
        }
        let [what, expected, seen] = [what, expected, seen].map(str::to_owned);
        if let Some(step) = self.steps.last_mut() {
            step.checks.push(Check { what, expected, seen, passed });
        }
    }

    /// The step is done: what there is to learn.
    pub(crate) fn end(&self) {
        let why = self.steps.last().map(|step| step.why).unwrap_or_default();
        for (at, line) in wrap(why, WIDTH - 12).iter().enumerate() {
            self.entry(if at == 0 { "why" } else { "" }, line);
        }
    }

    /// Whether every check passed, and there were some.
    pub(crate) fn passed(&self) -> bool {
        let (passed, failed) = self.counts();
        passed > 0 && failed == 0
    }

    fn counts(&self) -> (usize, usize) {
        let checks = || self.steps.iter().flat_map(|step| &step.checks);
        let passed = checks().filter(|check| check.passed).count();
        (passed, checks().count() - passed)
    }

    /// The last words: a summary, or the whole document.
    pub(crate) fn finish(&self, complete: bool) -> Outcome {
        let (passed, failed) = self.counts();
        if self.format == Telling::Json {
            let seconds = (self.started.elapsed().as_secs_f64() * 1e3).round() / 1e3;
            let (lab, steps) = (self.lab, &self.steps);
            return print_json(&Document { lab, passed, failed, complete, seconds, steps });
        }
        let end = if complete { "" } else { "; it ended early" };
        let summary = match failed {
            0 => format!("{passed} checks passed{end}"),
            _ => format!("{failed} of {} checks FAILED{end}", passed + failed),
        };
        let colour = if failed == 0 && complete { GREEN } else { RED };
        self.say(&format!("\n{}: {}", self.lab, self.paint(colour, &summary)));
        let failures =
            self.steps.iter().flat_map(|step| step.checks.iter().map(move |c| (step, c)));
        for (step, check) in failures.filter(|(_, check)| !check.passed) {
            self.say(&format!("  step {}: {}", step.number, check.what));
        }
        Ok(std::process::ExitCode::SUCCESS)
    }

    fn entry(&self, label: &str, text: &str) {
        self.say(format!("  {label:<8}  {text}").trim_end());
    }

    /// A line, unless all is told in JSON at the end. A reader that has gone away is no reason to stop
    /// before the lab is cleaned up.
    fn say(&self, text: &str) {
        if self.format != Telling::Json {
            let _ = writeln!(io::stdout(), "{text}");
        }
    }

    fn paint(&self, colour: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{colour}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

const BOLD: &str = "1";
const DIM: &str = "2";
const RED: &str = "1;31";
const GREEN: &str = "32";
const CYAN: &str = "36";

/// Breaks running text into lines of at most `width` columns, where a word allows it.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Step = Step { title: "A step", tutorial: "one\ntwo", why: "Because." };

    #[test]
    fn one_failure_fails_the_lab_and_none_at_all_does_too() {
        let mut report = Report::new("test", Telling::Json);
        assert!(!report.passed(), "nothing was looked at");
        report.begin(&STEP);
        report.check("first", "a", "a", true);
        assert!(report.passed());
        report.check("second", "a", "b", false);
        assert!(!report.passed());
        assert_eq!(report.counts(), (1, 1));
    }

    #[test]
    fn the_document_has_it_all() {
        let mut report = Report::new("test", Telling::Json);
        report.begin(&STEP);
        report.command("pontoon ps");
        report.ended("NAME", Some(0));
        report.check("what", "a", "b", false);
        let json = serde_json::to_value(&report.steps).expect("JSON");
        assert_eq!(json[0]["Tutorial"][1], "two");
        assert_eq!(json[0]["Commands"][0]["Output"], "NAME");
        assert_eq!(json[0]["Checks"][0]["Passed"], false);
    }

    #[test]
    fn text_is_wrapped_between_words() {
        assert_eq!(wrap("a bc  def\ng", 4), ["a bc", "def", "g"]);
        assert_eq!(wrap("überlang x", 3), ["überlang", "x"]);
        assert!(wrap(" ", 3).is_empty());
    }
}

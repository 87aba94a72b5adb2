//! The table: requirements by subjects.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::thread;

use libtest_mimic::Failed;

use crate::lab::{Family, Lab};
use crate::subject::Subject;
use crate::{Of, PATIENCE, Probe};

/// What a subject did at a probe: a mark for each family.
fn cell(subject: Subject, probe: &Probe) -> (String, Vec<String>) {
    if !probe.of.concerns(subject) {
        return ("·".to_owned(), Vec::new());
    }
    let mut marks = String::new();
    let mut wrongs = Vec::new();
    let options = if subject.is_pontoon() { probe.options } else { &[] };
    let lab = catch_unwind(|| Lab::new(subject, options)).ok().flatten();
    let Some(lab) = lab else { return ("-".to_owned(), vec!["no lab".to_owned()]) };
    for family in probe.families {
        let ran = catch_unwind(AssertUnwindSafe(|| (probe.run)(&lab, *family)));
        let mark = if *family == Family::V4 { '4' } else { '6' };
        match ran {
            Ok(Ok(())) => marks.push(mark),
            Ok(Err(wrong)) => {
                marks.push('✗');
                wrongs.push(format!("{family:?}: {wrong}{}", lab.dropped()));
            }
            Err(panic) => {
                marks.push('‼');
                let text = panic.downcast_ref::<String>().cloned().unwrap_or_default();
                wrongs.push(format!("{family:?}: panicked: {text}"));
            }
        }
    }
    (marks, wrongs)
}

/// By row and column.
type Cells = BTreeMap<(usize, usize), (String, Vec<String>)>;

/// The rows' beginnings, and their marks.
fn rows(probes: &[Probe], subjects: &[Subject], cells: &Cells) -> Vec<(String, Vec<String>)> {
    let row = |(row, probe): (usize, &Probe)| {
        let marks = (0..subjects.len()).map(|column| cells[&(row, column)].0.clone());
        (title(probe), marks.collect())
    };
    probes.iter().enumerate().map(row).collect()
}

fn title(probe: &Probe) -> String {
    let of = match probe.of {
        Of::Raw | Of::RawAlone => " (raw)",
        Of::Sockets => " (sockets)",
        Of::Both => "",
    };
    format!("{} {}{of}", probe.id, probe.name.replace('_', " "))
}

/// The rows of a table made before, of probes there still are.
fn kept(before: &str) -> Vec<(String, Vec<String>)> {
    let titles: Vec<_> = crate::all().iter().map(title).collect();
    let row = |line: &str| {
        let mut cells =
            line.strip_prefix("| ")?.strip_suffix(" |")?.split(" | ").map(str::to_owned);
        cells.next().map(|title| (title, cells.collect()))
    };
    before.lines().filter_map(row).filter(|(title, _)| titles.contains(title)).collect()
}

/// A row for each probe, and how many of what was asked is right.
fn table(rows: &[(String, Vec<String>)], subjects: &[Subject]) -> String {
    let names: Vec<_> = subjects.iter().map(|subject| subject.name()).collect();
    let mut lines = vec![format!("| requirement | {} |", names.join(" | "))];
    lines.push(format!("|--|{}", "--|".repeat(subjects.len())));
    lines.extend(rows.iter().map(|(title, marks)| format!("| {title} | {} |", marks.join(" | "))));
    let right = (0..subjects.len()).map(|column| {
        let marks = rows.iter().map(|(_, marks)| marks[column].as_str());
        let asked = marks.clone().filter(|marks| *marks != "·").flat_map(str::chars).count();
        let right = marks.flat_map(str::chars).filter(|mark| matches!(mark, '4' | '6')).count();
        format!("{right} of {asked}")
    });
    lines.push(format!("| right | {} |", right.collect::<Vec<_>>().join(" | ")));
    lines.join("\n") + "\n"
}

/// What was run, when and where, and how to read it.
fn heading(subjects: &[Subject]) -> String {
    let says = |program: &str, args: &[&str]| {
        let output = Command::new(program).args(args).output();
        let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
        text.unwrap_or_default().lines().next().unwrap_or_default().to_owned()
    };
    let versions: Vec<_> = subjects
        .iter()
        .filter_map(|subject| subject.program())
        .map(|program| says(&program.to_string_lossy(), &["--version"]))
        .collect();
    format!(
        "# What each does of each requirement\n\n\
         Made by `TABLE=tests/conformance/last.md cargo test --test conformance matrix -- --ignored --nocapture`\n\
         on {}, Linux {}, {}.\n\n\
         4, 6: right in that family; ✗: wrong; ‼: could not be asked; ·: not required, or nobody's but\n\
         pontoon's to be set up. `nothing` is a host that lets nothing through: no probe may find it right.\n\n",
        says("date", &["-u", "+%-d %B %Y"]),
        says("uname", &["-r"]),
        versions.join(", "),
    )
}

/// In the environment, `TABLE` names a file for the table, and `PROBE` and `SUBJECTS` choose by part of a
/// name, number or file; rows of a table that `PROBE` does not choose stay as they were.
pub(crate) fn matrix() -> Result<(), Failed> {
    PATIENCE.store(4, Relaxed);
    let chosen = |what: &str, names: &[&str]| match std::env::var(what) {
        Ok(words) => words.split(',').any(|word| names.iter().any(|name| name.contains(word))),
        Err(_) => true,
    };
    let subjects = Subject::ALL.into_iter().filter(|s| chosen("SUBJECTS", &[s.name()]));
    let subjects: Vec<_> = subjects.filter(|subject| subject.is_here()).collect();
    let probes = crate::all()
        .into_iter()
        .filter(|probe| chosen("PROBE", &[probe.id, probe.module, probe.name]));
    let probes: Vec<_> = probes.collect();
    let jobs: Vec<_> = (0..probes.len() * subjects.len()).collect();
    let next = AtomicUsize::new(0);
    let cells = Mutex::new(BTreeMap::new());
    thread::scope(|scope| {
        for _ in 0..crate::AT_ONCE {
            scope.spawn(|| {
                while let Some(job) = jobs.get(next.fetch_add(1, Relaxed)) {
                    let (row, column) = (job / subjects.len(), job % subjects.len());
                    let cell = cell(subjects[column], &probes[row]);
                    cells.lock().unwrap().insert((row, column), cell);
                }
            });
        }
    });
    let cells = cells.into_inner().unwrap();
    let mut rows = rows(&probes, &subjects, &cells);
    println!("{}", table(&rows, &subjects));
    if let Some(file) = std::env::var_os("TABLE") {
        let before = std::fs::read_to_string(&file).unwrap_or_default();
        if std::env::var_os("PROBE").is_some() {
            let asked: Vec<_> = rows.iter().map(|(title, _)| title.clone()).collect();
            let kept = kept(&before).into_iter().filter(|(title, _)| !asked.contains(title));
            rows.extend(kept.filter(|(_, marks)| marks.len() == subjects.len()));
            let order: Vec<_> = crate::all().iter().map(title).collect();
            rows.sort_by_key(|(title, _)| order.iter().position(|found| found == title));
        }
        std::fs::write(file, heading(&subjects) + &table(&rows, &subjects))?;
    }
    for ((row, column), (_, wrongs)) in &cells {
        for wrong in wrongs {
            let (probe, subject) = (&probes[*row], subjects[*column]);
            println!("{} {} by {}: {wrong}", probe.id, probe.name, subject.name());
        }
    }
    if let Some(column) = subjects.iter().position(|subject| *subject == Subject::Nothing) {
        let blind: Vec<_> = probes
            .iter()
            .enumerate()
            .filter(|(row, _)| cells[&(*row, column)].0.contains(['4', '6']))
            .map(|(_, probe)| probe.name)
            .collect();
        if !blind.is_empty() {
            return Err(format!("nothing at all passes {blind:?}").into());
        }
    }
    Ok(())
}

//! The laws of the design, held by what Cargo and the sources say.
//!
//! ```text
//! cli ─▶ faces ─▶ daemon ─▶ worker ─▶ relay ─▶ datapath ─▶ nat
//!                              └─────────┴──▶ netns
//! ```

mod source;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use source::{Crate, Token, tokens};

/// Who may lean on whom, one step; further down is allowed too.
const ARROWS: [(&str, &[&str]); 8] = [
    ("pontoon", &["faces", "daemon"]),
    ("faces", &["daemon"]),
    ("daemon", &["worker"]),
    ("worker", &["relay", "datapath", "netns"]),
    ("relay", &["datapath", "netns"]),
    ("datapath", &["nat"]),
    ("nat", &[]),
    ("netns", &[]),
];

/// What the pure crates may lean on: maps, codecs, derives. A crate that opens anything has no place here.
const PURE: [(&str, &[&str]); 2] = [
    ("nat", &["arc-swap", "dashmap", "hashbrown", "smoltcp"]),
    ("datapath", &["dashmap", "nat", "smoltcp"]),
];

/// What a pure crate's source never names.
const IMPURE: [&[&str]; 12] = [
    &["std", "::", "fs"],
    &["std", "::", "process"],
    &["std", "::", "thread"],
    &["std", "::", "env"],
    &["std", "::", "os"],
    &["std", "::", "time"],
    &["TcpStream"],
    &["TcpListener"],
    &["UdpSocket"],
    &["SystemTime"],
    &["Instant", "::", "now"],
    &["phy", "::", "wait"],
];

const MAX_LINES: usize = 600;

#[test]
fn crates_lean_only_down_the_arrows() {
    let arrows: BTreeMap<_, _> = ARROWS.into();
    let mut wrong = Vec::new();
    for package in packages() {
        if !arrows.contains_key(&*package.name) {
            wrong.push(format!("{} has no place among the arrows", package.name));
            continue;
        }
        let below = reachable(&package.name, &arrows);
        let ours = package.dependencies.iter().filter(|(_, path)| *path).map(|(name, _)| name);
        wrong.extend(
            ours.filter(|name| !below.contains(&***name))
                .map(|name| format!("{} must not lean on {name}", package.name)),
        );
    }
    none(&wrong);
}

#[test]
fn the_pure_crates_lean_on_nothing_that_does_io() {
    let mut wrong = Vec::new();
    for (name, allowed) in PURE {
        let package = package(name);
        for (dependency, _) in &package.dependencies {
            if !allowed.contains(&&**dependency) {
                wrong.push(format!("{name} leans on {dependency}, which is not known to be pure"));
            }
        }
        for feature in package.features_of("smoltcp") {
            if feature.starts_with("phy") {
                wrong.push(format!("{name} has smoltcp with {feature}, which does I/O"));
            }
        }
    }
    none(&wrong);
}

#[test]
fn the_pure_crates_name_no_socket_no_file_no_thread_and_no_clock() {
    let mut wrong = Vec::new();
    for (name, _) in PURE {
        for (file, tokens) in package(name).sources() {
            for words in IMPURE {
                if tokens.windows(words.len()).any(|window| window == words) {
                    wrong.push(format!("{}: {}", shown(&file), words.concat()));
                }
            }
            // `use std::{fs, …}`, one brace deep, is the other way to write it.
            for group in
                tokens.windows(4).enumerate().filter(|(_, w)| *w == ["use", "std", "::", "{"])
            {
                let end = tokens[group.0..].iter().position(|t| t == ";").unwrap_or(0);
                for word in &tokens[group.0..group.0 + end] {
                    if ["fs", "process", "thread", "env", "os", "time"].contains(&word.as_str()) {
                        wrong.push(format!("{}: std::{word}", shown(&file)));
                    }
                }
            }
        }
    }
    none(&wrong);
}

#[test]
fn every_crate_but_netns_forbids_unsafe_code() {
    const FORBID: [&str; 8] = ["#", "!", "[", "forbid", "(", "unsafe_code", ")", "]"];
    let mut wrong = Vec::new();
    for package in packages() {
        for root in &package.roots {
            let tokens = tokens(&read(root), false);
            let forbids = tokens.windows(FORBID.len()).any(|window| window == FORBID);
            if forbids == (package.name == "netns") {
                wrong.push(format!("{}: forbid(unsafe_code) is {forbids}", shown(root)));
            }
        }
    }
    none(&wrong);
}

#[test]
fn unsafe_stands_only_in_netns() {
    let elsewhere = rust_files().into_iter().filter(|file| !file.starts_with(top().join("netns")));
    let wrong: Vec<_> = elsewhere
        .filter(|file| tokens(&read(file), true).iter().any(|token| token == "unsafe"))
        .map(|file| shown(&file))
        .collect();
    none(&wrong);
}

/// What pontoon asks of the kernel it asks by netlink and system calls. The commands it does start are
/// its user's, and itself: no other whose name stands in its source.
#[test]
fn the_product_starts_no_program_of_the_host() {
    let mut wrong = Vec::new();
    for package in packages() {
        for (file, _) in package.sources() {
            let text = read(&file);
            let product = text.split("#[cfg(test)]").next().unwrap_or_default();
            for (number, line) in product.lines().enumerate() {
                if line.contains("Command::new(\"") && !line.contains("\"/proc/self/exe\"") {
                    wrong.push(format!("{}:{}: {}", shown(&file), number + 1, line.trim()));
                }
            }
        }
    }
    none(&wrong);
}

#[test]
fn the_top_level_is_what_the_design_says() {
    let expected =
        ["Cargo.lock", "Cargo.toml", "README.md", "benches", "nat", "netns", "switch", "tests"];
    let seen: BTreeSet<_> = files()
        .iter()
        .filter_map(|file| {
            file.strip_prefix(top()).ok()?.iter().next()?.to_str().map(str::to_owned)
        })
        .filter(|name| !name.starts_with('.'))
        .collect();
    assert_eq!(seen, expected.map(str::to_owned).into());
}

#[test]
fn the_files_of_a_crate_name_each_other_in_no_circle() {
    let mut wrong = Vec::new();
    for package in packages() {
        for root in &package.roots {
            for (from, path, to) in Crate::read(root).circles() {
                wrong.push(format!("{} → {} by {path}", shown(&from.file), shown(&to.file)));
            }
        }
    }
    none(&wrong);
}

#[test]
fn every_source_file_belongs_to_a_crate() {
    let product: Vec<_> = packages().iter().flat_map(Package::files).collect();
    let wrong: Vec<_> = rust_files()
        .into_iter()
        .filter(|file| !product.contains(file))
        .filter(|file| !file.iter().any(|part| part == "tests" || part == "benches"))
        .filter(|file| !is_tests_of_a_module(file))
        .map(|file| shown(&file))
        .collect();
    none(&wrong);
}

/// `tests.rs` beside a `mod.rs` that has it as `#[cfg(test)] mod tests;`.
fn is_tests_of_a_module(file: &Path) -> bool {
    let module = file.with_file_name("mod.rs");
    file.ends_with("tests.rs")
        && module.exists()
        && read(&module).contains("#[cfg(test)]\nmod tests;")
}

#[test]
fn no_file_holds_a_second_idea() {
    let wrong: Vec<_> = rust_files()
        .iter()
        .map(|file| (file, read(file).lines().count()))
        .filter(|(_, lines)| *lines > MAX_LINES)
        .map(|(file, lines)| format!("{}: {lines} lines", shown(file)))
        .collect();
    none(&wrong);
}

/// The reader itself, on what it could get wrong.
#[test]
fn the_reader_sees_through_literals_comments_and_tests() {
    let text = r##"
        // use crate::no; 'x
        /* use crate::no; /* nested */ */
        const A: &str = "use crate::no; \" //"; const B: &[u8] = br#"unsafe " { "#;
        fn f<'a>(x: &'a str) -> char { '\'' }
        #[cfg(test)]
        mod tests { use crate::no; fn g() { h(); } }
        use crate::{yes, other::{self, Thing as Another}};
    "##;
    let seen = tokens(text, false);
    assert!(!seen.iter().any(|token| token == "no" || token == "unsafe"), "{seen:?}");
    assert!(seen.iter().any(|token| token == "yes"), "{seen:?}");
    assert!(
        seen.ends_with(&["Thing", "as", "Another", "}", "}", ";"].map(str::to_owned)),
        "{seen:?}"
    );
}

#[test]
fn the_reader_finds_a_circle_and_only_a_circle() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let write = |name: &str, text: &str| {
        let file = folder.path().join(name);
        fs::create_dir_all(file.parent().expect("below the folder")).expect("a folder");
        fs::write(file, text).expect("a file");
    };
    write("lib.rs", "mod a; mod b; pub mod c; pub use a::A; pub use c::deep::Deep;");
    write("a.rs", "use crate::{b::B, Deep}; pub struct A(B, Deep); mod inner { use super::A; }");
    write("b.rs", "pub struct B; #[cfg(test)] mod tests { use crate::a::A; }");
    write("c/mod.rs", "pub mod deep; fn f() -> deep::Deep { deep::Deep }");
    write("c/deep.rs", "pub struct Deep;");
    let circles = || {
        let read = Crate::read(&folder.path().join("lib.rs"));
        let steps = read.circles().into_iter();
        steps
            .map(|(a, _, b)| format!("{} → {}", a.path.join("::"), b.path.join("::")))
            .collect::<Vec<_>>()
    };
    assert_eq!(circles(), [""; 0]);
    // By way of the root's `pub use`, two levels up, in an expression.
    write("c/deep.rs", "pub struct Deep; fn f(_: super::super::A) {}");
    assert_eq!(circles(), ["a → c::deep", "c::deep → a"]);
    write("c/deep.rs", "pub struct Deep; fn f() { super::helper() }");
    assert_eq!(circles(), ["c → c::deep", "c::deep → c"]);
}

/// A package of the workspace.
#[derive(Debug)]
struct Package {
    name: String,
    /// Its library's and its programs' root files.
    roots: Vec<PathBuf>,
    /// Those that end up in the product, and whether they are ours.
    dependencies: Vec<(String, bool)>,
    metadata: Value,
}

impl Package {
    fn features_of(&self, dependency: &str) -> Vec<String> {
        let of = |value: &Value| value.as_str().map(str::to_owned);
        let dependencies = self.metadata["dependencies"].as_array().into_iter().flatten();
        dependencies
            .filter(|found| found["name"] == dependency && found["kind"].is_null())
            .flat_map(|found| found["features"].as_array().into_iter().flatten().filter_map(of))
            .collect()
    }

    fn files(&self) -> Vec<PathBuf> {
        let modules = self.roots.iter().flat_map(|root| Crate::read(root).modules.into_values());
        modules.map(|module| module.file).collect()
    }

    /// Its files with their tokens, tests left out.
    fn sources(&self) -> Vec<(PathBuf, Vec<Token>)> {
        let read = |file: PathBuf| (tokens(&read(&file), false), file);
        self.files().into_iter().map(read).map(|(tokens, file)| (file, tokens)).collect()
    }
}

fn packages() -> Vec<Package> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--no-deps", "--offline"])
        .current_dir(top())
        .output()
        .expect("cargo, which runs this test");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let packages = metadata["packages"].as_array().expect("a list of packages");
    packages
        .iter()
        .map(|package| read_package(package).expect("a package as Cargo shows it"))
        .collect()
}

fn read_package(package: &Value) -> Option<Package> {
    let product = |target: &&Value| {
        target["kind"] == serde_json::json!(["lib"]) || target["kind"] == serde_json::json!(["bin"])
    };
    let roots = package["targets"].as_array()?.iter().filter(product);
    let dependencies = package["dependencies"].as_array()?.iter();
    Some(Package {
        name: package["name"].as_str()?.to_owned(),
        roots: roots
            .map(|target| target["src_path"].as_str().map(PathBuf::from))
            .collect::<Option<_>>()?,
        dependencies: dependencies
            .filter(|dependency| dependency["kind"] != "dev")
            .map(|dependency| {
                Some((dependency["name"].as_str()?.to_owned(), dependency["path"].is_string()))
            })
            .collect::<Option<_>>()?,
        metadata: package.clone(),
    })
}

fn package(name: &str) -> Package {
    packages().into_iter().find(|package| package.name == name).expect("a package of that name")
}

fn reachable<'a>(from: &str, arrows: &BTreeMap<&str, &'a [&'a str]>) -> BTreeSet<&'a str> {
    let mut found = BTreeSet::new();
    let mut waiting = arrows[from].to_vec();
    while let Some(next) = waiting.pop() {
        if found.insert(next) {
            waiting.extend(arrows[next]);
        }
    }
    found
}

fn top() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Every file that is, or could be, committed.
fn files() -> Vec<PathBuf> {
    let listed = Command::new("git")
        .args(["ls-files", "-z", "--cached", "--others", "--exclude-standard"])
        .current_dir(top())
        .output();
    match listed {
        Ok(listed) if listed.status.success() => String::from_utf8_lossy(&listed.stdout)
            .split_terminator('\0')
            .map(|name| top().join(name))
            .filter(|file| file.exists())
            .collect(),
        _ => walk(top()),
    }
}

/// Without git, all but what is built.
fn walk(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("a folder of the project").flatten();
    let kept = entries.map(|entry| entry.path()).filter(|path| !path.ends_with("target"));
    kept.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}

fn rust_files() -> Vec<PathBuf> {
    files().into_iter().filter(|file| file.extension().is_some_and(|ext| ext == "rs")).collect()
}

fn read(file: &Path) -> String {
    fs::read_to_string(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()))
}

fn shown(file: &Path) -> String {
    file.strip_prefix(top()).unwrap_or(file).display().to_string()
}

fn none(wrong: &[String]) {
    assert!(wrong.is_empty(), "\n  {}\n", wrong.join("\n  "));
}

//! Rust source as far as its laws need it: tokens, and which file names which.
//!
//! No full grammar: comments and literals are taken out, items under `#[cfg(test)]` are left out, and
//! what remains is read as a row of tokens. Good enough as long as macros build no paths.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// A word, `::`, or one sign.
pub(crate) type Token = String;

/// The tokens of `text`: no comment, no literal, and unless `with_tests`, no item under `#[cfg(test)]`.
pub(crate) fn tokens(text: &str, with_tests: bool) -> Vec<Token> {
    let plain = without_comments_and_literals(text);
    let mut tokens = Vec::new();
    let mut rest = plain.as_str();
    while let Some(first) = rest.chars().next() {
        let word = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
        let len = match first {
            _ if word > 0 => word,
            ':' if rest.starts_with("::") => 2,
            _ => first.len_utf8(),
        };
        if !first.is_whitespace() {
            tokens.push(rest[..len].to_owned());
        }
        rest = &rest[len..];
    }
    if with_tests { tokens } else { without_tests(&tokens) }
}

/// The same text with comments and the insides of literals blanked.
fn without_comments_and_literals(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while !rest.is_empty() {
        let skipped = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if rest.starts_with("/*") {
            block_comment(rest)
        } else if let Some(len) = literal(rest, plain.chars().next_back()) {
            plain.push_str("\"\"");
            len
        } else {
            let len = rest.chars().next().map_or(0, char::len_utf8);
            plain.push_str(&rest[..len]);
            rest = &rest[len..];
            continue;
        };
        plain.push(' ');
        rest = &rest[skipped..];
    }
    plain
}

fn block_comment(text: &str) -> usize {
    let (mut depth, mut at) = (0, 0);
    loop {
        let rest = &text[at..];
        let (step, change) = match () {
            () if rest.starts_with("/*") => (2, 1),
            () if rest.starts_with("*/") => (2, -1),
            () => (rest.chars().next().map_or(0, char::len_utf8), 0),
        };
        depth += change;
        at += step;
        if depth == 0 || step == 0 {
            return at;
        }
    }
}

/// Octets of the string or character literal `text` begins with, if it does.
fn literal(text: &str, before: Option<char>) -> Option<usize> {
    let in_word = before.is_some_and(|c| c.is_alphanumeric() || c == '_');
    let prefix = text.find(|c| c != 'b' && c != 'c' && c != 'r').filter(|_| !in_word)?;
    let (raw, rest) = (text[..prefix].contains('r'), &text[prefix..]);
    let hashes = rest.len() - rest.trim_start_matches('#').len();
    if raw && rest[hashes..].starts_with('"') {
        let end = format!("\"{}", "#".repeat(hashes));
        let body = prefix + hashes + 1;
        return Some(body + text[body..].find(&end)? + end.len());
    }
    match rest.chars().next()? {
        '"' => Some(prefix + quoted(rest, '"')?),
        // A quote that closes two characters on, or after an escape, is no lifetime's.
        '\'' if rest.chars().nth(1) == Some('\\') || rest.chars().nth(2) == Some('\'') => {
            Some(prefix + quoted(rest, '\'')?)
        }
        _ => None,
    }
}

fn quoted(text: &str, quote: char) -> Option<usize> {
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if c == quote => return Some(at + c.len_utf8()),
            _ => {}
        }
    }
    None
}

fn without_tests(tokens: &[Token]) -> Vec<Token> {
    const MARK: [&str; 7] = ["#", "[", "cfg", "(", "test", ")", "]"];
    let mut kept = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        if tokens[at..].iter().take(MARK.len()).eq(&MARK) {
            at += MARK.len() + item(&tokens[at + MARK.len()..]);
        } else {
            kept.push(tokens[at].clone());
            at += 1;
        }
    }
    kept
}

/// Tokens of the item at the front: up to its `;`, or the end of its braces.
fn item(tokens: &[Token]) -> usize {
    let mut depth = 0;
    for (at, token) in tokens.iter().enumerate() {
        match token.as_str() {
            "{" | "(" | "[" => depth += 1,
            "}" | ")" | "]" => depth -= 1,
            _ => {}
        }
        if depth == 0 && matches!(token.as_str(), "}" | ";") {
            return at + 1;
        }
    }
    tokens.len()
}

/// A path in the source, from the module it is written in: `["super", "fdb", "Fdb"]`.
type Named = Vec<String>;

/// A file, which is a module.
#[derive(Debug)]
pub(crate) struct Module {
    /// Where it is.
    pub(crate) file: PathBuf,
    /// Its path from the crate's root, which has none.
    pub(crate) path: Vec<String>,
    named: Vec<Named>,
    /// What `use` gives another name or another place: `pub use bridge::Datapath`.
    imported: BTreeMap<String, Named>,
}

/// The files of a crate, from its root on.
#[derive(Debug)]
pub(crate) struct Crate {
    /// By path.
    pub(crate) modules: BTreeMap<Vec<String>, Module>,
}

impl Crate {
    /// Reads `root` and all the modules it leads to.
    pub(crate) fn read(root: &Path) -> Self {
        let mut modules = BTreeMap::new();
        read_module(root.to_owned(), Vec::new(), &mut modules);
        Self { modules }
    }

    /// Every module with the modules it names, itself left out, and by what path it does.
    fn edges(&self) -> Edges<'_> {
        let edges_of = |module: &'_ Module| {
            let targets = module.named.iter().filter_map(|path| {
                let target = self.find(&module.path, path, 8)?;
                (target != module.path).then(|| (target, path.join("::")))
            });
            targets.collect()
        };
        self.modules.iter().map(|(path, module)| (path.as_slice(), edges_of(module))).collect()
    }

    /// The module in whose file the thing is that `path` names in the module `from`.
    fn find(&self, from: &[String], path: &[String], patience: usize) -> Option<&[String]> {
        let mut place = from.to_vec();
        let mut rest = path;
        while let [first, tail @ ..] = rest {
            match first.as_str() {
                "crate" => place.clear(),
                "super" => drop(place.pop()),
                "self" => {}
                _ => break,
            }
            rest = tail;
        }
        if rest.len() == path.len() && !self.is_here(from, path.first()?) {
            return None;
        }
        while let [first, tail @ ..] = rest {
            let mut deeper = place.clone();
            deeper.push(first.clone());
            if self.modules.contains_key(&deeper) {
                place = deeper;
                rest = tail;
                continue;
            }
            if let Some(real) = self.modules.get(&place)?.imported.get(first)
                && patience > 0
                && let Some(found) = self.find(&place, real, patience - 1)
            {
                return Some(found);
            }
            break;
        }
        self.modules.get_key_value(&place).map(|(path, _)| path.as_slice())
    }

    fn is_here(&self, module: &[String], name: &str) -> bool {
        let mut child = module.to_vec();
        child.push(name.to_owned());
        self.modules.contains_key(&child)
    }

    /// Every step of a circle: a module, the path it writes, and the module it names by that.
    pub(crate) fn circles(&self) -> Vec<(&Module, String, &Module)> {
        let edges = self.edges();
        let steps = edges.iter().flat_map(|(from, to)| to.iter().map(move |to| (*from, to)));
        steps
            .filter(|(from, (to, _))| leads(to, from, &edges))
            .map(|(from, (to, path))| (&self.modules[from], path.clone(), &self.modules[*to]))
            .collect()
    }
}

/// Modules, the modules they name, and how.
type Edges<'a> = BTreeMap<&'a [String], BTreeMap<&'a [String], String>>;

/// Whether a way leads from one module to another.
fn leads(from: &[String], to: &[String], edges: &Edges<'_>) -> bool {
    let (mut seen, mut waiting) = (BTreeSet::new(), vec![from]);
    while let Some(next) = waiting.pop() {
        if next == to {
            return true;
        }
        if seen.insert(next) {
            waiting.extend(edges[next].keys());
        }
    }
    false
}

fn read_module(file: PathBuf, path: Vec<String>, modules: &mut BTreeMap<Vec<String>, Module>) {
    let text =
        fs::read_to_string(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let mut reader = Reader { tokens: tokens(&text, false), ..Reader::default() };
    reader.read();
    let own_folder =
        matches!(file.file_stem().and_then(|s| s.to_str()), Some("lib" | "main" | "mod"));
    let folder = if own_folder { file.with_file_name("") } else { file.with_extension("") };
    for child in reader.children {
        let flat = folder.join(format!("{child}.rs"));
        let file = if flat.exists() { flat } else { folder.join(&child).join("mod.rs") };
        let mut path = path.clone();
        path.push(child);
        read_module(file, path, modules);
    }
    let Reader { named, imported, .. } = reader;
    modules.insert(path.clone(), Module { file, path, named, imported });
}

#[derive(Debug, Default)]
struct Reader {
    tokens: Vec<Token>,
    children: Vec<String>,
    named: Vec<Named>,
    imported: BTreeMap<String, Named>,
}

impl Reader {
    fn read(&mut self) {
        let tokens = std::mem::take(&mut self.tokens);
        // How many braces deep, and at which depths a module with a body of its own began.
        let (mut depth, mut inside) = (0, Vec::new());
        let mut at = 0;
        while at < tokens.len() {
            let before = if at == 0 { "" } else { &tokens[at - 1] };
            match tokens[at].as_str() {
                "{" => depth += 1,
                "}" => {
                    depth -= 1;
                    inside.pop_if(|begun| *begun == depth);
                }
                "mod" if tokens.get(at + 2).is_some_and(|t| t == ";") => {
                    self.children.push(tokens[at + 1].clone());
                }
                "mod" if tokens.get(at + 2).is_some_and(|t| t == "{") => inside.push(depth),
                "use" => {
                    at += 1 + self.read_use(&tokens[at + 1..], inside.len());
                    continue;
                }
                word if before != "::" && before != "." && is_word(word) => {
                    let path = path_at(&tokens[at..]);
                    if path.len() > 1 {
                        at += 2 * path.len() - 1;
                        self.name(path, inside.len());
                        continue;
                    }
                }
                _ => {}
            }
            at += 1;
        }
    }

    /// Reads the tree behind `use` and returns how many tokens it is.
    fn read_use(&mut self, tokens: &[Token], depth: usize) -> usize {
        let end = tokens.iter().position(|token| token == ";").unwrap_or(tokens.len());
        let mut stack: Vec<Named> = vec![Vec::new()];
        let mut path = Vec::new();
        for (at, token) in tokens[..end].iter().enumerate() {
            match token.as_str() {
                "{" => stack.push(std::mem::take(&mut path)),
                "::" => {}
                "," => path = stack.last().cloned().unwrap_or_default(),
                "}" => {
                    stack.pop();
                    path = Vec::new();
                }
                "as" => {}
                word => {
                    if path.is_empty() {
                        path = stack.last().cloned().unwrap_or_default();
                    }
                    let renamed = at > 0 && tokens[at - 1] == "as";
                    if !renamed && word != "*" {
                        path.push(word.to_owned());
                    }
                    let follows = tokens.get(at + 1).map_or("", String::as_str);
                    if matches!(follows, "," | "}" | ";") && !path.is_empty() {
                        let name = if renamed { word } else { &path[path.len() - 1] };
                        if depth == 0 {
                            self.imported.insert(name.to_owned(), path.clone());
                        }
                        self.name(path.clone(), depth);
                    }
                }
            }
        }
        end
    }

    /// Notes a path written inside `depth` modules with bodies of their own in this file.
    fn name(&mut self, mut path: Named, depth: usize) {
        let up = path.iter().take_while(|word| *word == "super").count();
        path.drain(..up.min(depth));
        if !path.is_empty() {
            self.named.push(path);
        }
    }
}

fn is_word(token: &str) -> bool {
    token.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

fn path_at(tokens: &[Token]) -> Named {
    let mut path = vec![tokens[0].clone()];
    while let [colons, word, ..] = &tokens[2 * path.len() - 1..]
        && colons == "::"
        && is_word(word)
    {
        path.push(word.clone());
    }
    path
}

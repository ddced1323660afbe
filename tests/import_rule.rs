//! Checks the structure of the code by reading the sources: which room may use which others (the map in `src/lib.rs`; unit
//! tests may use more), and that each name of a type has one meaning.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The rooms from the ground floor up. Each may import only rooms on the floors below its own.
const FLOORS: [&[&str]; 11] = [
    &["time", "supervise", "workers", "secret"],
    &["health", "message", "kept_file"],
    &["mqtt", "tls"],
    &["net", "access"],
    &["journal", "import"],
    &["exchange"],
    &["status"],
    &["service", "mdns"],
    // doors of equal rank
    &["broker", "sensors", "upstream", "http"],
    // announces the doors
    &["home_assistant"],
    &["app"],
];

/// The configuration uses the settings of the doors and of the other rooms, and the ground floors.
const CONFIG: [&str; 5] = ["time", "message", "secret", "tls", "settings"];
/// The command line uses the rooms whose data a command shows. It uses only the settings of doors, except that `explain` and
/// `doctor` ask about upstreams, pins and the topics of announced devices.
const CLI: [&str; 8] = ["access", "app", "config", "import", "journal", "message", "mqtt", "secret"];
const CLI_PARTS: [&str; 6] =
    ["upstream::reach", "upstream::rule", "upstream::tls", "sensors::holder", "home_assistant::device", "time"];

fn may_import(room: &str, import: &str) -> bool {
    let parts: Vec<&str> = import.split("::").collect();
    let target = parts[0];
    if target == room || target == "self" {
        return true;
    }
    let floor = |name: &str| FLOORS.iter().position(|rooms| rooms.contains(&name));
    match room {
        "main" => target == "cli",
        "lib" => false,
        "cli" => {
            let is_part = CLI_PARTS.iter().any(|part| import == *part || import.starts_with(&format!("{part}::")));
            CLI.contains(&target) || is_part || parts.contains(&"settings")
        }
        "config" => CONFIG.contains(&target) || (parts.contains(&"settings") && floor(target).is_some()),
        "app" => target != "cli",
        _ => match (floor(room), floor(target)) {
            (Some(own), Some(below)) => below < own,
            (None, _) => panic!("{room} is a room without a floor"),
            (_, None) => false,
        },
    }
}

/// Crates that only one place may name.
const CRATES: [(&str, &str); 4] = [
    ("zbus", "mdns/avahi.rs"),
    ("rppal", "sensors/rppal.rs"),
    ("rumqttd", "exchange/"),
    ("rumqttc", "upstream/client/"),
];

/// Unit tests in files of their own: `x/tests.rs`, or `x/tests/` if there are several files.
fn is_test(path: &Path) -> bool {
    path.ends_with("tests.rs") || path.ends_with("tests")
}

fn sources() -> Vec<(PathBuf, String)> {
    fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).unwrap().flatten() {
            let path = entry.path();
            if is_test(&path) {
                continue;
            }
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut paths = Vec::new();
    walk(&root, &mut paths);
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).unwrap();
        let text = code(without_tests(&text));
        (path.strip_prefix(&root).unwrap().to_owned(), text)
    };
    paths.into_iter().map(read).collect()
}

fn without_tests(source: &str) -> &str {
    let is_module = |at: &usize| source[*at..].lines().nth(2).is_some_and(|line| line.contains("mod "));
    let tests = source.match_indices("\n#[cfg(test)]\n").map(|(at, _)| at).find(is_module);
    tests.map_or(source, |at| &source[..at])
}

/// The source without comments and string literals, which may contain any words.
fn code(source: &str) -> String {
    let mut code = String::new();
    for line in source.lines() {
        let (mut in_string, mut previous) = (false, ' ');
        for (at, character) in line.char_indices() {
            if !in_string && line[at..].starts_with("//") {
                break;
            }
            if character == '"' && previous != '\\' && previous != '\'' {
                in_string = !in_string;
            }
            if !in_string {
                code.push(character);
            }
            previous = if previous == '\\' { ' ' } else { character };
        }
        code.push('\n');
    }
    code
}

/// All paths below `crate::` and `pigateway::`, `use` groups spelt out.
fn imports(code: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for start in ["crate::", "pigateway::"] {
        for (at, _) in code.match_indices(start) {
            let before = code[..at].chars().next_back();
            if before.is_none_or(|before| !before.is_alphanumeric() && before != '_' && before != '$' && before != ':')
            {
                expand("", &code[at + start.len()..], &mut found);
            }
        }
    }
    found
}

/// Adds the path at the start of `rest`, or each path of its group. Returns the rest.
fn expand<'a>(prefix: &str, rest: &'a str, found: &mut BTreeSet<String>) -> &'a str {
    let rest = rest.trim_start();
    if let Some(mut group) = rest.strip_prefix('{') {
        loop {
            group = expand(prefix, group, found).trim_start();
            match group.strip_prefix(',') {
                Some(more) if !more.trim_start().starts_with('}') => group = more,
                Some(more) => return more.trim_start().trim_start_matches('}'),
                None => return group.strip_prefix('}').unwrap_or(group),
            }
        }
    }
    let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
    let path = if prefix.is_empty() { rest[..end].to_owned() } else { format!("{prefix}::{}", &rest[..end]) };
    let after = &rest[end..];
    match after.strip_prefix("::") {
        Some(more) => expand(&path, more, found),
        None => {
            found.insert(path);
            let after = after.trim_start();
            let renamed = after.strip_prefix("as ").map(|alias| alias.trim_start());
            renamed.map_or(after, |alias| alias.trim_start_matches(|c: char| c.is_alphanumeric() || c == '_'))
        }
    }
}

fn room(path: &Path) -> String {
    let first = path.components().next().unwrap().as_os_str().to_string_lossy();
    first.trim_end_matches(".rs").to_owned()
}

#[test]
fn rooms_import_only_what_stands_below_them() {
    let mut wrong = Vec::new();
    for (path, code) in sources() {
        let room = room(&path);
        for import in imports(&code) {
            if !may_import(&room, &import) {
                wrong.push(format!("{}: {import}", path.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn only_one_place_names_each_of_these_crates() {
    for (name, place) in CRATES {
        let mut seen = false;
        for (path, code) in sources() {
            let path = path.to_string_lossy().into_owned();
            let named = code.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == name);
            // `mod rppal;` is the file's own name
            let own_module = place.ends_with(&format!("{name}.rs")) && path.starts_with(&room(Path::new(place)));
            if named && !path.starts_with(place) && !own_module {
                panic!("{path} names {name}");
            }
            seen |= named && path.starts_with(place);
        }
        assert!(
            seen || !Path::new(env!("CARGO_MANIFEST_DIR")).join("src").join(place).exists(),
            "{name}: no longer used?"
        );
    }
}

/// All modules by their paths, each with its definitions and imports.
struct Modules(BTreeMap<String, (BTreeSet<String>, BTreeSet<String>)>);

/// `a/b.rs` and `a/b/mod.rs` as `a::b`.
fn module(path: &Path) -> String {
    let path = path.with_extension("").to_string_lossy().replace('/', "::");
    path.strip_suffix("::mod").unwrap_or(&path).to_owned()
}

/// The parent of a module. The parent of a room is the crate, which has no name here.
fn parent(module: &str) -> &str {
    module.rsplit_once("::").map_or("", |(parent, _)| parent)
}

/// The names that this code defines, inside and outside of functions.
fn defined(code: &str) -> BTreeSet<String> {
    const KINDS: [&str; 7] = ["struct", "enum", "type", "trait", "fn", "const", "static"];
    let words: Vec<&str> = code.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|w| !w.is_empty()).collect();
    words.windows(2).filter(|pair| KINDS.contains(&pair[0])).map(|pair| pair[1].to_owned()).collect()
}

impl Modules {
    fn read() -> Modules {
        let mut modules = BTreeMap::new();
        for (path, code) in sources() {
            let module = module(&path);
            let mut found = imports(&code);
            let mut base = module.as_str();
            for level in 1..4 {
                // `super::` from here; `super::super::` from the module around
                base = parent(base);
                let start = "super::".repeat(level);
                for (at, _) in code.match_indices(&start) {
                    let rest = &code[at + start.len()..];
                    if !code[..at].ends_with("super::") && !rest.starts_with("super::") {
                        expand(base, rest, &mut found);
                    }
                }
            }
            modules.insert(module, (defined(&code), found));
        }
        Modules(modules)
    }

    /// The module that defines the target of a path, even if other modules re-export it.
    fn leads_to(&self, path: &str, depth: usize) -> Option<&str> {
        let mut module = path;
        while !self.0.contains_key(module) {
            (module, _) = module.rsplit_once("::")?;
        }
        let (name, (defined, _)) = (path[module.len()..].trim_start_matches("::"), self.0.get(module)?);
        let name = name.split("::").next().unwrap_or_default();
        if name.is_empty() || defined.contains(name) || depth > 4 {
            return self.0.get_key_value(module).map(|(module, _)| module.as_str());
        }
        let within = self.0.keys().filter(|below| parent(below) == module);
        let own = within.filter(|below| self.0[below.as_str()].0.contains(name)).map(String::as_str);
        own.chain([module]).find_map(|module| self.0.get_key_value(module)).map(|(module, _)| module.as_str())
    }

    /// For each part of a module the other parts that it uses.
    fn uses(&self, module: &str) -> BTreeMap<String, BTreeSet<String>> {
        let part = |of: &str| -> Option<String> {
            let below = if module.is_empty() { of } else { of.strip_prefix(module)?.strip_prefix("::")? };
            Some(below.split("::").next().unwrap().to_owned())
        };
        let mut uses: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (from, (_, imports)) in &self.0 {
            let Some(from) = part(from) else { continue };
            let targets = imports.iter().filter_map(|path| self.leads_to(path, 0)).filter_map(part);
            uses.entry(from.clone()).or_default().extend(targets.filter(|to| *to != from));
        }
        uses
    }
}

/// The parts that use each other, directly or through others.
fn circle(uses: &BTreeMap<String, BTreeSet<String>>) -> Vec<&String> {
    let leads_back = |start: &String| {
        let (mut seen, mut next) = (BTreeSet::new(), vec![start]);
        while let Some(part) = next.pop() {
            for target in uses.get(part).into_iter().flatten() {
                if target == start {
                    return true;
                }
                if seen.insert(target) {
                    next.push(target);
                }
            }
        }
        false
    };
    uses.keys().filter(|part| leads_back(part)).collect()
}

/// A part of a module is a file beside its `mod.rs`, or a folder there with all of its files. Parts of one module use each
/// other in one direction only. The definitions in the `mod.rs` itself are for all parts, and it may use all of them, so it
/// does not count as a part.
#[test]
fn the_parts_of_a_module_use_each_other_in_one_direction() {
    let modules = Modules::read();
    let all: BTreeSet<&str> =
        modules.0.keys().map(|module| parent(module)).filter(|module| !module.is_empty()).collect();
    let mut wrong = Vec::new();
    for module in all {
        let uses = modules.uses(module);
        let found = circle(&uses);
        if !found.is_empty() {
            wrong.push(format!("{module}: {found:?}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn a_circle_is_seen() {
    let uses = |pairs: &[(&str, &str)]| {
        let mut uses: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for (from, to) in pairs {
            uses.entry((*from).into()).or_default().insert((*to).into());
        }
        uses
    };
    assert!(circle(&uses(&[("a", "b"), ("b", "c"), ("a", "c")])).is_empty());
    assert_eq!(circle(&uses(&[("a", "b"), ("b", "c"), ("c", "b")])), ["b", "c"]);
}

/// The types that this code defines. An indented `type` belongs to a trait, which decides its name.
fn types(code: &str) -> Vec<&str> {
    let mut found = Vec::new();
    for line in code.lines() {
        let words: Vec<&str> = line.split_whitespace().skip_while(|word| word.starts_with("pub")).take(2).collect();
        let [kind, name] = words[..] else { continue };
        if matches!(kind, "struct" | "enum" | "trait") || (kind == "type" && !line.starts_with(' ')) {
            found.push(name.split(|c: char| !c.is_alphanumeric() && c != '_').next().unwrap());
        }
    }
    found.retain(|name| !name.is_empty());
    found
}

#[test]
fn the_name_of_a_type_stands_for_one_thing() {
    let mut places: BTreeMap<String, Vec<PathBuf>> = BTreeMap::new();
    for (path, code) in sources() {
        for name in types(&code) {
            places.entry(name.to_owned()).or_default().push(path.clone());
        }
    }
    assert!(places.len() > 300, "only {} types were found", places.len());
    let double: Vec<_> = places.into_iter().filter(|(_, places)| places.len() > 1).collect();
    assert!(double.is_empty(), "{double:#?}");
}

#[test]
fn the_reader_of_types_sees_what_is_defined() {
    let source = "pub(crate) struct Edge<'a> {\nenum Level {\n    type Output = u8;\ntype Pair = (u8, u8);\npub trait Clock: Send {\n";
    assert_eq!(types(source), ["Edge", "Level", "Pair", "Clock"]);
}

#[test]
fn the_reader_of_imports_sees_groups_and_paths() {
    let source = "use crate::broker::{self, codec::{Reason, Version as V}, ingress};\n// crate::app\nlet x = \"crate::cli\";\n\
                  fn f() { crate::time::now(); }\n";
    let found: Vec<String> = imports(&code(source)).into_iter().collect();
    let expected = ["broker::codec::Reason", "broker::codec::Version", "broker::ingress", "broker::self", "time::now"];
    assert_eq!(found, expected);
}

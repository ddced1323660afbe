//! The pages agree with the program: links lead somewhere, files and tests that they name exist, the configuration page
//! explains exactly the keys of the example, the exit codes are those of the program, each dependency was looked up among
//! the advisories, and each curve of the benchmark has its plot and its table.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

#[path = "bench/figures.rs"]
mod figures;
#[path = "bench/plot.rs"]
mod plot;
#[path = "bench/plots_in_step.rs"]
mod plots_in_step;

use pigateway::app::exit_code::ExitCode;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn text(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap()
}

/// All files below a directory with one of these extensions, relative to the root.
fn files(below: &str, extension: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut directories = vec![root().join(below)];
    while let Some(directory) = directories.pop() {
        for path in fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|other| other == extension) {
                found.push(path.strip_prefix(root()).unwrap().to_owned());
            }
        }
    }
    found
}

/// The pages: those at the top, and those in `docs` and `.github`.
fn pages() -> Vec<(PathBuf, String)> {
    let mut paths = [files("docs", "md"), files(".github", "md")].concat();
    for path in fs::read_dir(root()).unwrap().map(|entry| entry.unwrap().path()) {
        if path.extension().is_some_and(|extension| extension == "md") {
            paths.push(path.strip_prefix(root()).unwrap().to_owned());
        }
    }
    assert!(paths.len() >= 9, "{paths:?}");
    paths.into_iter().map(|path| (path.clone(), fs::read_to_string(root().join(path)).unwrap())).collect()
}

/// The lines outside of blocks of code, and those inside.
fn prose_and_code(page: &str) -> (String, String) {
    let (mut prose, mut code, mut in_code) = (String::new(), String::new(), false);
    for line in page.lines() {
        if line.trim_start().starts_with("```") {
            in_code = !in_code;
            continue;
        }
        let side = if in_code { &mut code } else { &mut prose };
        side.push_str(line);
        side.push('\n');
    }
    (prose, code)
}

/// The texts in single backticks.
fn quoted(prose: &str) -> Vec<&str> {
    prose.lines().flat_map(|line| line.split('`').skip(1).step_by(2)).collect()
}

/// The targets of links and pictures.
fn links(prose: &str) -> Vec<&str> {
    let without_code: Vec<&str> = prose.split("](").skip(1).collect();
    without_code.into_iter().filter_map(|rest| rest.split_once(')').map(|(target, _)| target)).collect()
}

/// The anchors of a page's headings, as hosts of repositories form them.
fn anchors(page: &str) -> BTreeSet<String> {
    let (prose, _) = prose_and_code(page);
    let headings = prose.lines().filter(|line| line.starts_with('#')).map(|line| line.trim_start_matches('#').trim());
    let anchor = |heading: &str| -> String {
        let kept = heading.to_lowercase();
        let kept = kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
        kept.map(|c| if c == ' ' { '-' } else { c }).collect()
    };
    headings.map(anchor).collect()
}

#[test]
fn the_front_page_is_short() {
    let lines = text("README.md").lines().count();
    assert!(lines <= 250, "README.md has {lines} lines: long tables belong to docs/");
}

#[test]
fn links_lead_somewhere() {
    let mut wrong = Vec::new();
    let mut seen = 0;
    for (path, page) in pages() {
        for target in links(&prose_and_code(&page).0) {
            if target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            seen += 1;
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let place = if file.is_empty() { path.clone() } else { path.parent().unwrap().join(file) };
            let whole = root().join(&place);
            let missing = !whole.exists();
            if missing || (!anchor.is_empty() && !anchors(&fs::read_to_string(&whole).unwrap()).contains(anchor)) {
                wrong.push(format!("{}: {target}", path.display()));
            }
        }
    }
    assert!(seen >= 20, "only {seen} links were found");
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// The file or directory of the project that a word names, and perhaps a function in it.
fn named(word: &str) -> Option<(&str, Option<&str>)> {
    const PLACES: [&str; 8] =
        ["src/", "tests/", "docs/", "deploy/", "systemd/", "fuzz/", ".github/workflows/", "proptest-regressions/"];
    let word = word.trim_matches(|c: char| ",.;:()\"'".contains(c));
    let is_path = PLACES.iter().any(|place| word.starts_with(place)) && !word.contains(['*', '<', '{', '$']);
    is_path.then(|| match word.split_once("::") {
        Some((path, function)) => (path, Some(function.rsplit("::").next().unwrap())),
        None => (word, None),
    })
}

/// Whether this file, or one below this directory, has this function.
fn has_function(path: &str, function: &str) -> bool {
    let whole = root().join(path);
    let sources =
        if whole.is_dir() { [files(path, "rs"), files(path, "py")].concat() } else { vec![PathBuf::from(path)] };
    sources.iter().any(|source| {
        let source = fs::read_to_string(root().join(source)).unwrap_or_default();
        ["fn ", "def "].iter().any(|start| source.contains(&format!("{start}{function}(")))
    })
}

#[test]
fn what_the_pages_name_exists() {
    let mut wrong = BTreeSet::new();
    let mut seen = 0;
    for (path, page) in pages() {
        let (prose, code) = prose_and_code(&page);
        let spans = quoted(&prose).into_iter().filter_map(|span| span.split_whitespace().next());
        for (place, function) in spans.chain(code.split_whitespace()).filter_map(named) {
            seen += 1;
            if !root().join(place).exists() {
                wrong.insert(format!("{}: {place} is not there", path.display()));
            } else if function.is_some_and(|function| !has_function(place, function)) {
                wrong.insert(format!("{}: {place} has no {}", path.display(), function.unwrap()));
            }
        }
    }
    assert!(seen >= 60, "only {seen} names were found");
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn the_readers_of_pages_see_links_names_and_headings() {
    let page =
        "# A `b.c`: d, e_f\n\n[x](y.md#z) and ![p](q.png) `tests/run --x`, `src/lib.rs::main`\n```sh\n[no](no)\n```\n";
    let (prose, code) = prose_and_code(page);
    assert_eq!(links(&prose), ["y.md#z", "q.png"]);
    assert_eq!(code, "[no](no)\n");
    assert_eq!(anchors(page), BTreeSet::from(["a-bc-d-e_f".to_owned()]));
    assert_eq!(quoted(&prose), ["b.c", "tests/run --x", "src/lib.rs::main"]);
    assert_eq!(named("src/a.rs::b::c,"), Some(("src/a.rs", Some("c"))));
    assert_eq!(named("target/deploy/"), None);
    assert!(has_function("tests", "has_function") && !has_function("tests", "has_no_such_function"));
}

/// The tables of the example as `[a.b]` and its keys as `a.b.c`, including those in comments.
#[test]
fn a_row_of_a_table_stands_on_one_line() {
    let is_row = |line: &str| line.starts_with("//! |") || line.starts_with("/// |");
    let mut broken = Vec::new();
    for path in files("src", "rs") {
        let source = fs::read_to_string(root().join(&path)).unwrap();
        let rows = source.lines().map(str::trim).filter(|line| is_row(line));
        broken.extend(rows.filter(|row| !row.ends_with('|')).map(|row| format!("{}: {row}", path.display())));
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

fn keys_of_the_example() -> BTreeSet<String> {
    let mut keys = BTreeSet::new();
    let mut table = String::new();
    for line in text("deploy/pigateway.example.toml").lines() {
        let line = line.strip_prefix("# ").unwrap_or(line);
        let name = line.split_once(" = ").map_or("", |(name, _)| name);
        if let Some((name, _)) = line.trim_start_matches('[').split_once(']').filter(|_| line.starts_with('[')) {
            table = name.to_owned();
            keys.insert(format!("[{table}]"));
        } else if !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase() || c == '_') {
            let value: toml::Table = line.parse().unwrap_or_else(|error| panic!("{line}: {error}"));
            match &value[name] {
                // on the page, a table in one line is written with dots
                toml::Value::Table(inner) => {
                    // the comment may name keys that are left out: "# optional: ca, cert, key; ..."
                    let (_, more) = line.split_once("# optional: ").unwrap_or_default();
                    let more = more.split(';').next().unwrap_or_default().split(", ").filter(|key| !key.is_empty());
                    let all = inner.keys().map(String::as_str).chain(more);
                    keys.extend(all.map(|inner| format!("{table}.{name}.{inner}")));
                }
                _ => drop(keys.insert(format!("{table}.{name}"))),
            }
        }
    }
    keys
}

/// The tables and keys of the page: its headings are the tables, and the first cell of each row is a key.
fn keys_of_the_page() -> BTreeSet<String> {
    let mut keys = BTreeSet::new();
    let mut table = String::new();
    for line in text("docs/configuration.md").lines() {
        if let Some(heading) = line.strip_prefix("## ") {
            table = heading.trim_matches('`').trim_matches(['[', ']']).to_owned();
            if heading.starts_with("`[") {
                keys.insert(format!("[{table}]"));
            }
        } else if let Some(key) = line.strip_prefix("| `").and_then(|rest| rest.split_once('`')) {
            assert!(keys.insert(format!("{table}.{}", key.0)), "{table}.{} twice", key.0);
        }
    }
    keys
}

#[test]
fn every_key_is_explained() {
    let (example, page) = (keys_of_the_example(), keys_of_the_page());
    assert!(example.len() >= 60 && example.contains("broker.listener.tls.client_ca"), "{example:#?}");
    let missing: Vec<_> = example.difference(&page).collect();
    let unknown: Vec<_> = page.difference(&example).collect();
    assert!(missing.is_empty(), "docs/configuration.md does not explain {missing:#?}");
    assert!(unknown.is_empty(), "deploy/pigateway.example.toml does not have {unknown:#?}");
}

#[test]
fn exit_codes_have_one_table() {
    let page = text("docs/commands.md");
    let section = page.split("\n## ").find(|section| section.starts_with("Exit codes\n")).unwrap();
    let rows: Vec<&str> = section.lines().filter(|line| line.starts_with("| ")).skip(1).collect();
    let row = |code: &ExitCode| format!("| {} | {} |", code.number(), code.meaning());
    assert_eq!(rows, ExitCode::ALL.iter().map(row).collect::<Vec<_>>());
    assert!(ExitCode::ALL.is_sorted_by_key(|code| code.number()));
    // no other page may state such numbers, except for the changelog, which describes earlier states
    let states_a_number = |line: &str| {
        let line = line.to_lowercase();
        ["exit code ", "exit status ", "ends with "]
            .iter()
            .any(|words| line.split(words).skip(1).any(|rest| rest.starts_with(|first: char| first.is_ascii_digit())))
    };
    assert!(states_a_number("Exit code 1: there are problems"));
    for (path, page) in pages().into_iter().filter(|(path, _)| path != Path::new("CHANGELOG.md")) {
        let wrong: Vec<&str> = page.lines().filter(|line| states_a_number(line)).collect();
        assert!(wrong.is_empty(), "{}: link to docs/commands.md#exit-codes instead: {wrong:?}", path.display());
    }
    // the facts on which the unit relies
    let unit = text("systemd/pigateway.service");
    let meaning = |number: u8| ExitCode::ALL.iter().find(|code| code.number() == number).unwrap().meaning();
    assert!(unit.contains("\nRestartPreventExitStatus=2 78\n") && unit.contains("[ $$? -eq 66 ]"));
    assert!(
        meaning(2).contains("command line is not valid") && meaning(78).contains("configuration file is not valid")
    );
    assert!(meaning(66).contains("a valid configuration names files that cannot be read"));
}

/// The number of statements of each section of the standards, by section. They are numbered from 1.
const VERSION_5: &str = "1.5.4 3, 1.5.5 1, 1.5.7 1, 2.1.3 1, 2.2.1 2-6, 2.2.2 1, 3.1.0 2, 3.1.2 30, 3.1.3 12, 3.1.4 6, \
    3.2.0 2, 3.2.2 22, 3.3.1 13, 3.3.2 20, 3.3.4 10, 3.4.2 3, 3.5.2 3, 3.6.1 1, 3.6.2 3, 3.7.2 3, 3.8.1 1, 3.8.3 5, \
    3.8.4 8, 3.9.2 2, 3.9.3 2, 3.10.1 1, 3.10.3 2, 3.10.4 6, 3.11.2 2, 3.11.3 2, 3.12.4 1, 3.14.0 1, 3.14.1 1, 3.14.2 4, \
    3.14.4 3, 3.15.1 1, 3.15.2 3, 4.1.0 2, 4.2 1, 4.3.1 1, 4.3.2 5, 4.3.3 13, 4.4.0 2, 4.5.0 2, 4.6.0 6, 4.7.0 1, 4.7.1 2, \
    4.7.2 1, 4.7.3 4, 4.8.2 6, 4.9.0 3, 4.12.0 7, 4.12.1 2, 4.13.1 1, 4.13.2 1, 6.0.0 4";
const VERSION_3_1_1: &str = "1.5.3 3, 2.2.2 2, 2.3.1 7, 3.1.0 2, 3.1.2 24, 3.1.3 11, 3.1.4 5, 3.2.0 1, 3.2.2 6, 3.3.1 12, \
    3.3.2 3, 3.3.4 1, 3.3.5 2, 3.6.1 1, 3.8.1 1, 3.8.3 4, 3.8.4 6, 3.9.3 2, 3.10.1 1, 3.10.3 2, 3.10.4 6, 3.12.4 1, \
    3.14.1 1, 3.14.4 3, 4.1.0 2, 4.3.1 1, 4.3.2 2, 4.3.3 2, 4.4.0 1, 4.5.0 2, 4.6.0 6, 4.7.1 3, 4.7.2 1, 4.7.3 4, 4.8.0 2, \
    6.0.0 4, 7.0.0 2, 7.1.1 1, 7.1.2 1";

/// The numbers of a standard's statements, in order.
fn statements(sections: &str) -> Vec<String> {
    let section = |text: &str| -> Vec<String> {
        let (section, count) = text.trim().split_once(' ').unwrap();
        let (first, last) = count.split_once('-').unwrap_or(("1", count));
        let numbers = first.parse::<u32>().unwrap()..=last.parse().unwrap();
        numbers.map(|number| format!("[MQTT-{section}-{number}]")).collect()
    };
    sections.split(',').flat_map(section).collect()
}

#[test]
fn every_statement_of_the_standards_has_its_row() {
    let page = text("docs/conformance.md");
    for (heading, sections, count) in [("MQTT 5.0", VERSION_5, 251), ("MQTT 3.1.1", VERSION_3_1_1, 141)] {
        let section = page.split("\n## ").find(|section| section.starts_with(&format!("{heading}\n"))).unwrap();
        let rows: Vec<Vec<&str>> = section
            .lines()
            .filter(|line| line.starts_with("| [MQTT-"))
            .map(|line| line.trim_matches('|').split(" | ").map(str::trim).collect())
            .collect();
        let expected = statements(sections);
        assert_eq!(expected.len(), count);
        assert_eq!(rows.iter().map(|row| row[0]).collect::<Vec<_>>(), expected, "{heading}: each once, in order");
        let (mut held, mut does_not_apply, mut open) = (0, 0, 0);
        for row in &rows {
            assert!(row.len() == 3 && row[1].len() > 10, "{row:?}");
            match row[2] {
                by if by.starts_with("Does not apply: ") => does_not_apply += 1,
                by if by.starts_with("Not held by a test yet") => open += 1,
                by => {
                    let tests = quoted(by);
                    assert!(!tests.is_empty(), "{row:?} names no test");
                    // `what_the_pages_name_exists` checks that they exist
                    assert!(tests.iter().all(|test| named(test).is_some_and(|(_, test)| test.is_some())), "{row:?}");
                    held += 1;
                }
            }
        }
        let counts = format!("| {heading} | {count} | {held} | {does_not_apply} | {open} |");
        assert!(page.lines().any(|line| line == counts), "the counts are {counts}");
    }
}

/// For each crate of `docs/advisories.md` its versions, the advisories with the versions that fix them, and the last cell.
fn rows_of_advisories() -> BTreeMap<String, (Vec<String>, String, String)> {
    let page = text("docs/advisories.md");
    let mut rows = BTreeMap::new();
    for line in page.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        let [name, versions, advisories, concerned] = cells[..] else { panic!("not four cells: {line}") };
        let versions = versions.split(", ").map(str::to_owned).collect();
        let row = (versions, advisories.to_owned(), concerned.to_owned());
        let name = name.trim_matches('`').to_owned();
        assert!(rows.insert(name, row).is_none(), "twice: {line}");
    }
    rows
}

/// `0.9.12+spec-1.1.0` as numbers that can be compared.
fn numbers(version: &str) -> Vec<u64> {
    let version = version.split(['+', '-']).next().unwrap();
    version.split('.').map(|number| number.parse().unwrap_or_else(|_| panic!("not a version: {version}"))).collect()
}

/// Whether the version `ours` has the fix of an advisory that these versions have fixed. If one of them is in the same line
/// of releases as `ours`, only that one counts. Otherwise all of them must be at most `ours`.
fn mended(ours: &str, mending: &[&str]) -> bool {
    let ours = numbers(ours);
    let line = |version: &[u64]| if version[0] == 0 { version[..2].to_vec() } else { version[..1].to_vec() };
    let mending: Vec<Vec<u64>> = mending.iter().map(|version| numbers(version)).collect();
    match mending.iter().find(|version| line(version) == line(&ours)) {
        Some(version) => *version <= ours,
        None => mending.iter().all(|version| *version <= ours),
    }
}

const HOW_TO_LOOK: &str = "a dependency has changed: run `cargo deny check advisories` with a network (or look its new version up in the \
    advisories of RustSec), and then write what was found and the day into docs/advisories.md";

#[test]
fn every_dependency_was_looked_up_among_the_advisories() {
    let lock: toml::Table = text("Cargo.lock").parse().unwrap();
    let mut locked: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for package in lock["package"].as_array().unwrap() {
        let [name, version] = ["name", "version"].map(|key| package[key].as_str().unwrap());
        locked.entry(name).or_default().insert(version);
    }
    let rows = rows_of_advisories();
    let mut wrong = Vec::new();
    for (name, (versions, _, _)) in &rows {
        let looked_up: BTreeSet<&str> = versions.iter().map(String::as_str).collect();
        let now = locked.get(name.as_str()).cloned().unwrap_or_default();
        if looked_up != now {
            wrong.push(format!("{name}: the page has {looked_up:?}, Cargo.lock {now:?}"));
        }
    }
    let manifest: toml::Table = text("Cargo.toml").parse().unwrap();
    let dependencies = manifest["dependencies"].as_table().unwrap();
    for (name, _) in dependencies.iter().filter(|(_, dependency)| dependency.get("path").is_none()) {
        if !rows.contains_key(name) {
            wrong.push(format!("{name}: has no row"));
        }
    }
    assert!(rows.len() >= 100, "only {} rows were found", rows.len());
    assert!(wrong.is_empty(), "{HOW_TO_LOOK}: {wrong:#?}");
}

#[test]
fn what_concerns_nobody_is_mended_or_says_why() {
    let mut seen = 0;
    for (name, (versions, advisories, concerned)) in rows_of_advisories() {
        assert!(!versions.is_empty() && !advisories.is_empty(), "{name}: an empty cell");
        if concerned != "no" {
            let reason = concerned.strip_prefix("no: ").or(concerned.strip_prefix("yes: "));
            assert!(reason.is_some_and(|reason| reason.len() > 20), "{name}: {concerned:?} gives no reason");
            continue;
        }
        for advisory in advisories.split("RUSTSEC-").skip(1) {
            let mending = advisory.split_once('(').and_then(|(_, rest)| rest.split_once(')')).map(|(inner, _)| inner);
            let mending = mending.unwrap_or_else(|| panic!("{name}: no version mends RUSTSEC-{advisory}"));
            seen += 1;
            let mending: Vec<&str> = mending.split(", ").collect();
            let good = mending == ["withdrawn"] || versions.iter().all(|version| mended(version, &mending));
            assert!(good, "{name} {versions:?} is not as new as what mends RUSTSEC-{advisory}: {HOW_TO_LOOK}");
        }
    }
    assert!(seen >= 50, "only {seen} advisories were found");
    assert!(mended("0.8.8", &["0.8.6", "0.9.3"]) && !mended("0.8.5", &["0.8.6", "0.9.3"]));
    assert!(mended("1.10.0", &["1.9.1"]) && mended("2.0.0", &["0.3.4"]) && !mended("0.10.0", &["0.8.6", "0.10.1"]));
    assert!(!mended("0.7.0", &["0.8.6", "0.9.3"]));
}

#[test]
fn workflows_call_commands_that_exist() {
    let mut seen = BTreeSet::new();
    for path in files(".github/workflows", "yml") {
        for line in fs::read_to_string(root().join(&path)).unwrap().lines() {
            let Some((_, command)) = line.split_once("run: ") else { continue };
            let program = command.split_whitespace().next().unwrap();
            if !program.contains('/') {
                continue;
            }
            let mode = fs::metadata(root().join(program)).map(|file| file.permissions().mode());
            assert!(mode.is_ok_and(|mode| mode & 0o111 != 0), "{}: {program} cannot be run", path.display());
            seen.insert(program.to_owned());
        }
    }
    assert_eq!(seen, BTreeSet::from(["deploy/release".to_owned(), "tests/run".to_owned()]));
}

#[test]
fn a_release_has_the_changelog_s_entry() {
    let release = |arguments: &[&str]| {
        let output = Command::new(root().join("deploy/release")).args(arguments).output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.success(), text(output.stdout), text(output.stderr))
    };
    let (good, notes, _) = release(&["--notes", "v0.1.0"]);
    let changelog = text("CHANGELOG.md");
    let entry = changelog.split("\n## ").find(|entry| entry.starts_with("0.1.0")).unwrap();
    assert!(good && notes.starts_with("- ") && !notes.contains("## "), "{notes}");
    assert_eq!(notes.trim(), entry.split_once('\n').unwrap().1.trim());
    let (good, _, error) = release(&["--notes", "99.0.0"]);
    assert!(!good && error.contains("CHANGELOG.md has no entry for 99.0.0"), "{error}");
    // nothing is built if the places that name the version do not agree
    let (good, _, error) = release(&["1.2"]);
    assert!(!good && error.contains("usage"), "{error}");
}

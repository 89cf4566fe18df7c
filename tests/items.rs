//! The items of K §8.2 (D) and §8.3 (A) and the tests that carry their numbers: read from the sources and from the table in
//! docs/assurance.md, so that neither can lose one unnoticed. And all that is cited of K is in docs/kcore.md.
#![forbid(unsafe_code)]

#[path = "common/named.rs"]
mod named;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use named::tests_of;

/// Every item: the defects of the published code, and the gaps of its design.
fn items() -> Vec<String> {
    (1..=14).map(|n| format!("D{n}")).chain((1..=24).map(|n| format!("A{n}"))).collect()
}

/// Items about what the core does not have, and why: none.
const EXCLUDED: &[(&str, &str)] = &[];

/// Where tests stand.
const ROOTS: [&str; 3] = ["src", "tests", "kserv"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Path and text of every Rust file below `dir`.
fn files(dir: &Path) -> Vec<(PathBuf, String)> {
    let (mut out, mut todo) = (vec![], vec![dir.to_owned()]);
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() && path.file_name().is_none_or(|name| name != "target") {
                todo.push(path);
            } else if path.extension().is_some_and(|ext| ext == "rs") {
                let text = fs::read_to_string(&path).unwrap();
                out.push((path, text));
            }
        }
    }
    out
}

/// The items whose numbers stand at the beginning of a test's name.
fn numbers_of(name: &str) -> Vec<String> {
    let number = |word: &&str| {
        let digits = word.strip_prefix(['a', 'd', 'm']);
        digits.is_some_and(|digits| !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()))
    };
    name.split('_').take_while(number).map(str::to_uppercase).collect()
}

/// Item -> its tests, over all sources.
fn carried() -> BTreeMap<String, Vec<String>> {
    let mut out: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (_, text) in ROOTS.iter().flat_map(|dir| files(&root().join(dir))) {
        for name in tests_of(&text) {
            numbers_of(name).into_iter().for_each(|item| out.entry(item).or_default().push(name.to_owned()));
        }
    }
    out
}

/// The row of an item in the table of docs/assurance.md.
fn row<'a>(doc: &'a str, item: &str) -> &'a str {
    let mut rows = doc.lines().filter(|line| line.starts_with(&format!("| {item} |")));
    let found = rows.next().unwrap_or_else(|| panic!("docs/assurance.md has no row for {item}"));
    assert_eq!(rows.next(), None, "docs/assurance.md has two rows for {item}");
    found
}

#[test]
fn every_item_has_a_test_that_carries_its_number_or_is_excluded_and_never_both() {
    let carried = carried();
    for item in items() {
        let excluded = EXCLUDED.iter().any(|(name, _)| *name == item);
        assert_ne!(carried.contains_key(&item), excluded, "{item}: a test that carries its number, or a reason");
    }
    let known = items();
    let strange = carried.keys().filter(|item| !item.starts_with('M') && !known.contains(item));
    assert_eq!(strange.collect::<Vec<_>>(), [""; 0], "K has no such item");
}

#[test]
fn the_table_in_the_documentation_names_exactly_these_tests() {
    let doc = fs::read_to_string(root().join("docs/assurance.md")).unwrap();
    let carried = carried();
    for item in items() {
        let row = row(&doc, &item);
        if let Some((_, why)) = EXCLUDED.iter().find(|(name, _)| *name == item) {
            assert!(row.contains(why), "{item}: the table does not say \"{why}\"");
            continue;
        }
        // Every second piece stands between backticks.
        let mut named: Vec<_> = row.split('`').skip(1).step_by(2).collect();
        let mut tests: Vec<_> = carried[&item].iter().map(String::as_str).collect();
        named.sort_unstable();
        tests.sort_unstable();
        assert_eq!(named, tests, "{item}: left: the table, right: the sources");
    }
}

#[test]
fn the_table_names_only_cases_that_qemu_runs() {
    let doc = fs::read_to_string(root().join("docs/assurance.md")).unwrap();
    let cases: String = files(&root().join("tests/qemu")).into_iter().map(|(_, text)| text).collect();
    let checks = fs::read_to_string(root().join("kserv/mini/src/checks/mod.rs")).unwrap();
    let mut seen = 0;
    for item in items() {
        for title in row(&doc, &item).split('"').skip(1).step_by(2) {
            assert!(cases.contains(title) || checks.contains(title), "{item}: QEMU has no case \"{title}\"");
            seen += 1;
        }
    }
    assert!(seen > 10);
}

#[test]
fn a23_serrors_of_the_host_are_its_own_and_those_of_a_vm_are_not_the_vms() {
    // HCR_EL2 of the real CPU is not compiled for this machine, and QEMU makes no physical SErrors: so what is written there is read.
    let function = |file: &str, start: &str| {
        let text = fs::read_to_string(root().join(file)).unwrap();
        let at = text.find(start).unwrap_or_else(|| panic!("{file} has no {start}"));
        text[at..].split("\n}").next().unwrap().to_owned()
    };
    let host = function("src/abstract_machine/cpu/el2.rs", "fn host_hcr(");
    assert!(host.contains("HCR_EL2::VM::Enable"), "{host}");
    assert!(host.contains("HCR_EL2::AMO::SET"), "SErrors come to the core, which gives the host's back: {host}");
    for routed in ["IMO", "FMO", "TGE"] {
        assert!(!host.contains(&format!("HCR_EL2::{routed}")), "the host's HCR_EL2 has {routed}");
    }
    let vm = function("src/abstract_machine/cpu/traps.rs", "fn vm_hcr(");
    for routed in ["IMO", "FMO", "AMO"] {
        let field = format!("+ HCR_EL2::{routed}::SET");
        assert!(vm.contains(&field), "a VM's interrupts and SErrors come to EL2: {vm}");
    }
}

/// What docs/kcore.md has: its sections (`§6.1`), its layers and items (`L5`, `A4`), and the rows of tables (`§6.1 17`, `§6.4 a`).
fn headings(doc: &str) -> BTreeSet<String> {
    let (mut out, mut section) = (BTreeSet::new(), String::new());
    for line in doc.lines() {
        if let Some(title) = line.strip_prefix("## ").or(line.strip_prefix("### ")) {
            let number = title.split(' ').next().unwrap().trim_end_matches('.');
            if number.starts_with(|first: char| first.is_ascii_digit()) {
                section = format!("§{number}");
                out.insert(section.clone());
            }
        } else if let Some(item) = line.strip_prefix("- **") {
            out.insert(item.split([' ', '.', '*']).next().unwrap().to_owned());
        } else if let Some((row, _)) = line.strip_prefix("| ").and_then(|row| row.split_once(" |")) {
            out.insert(format!("{section} {row}"));
        }
    }
    out
}

/// Whether `word` is a layer or an item: `L5`, `A4`.
fn is_item(word: &str) -> bool {
    let number = word.strip_prefix(['L', 'A', 'D', 'M']);
    number.is_some_and(|number| !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()))
}

/// What a text cites of K: sections and their items behind each "K §", items behind "K ", and names behind "K: ".
fn citations(text: &str) -> Vec<String> {
    let lines = text.lines().map(|line| line.trim_start().trim_start_matches(['/', '!', '*']));
    let text = lines.collect::<Vec<_>>().join(" ");
    let mut out = vec![];
    for cited in text.split("K ").skip(1) {
        let (mut section, mut words) = (String::new(), cited.split_whitespace());
        while let Some(word) = words.next().filter(|word| !word.starts_with('(')) {
            for part in word.trim_end_matches([',', ';', '.', ':', ')']).trim_end_matches("'s").split('-') {
                let row = matches!(section.as_str(), "§6.1" if part.parse::<u8>().is_ok())
                    || section == "§6.4" && part.len() == 1;
                if let Some(number) = part.strip_prefix('§') {
                    section = format!("§{number}");
                    out.push(section.clone());
                } else if is_item(part) {
                    out.push(part.to_owned());
                } else if row {
                    out.push(format!("{section} {part}"));
                } else if part.contains('.') && part.parse::<f32>().is_ok() {
                    out.push(format!("§{part}"));
                } else if !matches!(part, "and" | "item" | "with") {
                    words = "".split_whitespace();
                }
            }
            if word.ends_with([';', '.', ':', ')']) {
                break;
            }
        }
    }
    for names in text.split("K: `").skip(1) {
        let mut pieces = names.split('`');
        out.extend(pieces.next().map(|name| format!("`{}", name.split(['(', '[']).next().unwrap())));
        while pieces.next().is_some_and(|between| matches!(between, ", " | "; ")) {
            out.extend(pieces.next().map(|name| format!("`{name}")));
        }
    }
    out
}

#[test]
fn what_is_cited_of_k_is_in_its_page() {
    let doc = fs::read_to_string(root().join("docs/kcore.md")).unwrap();
    let (known, mut seen) = (headings(&doc), 0);
    let pages = ["README.md", "docs/architecture.md", "docs/assurance.md", "docs/status.md"];
    let pages = pages.map(|page| (root().join(page), fs::read_to_string(root().join(page)).unwrap()));
    let named = |name: &str| ["`", "(", "["].iter().any(|end| doc.contains(&format!("{name}{end}")));
    let mut wrong = vec![];
    for (path, text) in ROOTS.iter().flat_map(|dir| files(&root().join(dir))).chain(pages) {
        // This file has examples.
        for cited in citations(&text).into_iter().filter(|_| !path.ends_with("tests/items.rs")) {
            let there = if cited.starts_with('`') { named(&cited) } else { known.contains(&cited) };
            if !there {
                wrong.push(format!("{}: {cited}", path.display()));
            }
            seen += 1;
        }
    }
    assert_eq!(wrong, [""; 0], "docs/kcore.md does not have it");
    assert!(seen > 200, "{seen}");
}

#[test]
fn citations_are_read_as_they_are_meant() {
    let text = "//! Source: K §2 L16,\n//! L17, §8.3 A1 (x). As K A8 says. K §6.1 2 and 17; 4. K §1.2 (y), §3.3. K: `a`, `b`. `c`";
    let expected = ["§2", "L16", "L17", "§8.3", "A1", "A8", "§6.1", "§6.1 2", "§6.1 17", "§1.2", "`a", "`b"];
    assert_eq!(citations(text), expected);
    assert_eq!(citations("K §3.3-3.7 K §6.4 a."), ["§3.3", "§3.7", "§6.4", "§6.4 a"]);
    let known = headings("## 6. What\n### 6.1 In\n| 17 | says |\n- **A1.** A\n- **L13 Mem** [x]. y\n");
    assert!(["§6", "§6.1", "§6.1 17", "A1", "L13"].iter().all(|cited| known.contains(*cited)), "{known:?}");
}

#[test]
fn names_are_read_as_they_are_meant() {
    let text = "#[test]\nfn a7_d3_no(x: u8) {}\n#[test]\n#[ignore = \"long\"]\nfn a9_late() {}\nfn a1_helper() {}";
    assert_eq!(tests_of(text), ["a7_d3_no"]);
    let text =
        "// #[test]\nfn a1_x() {}\n/* fn y() {}\n#[test]\nfn a2_z() {}\n*/\n#[test]\n/* why */\nfn a3_there() {}";
    assert_eq!(tests_of(text), ["a3_there"]);
    assert_eq!(numbers_of("a7_d3_no_memory_d4"), ["A7", "D3"]);
    assert_eq!(numbers_of("a_page_a1"), [""; 0]);
    assert_eq!(numbers_of("d11_d14_x"), ["D11", "D14"]);
}

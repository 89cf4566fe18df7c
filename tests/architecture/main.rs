//! The picture of docs/architecture.md, read from the sources: a layer calls only layers below it; `unsafe` stands only at the
//! bottom; each layer's file says what it is.
#![forbid(unsafe_code)]

mod callers;
mod source;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use source::{Token, has_tests_of_its_own, hidden_names, module_of, paths, tokens, without_tests};

/// The layers from the bottom up. A directory's own file (`npt`) holds the state that its layers share.
const ORDER: &[&str] = &[
    "abstract_machine",
    "interface",
    "locks",
    "npt",
    "npt::descriptor",
    "npt::pt_alloc",
    "npt::pt_walk",
    "npt::npt_walk",
    "npt::npt_ops",
    "spt",
    "spt::mmio_pt_alloc",
    "spt::mmio_pt_walk",
    "spt::mmio_spt_walk",
    "spt::mmio_spt_ops",
    "memory::mem_region",
    "memory::page_index",
    "memory::page_manager",
    "memory",
    "memory::mem_manager",
    "memory::memory_ops",
    "vm::keys",
    "vm",
    "vm::vm_power",
    "vm::boot_core",
    "vm::authenticate",
    "vm::boot_aux",
    "vm::boot_ops",
    "vm::vm_memory",
    "vm::seal",
    "vm::host_calls",
    "mmio::its",
    "mmio::its_command",
    "mmio",
    "mmio::mmio_raw",
    "mmio::gic_redistributor",
    "mmio::gic_its",
    "mmio::mmio_ops_aux",
    "mmio::mmio_ops",
    "vcpu",
    "vcpu::exposure",
    "vcpu::el1",
    "vcpu::vcpu_ops_aux",
    "vcpu::vcpu_ops",
    "vcpu::ctxt_switch",
    "trap",
    "trap::mem_handler",
    "trap::fault_handler",
    "trap::trap_dispatcher",
    "trap::trap_handler_raw",
    "trap::trap_handler",
];

/// Files of layer directories that hold shared state or values, and so are no layers themselves.
const NO_LAYERS: &[&str] = &[
    "interface",
    "npt",
    "npt::descriptor",
    "spt",
    "memory",
    "vm::keys",
    "vm",
    "mmio",
    "mmio::its",
    "mmio::its_command",
    "vcpu",
    "vcpu::exposure",
    "vcpu::el1",
    "trap",
];

/// Most lines of a file.
const MOST_LINES: usize = 500;

/// Where a module stands: in the order, beside it, or above everything.
#[derive(PartialEq, Eq, Debug)]
enum Place {
    Layer(usize),
    Platform,
    Spec,
}

fn place_of(module: &[String]) -> Option<Place> {
    match module.first()?.as_str() {
        "platform" => return Some(Place::Platform),
        "spec" => return Some(Place::Spec),
        _ => {}
    }
    // All of abstract_machine is layer 0; elsewhere a module deeper than the table belongs to its nearest layer.
    let names = (1..=module.len()).rev().map(|n| module[..n].join("::"));
    names.into_iter().find_map(|name| ORDER.iter().position(|layer| *layer == name)).map(Place::Layer)
}

/// What is wrong with the imports of one file.
fn upward_imports(module: &str, text: &str, known: &BTreeSet<Vec<String>>) -> Vec<String> {
    let module: Vec<String> = module.split("::").map(String::from).collect();
    let mut wrong = vec![];
    let Some(from) = place_of(&module) else { return vec![format!("{module:?} has no place in the order")] };
    let tokens = without_tests(tokens(text));
    let is_layer = |least: usize| matches!(from, Place::Layer(n) if n >= least);
    if is_layer(0) {
        let hidden = hidden_names(&tokens, is_layer(1)).into_iter();
        wrong.extend(hidden.map(|what| format!("{}: {what} hides what it reaches", module.join("::"))));
    }
    for path in paths(&tokens, &module, known) {
        let Some(target) = module_of(&path, known) else {
            // What lib.rs calls by another name. The interface has a root of its own, and the core is no crate that it knows.
            let is_core = module[0] != "interface";
            if is_core
                && path.first().is_some_and(|first| known.iter().all(|module| module[0] != *first))
                && is_layer(0)
            {
                wrong.push(format!("{} reaches {}, which is no module", module.join("::"), path.join("::")));
            }
            continue;
        };
        let to = place_of(&target);
        let fine = match (&from, &to) {
            (Place::Platform | Place::Spec, _) => true,
            (Place::Layer(0), Some(Place::Platform)) => true,
            (Place::Layer(from), Some(Place::Layer(to))) => to <= from,
            _ => false,
        };
        if !fine {
            wrong.push(format!("{} reaches up to {}", module.join("::"), path.join("::")));
        }
    }
    wrong
}

fn has_word(text: &str, word: &str) -> bool {
    without_tests(tokens(text)).contains(&Token::Word(word.into()))
}

/// `.unwrap()`, `.expect(`, `panic!` and their relatives, outside tests.
fn gives_up(text: &str) -> Vec<String> {
    let tokens = without_tests(tokens(text));
    let is = |n: usize, mark| tokens.get(n) == Some(&Token::Mark(mark));
    let found = tokens.iter().enumerate().filter_map(|(n, token)| {
        let Token::Word(word) = token else { return None };
        let wrong = match word.as_str() {
            "unwrap" | "expect" => n > 0 && is(n - 1, '.') && is(n + 1, '('),
            "panic" | "todo" | "unimplemented" => is(n + 1, '!'),
            _ => false,
        };
        wrong.then(|| word.clone())
    });
    found.collect()
}

/// What the header of a layer's file does not say.
fn header_lacks(text: &str) -> Vec<&'static str> {
    let header: String = text.lines().take_while(|line| line.starts_with("//!")).collect::<Vec<_>>().join("\n");
    let lower = header.to_lowercase();
    let mut lacks = vec![];
    if !header.starts_with("//! Layer") {
        lacks.push("a first line that names the layer");
    }
    for word in ["lock", "specification", "source", "below", "k §"] {
        if !lower.contains(word) {
            lacks.push(word);
        }
    }
    lacks
}

/// Crates that the core stands on; the project's user named them.
const CRATES: &[&str] = &["aarch64_cpu", "tock_registers", "spin", "buddy_system_allocator", "fdt", "log"];

fn src() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// Module path and text of every source file, `lib.rs` and `main.rs` and files of tests left out.
fn sources() -> Vec<(String, String)> {
    let all = files(&src()).into_iter().filter(|(module, _)| !["lib", "main"].contains(&module.as_str()));
    let all = all.map(|(module, text)| (module.strip_suffix("::mod").unwrap_or(&module).to_owned(), text));
    without_files_of_tests(all.collect())
}

/// Without modules `tests` that are compiled for tests only: the file above declares them so.
fn without_files_of_tests(all: Vec<(String, String)>) -> Vec<(String, String)> {
    let tested: BTreeSet<String> =
        all.iter().filter(|(_, text)| has_tests_of_its_own(text)).map(|(module, _)| module.clone()).collect();
    let is_test = |module: &str| {
        let above = module.match_indices("::tests").filter(|(at, word)| {
            let rest = &module[at + word.len()..];
            rest.is_empty() || rest.starts_with("::")
        });
        above.into_iter().any(|(at, _)| tested.contains(&module[..at]))
    };
    all.into_iter().filter(|(module, _)| !is_test(module)).collect()
}

/// Path (with `::`) and text of every Rust file below `root`.
fn files(root: &Path) -> Vec<(String, String)> {
    let (mut out, mut todo) = (vec![], vec![root.to_owned()]);
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                todo.push(path);
            } else if path.extension().is_some_and(|ext| ext == "rs") {
                let relative = path.strip_prefix(root).unwrap().with_extension("");
                let parts: Vec<_> = relative.iter().map(|part| part.to_string_lossy().into_owned()).collect();
                out.push((parts.join("::"), fs::read_to_string(&path).unwrap()));
            }
        }
    }
    out.sort();
    out
}

/// Every Rust file of the host's side.
fn kserv() -> Vec<(String, String)> {
    files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("kserv"))
}

fn known(sources: &[(String, String)]) -> BTreeSet<Vec<String>> {
    // `platform` also where a tree has none yet.
    let names = sources.iter().map(|(module, _)| module.as_str()).chain(["platform"]);
    names.map(|module| module.split("::").map(String::from).collect()).collect()
}

fn may_be_unsafe(module: &str) -> bool {
    let bottom = module.starts_with("abstract_machine") || module.starts_with("platform");
    bottom && !module.starts_with("abstract_machine::sim")
}

fn assert_none(wrong: &[String]) {
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn a_layer_calls_only_layers_below_it() {
    let sources = sources();
    let known = known(&sources);
    let wrong: Vec<_> = sources.iter().flat_map(|(module, text)| upward_imports(module, text, &known)).collect();
    assert_none(&wrong);
    println!("{} files, {} places in the order", sources.len(), ORDER.len());
}

#[test]
fn unsafe_stands_only_at_the_bottom_and_is_forbidden_elsewhere() {
    let above: Vec<_> = sources().into_iter().filter(|(module, _)| !may_be_unsafe(module)).collect();
    let uses = above.iter().filter(|(_, text)| has_word(text, "unsafe"));
    // The interface is a package: its lib.rs says it for all of it.
    let package = |module: &str| module.starts_with("interface::src::") && module != "interface::src::lib";
    let alone = above.iter().filter(|(module, _)| !package(module));
    let allows = alone.filter(|(_, text)| !text.contains("#![forbid(unsafe_code)]"));
    assert_none(&uses.map(|(module, _)| format!("{module} uses unsafe")).collect::<Vec<_>>());
    assert_none(&allows.map(|(module, _)| format!("{module} does not forbid unsafe")).collect::<Vec<_>>());
}

#[test]
fn a_layers_file_begins_with_what_it_is() {
    let is_layer =
        |module: &str| ORDER.contains(&module) && !NO_LAYERS.contains(&module) && module != "abstract_machine";
    let layers: Vec<_> = sources().into_iter().filter(|(module, _)| is_layer(module)).collect();
    assert!(layers.len() >= 14);
    let wrong = layers.iter().map(|(module, text)| (module, header_lacks(text))).filter(|(_, lacks)| !lacks.is_empty());
    assert_none(&wrong.map(|(module, lacks)| format!("{module}: the header lacks {lacks:?}")).collect::<Vec<_>>());
    let bare = sources().into_iter().filter(|(_, text)| !text.starts_with("//!"));
    assert_none(&bare.map(|(module, _)| format!("{module} has no header")).collect::<Vec<_>>());
}

#[test]
fn no_file_is_two_things() {
    let long = sources().into_iter().map(|(module, text)| (module, text.lines().count()));
    let long = long.filter(|(_, lines)| *lines > MOST_LINES).map(|(module, lines)| format!("{module}: {lines} lines"));
    assert_none(&long.collect::<Vec<_>>());
}

#[test]
fn each_crate_that_was_asked_for_does_its_job_in_the_core() {
    let all = files(&src());
    let is_used = |name: &str| {
        let path = [Token::Word(name.into()), Token::PathSep];
        all.iter().any(|(_, text)| without_tests(tokens(text)).windows(2).any(|pair| *pair == path))
    };
    assert_none(
        &CRATES.iter().filter(|name| !is_used(name)).map(|name| format!("{name} is not used")).collect::<Vec<_>>(),
    );
}

#[test]
fn no_file_of_the_tests_and_of_the_tool_is_two_things() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let all = ["tests", "scripts/tool"].into_iter().flat_map(|dir| {
        let here = files(&root.join(dir)).into_iter();
        here.map(move |(file, text)| (format!("{dir} {file}"), text.lines().count()))
    });
    let long = all.filter(|(_, lines)| *lines > MOST_LINES).map(|(file, lines)| format!("{file}: {lines} lines"));
    assert_none(&long.collect::<Vec<_>>());
}

#[test]
fn no_layer_gives_up() {
    let layers = sources().into_iter().filter(|(module, _)| {
        let path: Vec<String> = module.split("::").map(String::from).collect();
        matches!(place_of(&path), Some(Place::Layer(n)) if n > 0)
    });
    let wrong =
        layers.flat_map(|(module, text)| gives_up(&text).into_iter().map(move |what| format!("{module}: {what}")));
    assert_none(&wrong.collect::<Vec<_>>());
}

#[test]
fn the_hosts_side_is_without_unsafe_but_for_the_mini_hosts_arch_module_and_what_takes_cs_pointers() {
    // The driver's model is a file of functions for C, and tests that call them as C does.
    let may = |file: &str| file.starts_with("mini::src::arch") || file.starts_with("linux::model");
    let above: Vec<_> = kserv().into_iter().filter(|(file, _)| !may(file)).collect();
    assert!(above.len() > 10);
    let uses = above.iter().filter(|(_, text)| has_word(text, "unsafe"));
    assert_none(&uses.map(|(file, _)| format!("kserv {file} uses unsafe")).collect::<Vec<_>>());
    // A program's root cannot forbid what one module of it may.
    let model = above.iter().filter(|(file, _)| file.starts_with("model"));
    let allows = model.filter(|(_, text)| !text.contains("#![forbid(unsafe_code)]"));
    assert_none(&allows.map(|(file, _)| format!("kserv {file} does not forbid unsafe")).collect::<Vec<_>>());
}

#[test]
fn the_hosts_files_say_what_they_are_and_are_one_thing() {
    let bare = kserv().into_iter().filter(|(_, text)| !text.starts_with("//!")).map(|(file, _)| file);
    assert_none(&bare.collect::<Vec<_>>());
    let long = kserv().into_iter().map(|(file, text)| (file, text.lines().count()));
    let long =
        long.filter(|(_, lines)| *lines > MOST_LINES).map(|(file, lines)| format!("kserv {file}: {lines} lines"));
    assert_none(&long.collect::<Vec<_>>());
}

#[test]
fn the_model_never_gives_up() {
    let model = kserv().into_iter().filter(|(file, _)| file.starts_with("model::src"));
    let wrong =
        model.flat_map(|(file, text)| gives_up(&text).into_iter().map(move |what| format!("kserv {file}: {what}")));
    assert_none(&wrong.collect::<Vec<_>>());
}

#[test]
fn an_upward_import_is_caught_however_it_is_written() {
    let known = known(&sources());
    for (module, text) in [
        ("locks", "use crate::npt::Npt;"),
        ("npt::pt_walk", "use super::npt_ops;"),
        ("npt::pt_walk", "use crate::{locks::Lock, npt::{descriptor::Desc, npt_walk::{self, Walk}}};"),
        ("npt::descriptor", "fn f() { crate::memory::memory_ops::is_host_memory(x) }"),
        ("memory::page_index", "mod inner { use super::super::mem_manager::Denied; }"),
        ("memory", "use mem_manager::Denied;"),
        ("abstract_machine::cpu", "use crate::locks::Lock;"),
        ("trap::fault_handler", "use crate::platform::console;"),
        ("npt::npt_ops", "use crate::spec::npt;"),
        // By another name.
        ("npt::npt_walk", "use super::*; fn f() { npt_ops::forget_host(n) }"),
        ("npt::npt_walk", "use super::{descriptor::*};"),
        ("npt::npt_walk", "use tock_registers::*;"),
        ("abstract_machine::cpu", "use crate::*;"),
        ("npt::npt_walk", "use crate as c; fn f() { c::npt::npt_ops::f() }"),
        ("npt::npt_walk", "use super as s;"),
        ("npt::npt_walk", "use super::{self as s, Npt};"),
        ("npt::npt_walk", "extern crate self as c;"),
        ("npt::npt_walk", "use crate::npt; fn f() { npt::npt_ops::f() }"),
        ("npt::npt_walk", "fn f() { n::npt_ops::f() } use crate::npt as n;"),
        ("npt::npt_walk", "use crate::{npt::{self as n}}; fn f() { n::npt_ops::f() }"),
        ("locks", "use crate::mm::f;"),
        // Behind what is for tests.
        ("locks", "struct A { #[cfg(test)] a: u8, b: u8 } use crate::npt::Npt;"),
        ("locks", "struct A { #[cfg(test)] a: u8 } use crate::npt::Npt;"),
        ("locks", "fn f() { match a { #[cfg(test)] A(_) => b(1, 2), _ => crate::npt::f() } }"),
        ("locks", "fn f(#[cfg(test)] a: u8, b: crate::npt::Npt) {}"),
        ("locks", "fn f() { g(#[cfg(test)] 1, crate::npt::g()) }"),
        ("locks", "mod tests { use crate::npt::Npt; }"),
    ] {
        assert!(!upward_imports(module, text, &known).is_empty(), "{module}: {text}");
    }
}

#[test]
fn downward_imports_tests_comments_and_strings_are_left_alone() {
    let known = known(&sources());
    for (module, text) in [
        ("npt::npt_ops", "use super::npt_walk::{self, Walk}; use crate::abstract_machine::addr::Pa;"),
        ("locks", "#[cfg(test)] mod tests { use crate::npt::Npt; } fn f() {}"),
        ("locks", "#[cfg(test)] #[path = \"x\"] pub(crate) fn f<A, B>(a: [u8; 2], b: B) { crate::npt::f() } fn g() {}"),
        ("locks", "struct A { #[cfg(test)] pub a: crate::npt::Npt, b: u8 }"),
        ("locks", "use crate::abstract_machine as npt_ops; fn f() { npt_ops::f(); x as u64 }"),
        ("abstract_machine::regs", "pub use fields::*;"),
        ("locks", "// use crate::npt::Npt;\n/* crate::npt */ const S: &str = \"crate::npt::Npt\";"),
        ("locks", "mod order { use super::Rank; } const C: char = '\\''; const D: char = '\"';"),
        ("memory", "use page_manager::S2Pages;"),
        ("abstract_machine::cpu", "use crate::platform::psci;"),
        ("platform", "use crate::trap::Core;"),
        ("trap::trap_dispatcher", "use crate::interface::HostCall;"),
    ] {
        assert_none(&upward_imports(module, text, &known));
    }
}

#[test]
fn a_file_of_tests_is_one_only_where_it_is_declared_so() {
    let left = |above: &str| {
        let all = [("locks", above), ("locks::tests", ""), ("locks::tests::more", ""), ("locks::testset", "")];
        let all = all.map(|(module, text)| (module.to_owned(), text.to_owned())).to_vec();
        without_files_of_tests(all).len()
    };
    assert_eq!(left("#[cfg(test)] mod tests;"), 2);
    assert_eq!(left("#[cfg(test)]\n#[path = \"x.rs\"]\nmod tests;"), 2);
    assert_eq!(left("mod tests;"), 4);
    assert_eq!(left("#[cfg(test)] fn f() {} mod tests;"), 4);
}

#[test]
fn the_crates_root_gives_modules_no_other_names() {
    let text = fs::read_to_string(src().join("lib.rs")).unwrap();
    let tokens = without_tests(tokens(&text));
    let uses = tokens.iter().filter(|token| **token == Token::Word("use".into())).count();
    assert_eq!((uses, hidden_names(&tokens, true)), (1, vec![]));
    assert!(text.contains("pub use corevisor_interface as interface;"));
}

#[test]
fn what_the_other_rules_forbid_is_caught() {
    assert!(has_word("fn f() { unsafe { g() } }", "unsafe"));
    assert!(!has_word("#![forbid(unsafe_code)] // unsafe", "unsafe"));
    assert_eq!(gives_up("fn f() { a.unwrap(); b.expect(\"c\"); panic!(\"d\") }"), ["unwrap", "expect", "panic"]);
    assert_eq!(gives_up("fn f() { a.unwrap_or(1) } #[cfg(test)] mod tests { fn f() { a.unwrap() } }"), [""; 0]);
    assert!(header_lacks("//! Something\nuse crate::x;").contains(&"lock"));
}

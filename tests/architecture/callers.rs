//! Functions of the core that nobody calls. Every module is public, so the compiler says nothing of them.
#![allow(missing_docs)]

use std::collections::BTreeMap;
use std::fs;

use super::source::{Token, tokens, without, without_tests};
use super::{sources, src};

/// Public functions that only tests and the specification call, and why they stand in `src` all the same.
const FOR_TESTS: &[(&str, &str)] = &[
    ("abstract_machine::regs::hypercall_registers", "spec::world hands a trap on as boot/vectors.S does"),
    ("npt::npt_ops::walk_s2pt", "memory::oracle, in test builds"),
    ("spt::mmio_spt_ops::walk_spt_block", "memory::oracle, in test builds"),
    ("spt::mmio_spt_walk::walk_smmu_pt", "the proof's; tests/devices looks at single leaves"),
];

/// Not the target's: the specification, the simulated machine, what tests put in the place of a device; and the interface, of which the host calls as much.
fn is_apart(module: &str) -> bool {
    let parts: Vec<&str> = module.split("::").collect();
    matches!(parts[0], "spec" | "interface") || parts.iter().any(|part| matches!(*part, "sim" | "oracle" | "fake"))
}

/// Public functions in these files whose name stands nowhere but where it is defined. A name that two functions have counts as called if one is.
fn uncalled(files: &[(String, String)], assembly: &str) -> Vec<String> {
    let word = |token: Option<&Token>| match token {
        Some(Token::Word(word)) => Some(word.clone()),
        _ => None,
    };
    let before_fn = ["const", "unsafe", "extern", "async", "crate", "super", "self", "in"];
    let (mut seen, mut public) = (BTreeMap::<String, usize>::new(), vec![]);
    for (module, text) in files {
        let tokens = without(without_tests(tokens(text)), "#[cfg(not(target_os = \"none\"))]");
        for n in 0..tokens.len() {
            let Some(name) = word(tokens.get(n)) else { continue };
            if n == 0 || word(tokens.get(n - 1)).as_deref() != Some("fn") {
                *seen.entry(name).or_default() += 1;
                continue;
            }
            let is_before = |token: &&Token| match token {
                Token::Word(word) => before_fn.contains(&word.as_str()),
                Token::Mark(mark) => matches!(mark, '(' | ')'),
                Token::PathSep => true,
            };
            let first = tokens[..n - 1].iter().rev().find(|token| !is_before(token));
            if word(first).as_deref() == Some("pub") {
                public.push((module.clone(), name));
            }
        }
    }
    let in_assembly = |name: &str| assembly.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == name);
    public.retain(|(_, name)| !seen.contains_key(name) && !in_assembly(name));
    public.into_iter().map(|(module, name)| format!("{module}::{name}")).collect()
}

#[test]
fn every_public_function_has_a_caller_or_a_reason() {
    let mut files = sources();
    files.retain(|(module, _)| !is_apart(module));
    files.push(("main".into(), fs::read_to_string(src().join("main.rs")).unwrap()));
    let boot = fs::read_dir(src().join("../boot")).unwrap();
    let assembly: String = boot.map(|entry| fs::read_to_string(entry.unwrap().path()).unwrap()).collect();
    let expected: Vec<_> = FOR_TESTS.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(uncalled(&files, &assembly), expected, "what nobody calls goes, or FOR_TESTS says why it stays");
}

#[test]
fn a_function_without_a_caller_is_found_and_one_with_a_caller_of_any_kind_is_not() {
    let text = "
        pub fn called() {} pub(crate) const fn alone() {} fn private() { called(); macro_names!(sym named); }
        pub unsafe extern \"C\" fn named() {} pub extern \"C\" fn from_assembly() {}
        #[cfg(not(target_os = \"none\"))] pub fn elsewhere() {}
        #[cfg(test)] mod tests { fn f() { super::alone() } }";
    assert_eq!(uncalled(&[("m".into(), text.into())], "bl from_assembly"), ["m::alone"]);
}

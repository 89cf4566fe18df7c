//! What a run is made of, without a machine.

use super::*;

#[test]
fn folders_of_dead_runs_go_and_those_of_living_ones_stay() {
    let dir = tempfile::tempdir().unwrap();
    let alive = format!("run-{}-x", std::process::id());
    for name in [&alive, "run-999999999-x", "dry-run", "run-x"] {
        std::fs::create_dir(dir.path().join(name)).unwrap();
    }
    remove_dead_runs(dir.path());
    let there = |name: &str| dir.path().join(name).exists();
    assert!(there(&alive) && there("dry-run") && there("run-x"));
    assert!(!there("run-999999999-x"));
}

#[test]
fn the_command_line_ends_with_what_was_appended() {
    let run = Run::new(&Project::at("/p"), Machine::virt()).append("corevisor.log=debug").append("").append("x=1");
    assert_eq!(run.command_line(), "console=ttyAMA0 panic=-1 quiet corevisor.log=debug x=1");
    assert_eq!(run.whole_append("only").command_line(), "only");
}

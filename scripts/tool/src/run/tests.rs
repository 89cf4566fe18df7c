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

#[test]
fn a_dry_run_goes_on_without_what_is_not_there_yet_and_not_with_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let project = Project::at(dir.path());
    let image = dir.path().join("Image");
    std::fs::write(&image, crate::arm64_image::tests::image(4096, 0)).unwrap();
    let run = Run::new(&project, Machine::virt());
    assert!(matches!(run.dry_run().unwrap(), (_, Some(RunError::File(_)))), "no host");

    let run = run.kernel(image.display().to_string()).no_initrd();
    assert!(matches!(run.dry_run().unwrap(), (_, Some(RunError::File(_)))), "no core");
    write(&project.core(), &[&crate::arm64_image::tests::image(4096, 0)]).unwrap();
    assert!(run.dry_run().unwrap().1.is_none());

    std::fs::write(&image, [0x1f, 0x8b, 8]).unwrap();
    assert!(matches!(run.dry_run().unwrap_err(), RunError::Bundle { path, .. } if path == image.display().to_string()));
    std::fs::write(&image, [0xff; 64]).unwrap();
    assert!(matches!(run.dry_run().unwrap_err(), RunError::Bundle { .. }));
}

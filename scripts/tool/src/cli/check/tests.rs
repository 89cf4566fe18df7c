//! Each line with which `--check-only` ends.

use super::super::{Cli, check_only_what};
use crate::error::chain;
use clap::Parser;
use std::path::PathBuf;

/// A folder with files of every kind that is wrong somewhere.
struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        let files = Self(tempfile::tempdir().unwrap());
        let put = |name: &str, content: &[u8]| std::fs::write(files.path(name), content).unwrap();
        put("empty", b"");
        put("gzip", &[0x1f, 0x8b, 8, 0]);
        put("text", &[b'x'; 100]);
        put("elf", b"\x7fELF.........");
        put("Image", &crate::arm64_image::tests::image(4096, 0));
        std::fs::create_dir(files.path("folder")).unwrap();
        files
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// What is said of a command line in which each @NAME is a file; its path is @NAME again. Nothing if it is good.
    fn said(&self, line: &str) -> String {
        let word = |word: &str| match word.strip_prefix('@') {
            Some(name) => self.path(name).display().to_string(),
            None => word.to_owned(),
        };
        let words = std::iter::once("corevisor-tool".to_owned()).chain(line.split(' ').map(word));
        let command = Cli::try_parse_from(words).unwrap().command;
        let said = check_only_what(&command).map_or_else(|error| chain(&error), |()| String::new());
        assert_eq!(said.lines().count(), usize::from(!said.is_empty()), "{said}");
        said.replace(&format!("{}/", self.0.path().display()), "@")
    }
}

const GZIP: &str = "it is compressed with gzip: unpack it first (`zcat FILE > Image`)";
const NOT_THERE: &str = "cannot find @none: No such file or directory (os error 2)";

#[test]
fn a_file_that_cannot_be_what_it_is_named_for_is_refused() {
    let files = Files::new();
    for option in ["--kernel", "--initrd", "--dtb", "--drive", "--script", "--raw-image", "--mini --vm", "--demo --key"]
    {
        assert_eq!(files.said(&format!("run {option} @folder")), "@folder is a folder: name a file", "{option}");
        assert_eq!(files.said(&format!("run {option} @none")), NOT_THERE, "{option}");
    }
    for option in ["--kernel", "--no-core --kernel", "--initrd", "--dtb", "--raw-image", "--mini --vm", "--demo --key"]
    {
        assert_eq!(files.said(&format!("run {option} @empty")), "@empty is empty: name another file", "{option}");
    }
    let is = |line: &str, said: String| assert_eq!(files.said(line), said, "{line}");
    is("run --kernel @gzip", format!("@gzip: the host kernel cannot be carried: {GZIP}"));
    is("run --no-core --kernel @gzip", format!("@gzip: the kernel does not boot as it is: {GZIP}"));
    is("run --mini --vm @gzip", format!("@gzip: the kernel does not boot as it is: {GZIP}"));
    is("run --guest --protected --guest-kernel @gzip", format!("@gzip: the kernel does not boot as it is: {GZIP}"));
    is("run --mini --vm @elf", "vm0: @elf is an ELF file: make a flat binary of it (llvm-objcopy -O binary)".into());
    is("run --dtb @text", "@text is no device tree: name a .dtb".into());
    for good in
        ["--kernel @Image", "--mini --vm @text", "--guest --guest-kernel @gzip", "--script @empty", "--drive @empty"]
    {
        is(&format!("run {good}"), String::new());
    }
    assert!(files.said("run --demo --key @text").starts_with("@text holds no Ed25519 key"));
}

#[test]
fn a_guest_or_a_check_that_there_is_not_is_refused_by_name() {
    let files = Files::new();
    let said = files.said("run --mini --vm guest:nobody");
    assert!(said.starts_with("there is no guest called nobody; there are: bait, ") && said.contains("hello"), "{said}");
    for good in [
        "--vm guest:hello",
        "--vm debian",
        "--check all",
        "--check storm,seed=7",
        "--check refused-calls",
        "--check costs",
    ] {
        assert_eq!(files.said(&format!("run --mini {good}")), "");
    }
    let said = files.said("run --mini --check nothing,seed=7");
    assert!(said.starts_with("there is no check called nothing; there are: all, refused-calls, "), "{said}");
}

#[test]
fn what_a_board_has_not_is_refused() {
    let files = Files::new();
    for (board, options) in [
        ("raspi4b", &["--gic 3", "--cpu max", "--smp 2", "--smmu", "--net", "--drive @text", "--memory 4G"][..]),
        ("zcu102", &["--gic 3", "--smp 5", "--memory 4G"]),
        ("imx8mp-evk", &["--gic 2"]),
    ] {
        assert_eq!(files.said(&format!("run --board {board} --smp 4 --memory 2G")), "");
        for option in options {
            let said = files.said(&format!("run --board {board} {option}"));
            assert!(said.starts_with(&format!("the {board} of QEMU has ")), "{said}");
        }
    }
    for board in ["imx8mp-evk", "zcu102"] {
        for what in ["--demo", "--mini --vm debian", "--guest --protected"] {
            let said = files.said(&format!("run --board {board} {what}"));
            assert!(said.contains(&format!("does not work on --board {board}, ")), "{said}");
            assert!(said.ends_with(": use --board virt"), "{said}");
        }
        assert_eq!(files.said(&format!("run --board {board} --guest")), "");
    }
    assert_eq!(files.said("run --board raspi4b --demo"), "");
}

#[test]
fn more_cpus_than_there_can_be_are_refused() {
    let files = Files::new();
    let core = "the core runs on at most 64 CPUs: give --smp 64 or less, or --no-core";
    let vms = |other| format!("a VM with a GICv2 has at most 8 vCPUs: give --vcpus 8 or less, or {other}");
    for (options, said) in [
        ("--smp 64", String::new()),
        ("--smp 65", core.into()),
        ("--smp 65 --no-core", String::new()),
        ("--gic 2 --smp 9", "a GICv2 serves at most 8 CPUs: give --smp 8 or less, or --gic 3".into()),
        ("--mini --vm debian --gic 2 --vcpus 9", vms("--gic 3")),
        ("--mini --vm debian --board raspi4b --vcpus 9", vms("--gic 3")),
        ("--mini --vm debian --vcpus 9", String::new()),
        ("--guest --vcpus 9", vms("--guest-gic 3")),
        ("--guest --gic 2 --guest-gic 2 --vcpus 9", vms("--guest-gic 3")),
        ("--guest --guest-gic 3 --vcpus 9", String::new()),
    ] {
        assert_eq!(files.said(&format!("run {options}")), said, "{options}");
    }
}

#[test]
fn the_cores_own_limit_of_cpus_is_the_one_that_is_said() {
    let core = include_str!("../../../../../src/platform/device_tree/description.rs");
    assert!(core.contains(&format!("pub const MAX_CPUS: usize = {};", super::MOST_CPUS)));
}

#[test]
fn an_option_that_would_come_to_nothing_is_refused() {
    let files = Files::new();
    for (options, said) in [
        ("--demo --script @text", "--demo has no shell"),
        ("--mini --vm guest:hello --script @text", "no VM here has a shell"),
        ("--mini --vm debian --vm-initrd @text --script @text", "no VM here has a shell"),
        ("--guest --key @text", "--key signs a protected guest"),
        ("--guest --kernel @Image", "--guest needs the driver"),
    ] {
        let line = files.said(&format!("run {options}"));
        assert!(line.starts_with(said), "{options}: {line}");
    }
    for good in [
        "--script @text",
        "--mini --vm debian --script @text",
        "--guest --script @text",
        "--guest --no-core --kernel @Image",
    ] {
        assert_eq!(files.said(&format!("run {good}")), "");
    }
    for line in [
        "run --guest --vm x",
        "run --demo --vm x",
        "run --guest --check all",
        "run --demo --guest-memory 1G",
        "run --mini --vm x --guest-kernel 6.1",
        "run --mini --vm x --guest-gic 3",
        "sign --public --dtb x",
        "sign --public --kernel x",
        "sign --public --initrd x",
        "bench --rounds 0",
    ] {
        assert!(Cli::try_parse_from(["corevisor-tool"].into_iter().chain(line.split(' '))).is_err(), "{line}");
    }
}

#[test]
fn files_to_deploy_and_numbers_are_refused_before_they_are_made() {
    let files = Files::new();
    let is = |line: &str, said: &str| assert_eq!(files.said(line), said, "{line}");
    is("image", "");
    is("image --kernel @Image --output @new/folder", "");
    is("image --kernel @gzip", &format!("@gzip: the host kernel cannot be carried: {GZIP}"));
    is("image --kernel @empty", "@empty is empty: name another file");
    is("image --initrd @empty", "@empty is empty: name another file");
    is("image --initrd @folder", "@folder is a folder: name a file");
    is("image --initrd @none", NOT_THERE);
    is("image --output @text", "@text is no folder: name another one");
    is("image --output @text/below", "@text is no folder: name another one");
    is("image --append x", "on virt the boot loader gives the command line: --append and --log are for raspi4b");
    is("image --board raspi4b --append x=1", "");
    is("image --board raspi4b --append x\ny", "--append has a line break: a kernel's command line is one line");
    let long = "x".repeat(2049);
    let said = "--append has 2049 bytes, and a kernel's command line has at most 2048: leave something out";
    is(&format!("image --board raspi4b --append {long}"), said);
    is(&format!("run --append {long}"), said);
    is("bench --json @new/file", "");
    is("bench --json @folder", "@folder is a folder: name a file");
    is("bench --json @text/file", "@text is no folder: name another one");
}

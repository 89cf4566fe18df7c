//! Programs that the cases need: made once in a run, under `target/test`.

use crate::bed::{Bed, Failure};
use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Mutex, PoisonError},
};

/// One at a time: two cases may want the same.
static MAKING: Mutex<()> = Mutex::new(());

/// `tests/host-module`, for Debian's 6.12.
pub fn module(bed: &Bed) -> Result<Vec<u8>, Failure> {
    let _lock = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
    let (source, dir) = places(bed, "host-module")?;
    for file in ["Kbuild", "corevisor_test.c"] {
        copy_if_changed(&source.join(file), &dir.join(file))?;
    }
    let script = bed.project.root().join("scripts/lib/build-module");
    make(Command::new(script).arg(&dir).arg("6.12"))?;
    Ok(std::fs::read(dir.join("corevisor_test.ko"))?)
}

/// The Linux driver, built for one of Debian's kernels: the module's file.
pub fn driver(bed: &Bed, kernel: &str) -> Result<PathBuf, Failure> {
    let _lock = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
    make(Command::new(bed.project.root().join("scripts/build-driver")).args(["--kernel", kernel]))?;
    Ok(bed.project.driver(kernel))
}

/// What DKMS does with the folder of `build-driver --source-only`: it is copied, and the line of its dkms.conf executed. Nothing of this project is used
/// for that; only the compiler is named, which is not the one that Debian built the kernel with.
const DKMS: &str = r#"
    set -eu
    source=$("$1/scripts/build-driver" --source-only)
    "$1/scripts/setup" "module-headers:$3"
    kernel_source_dir=$1/target/host/$3/headers/build dkms_tree=$2
    . "$source/dkms.conf"
    build=$dkms_tree/$PACKAGE_NAME/$PACKAGE_VERSION/build
    rm -rf "$build"
    mkdir -p "$build"
    cp -r "$source/." "$build"
    cd "$build"
    export MAKEFLAGS='ARCH=arm64 CROSS_COMPILE=aarch64-linux-gnu- CC=aarch64-linux-gnu-gcc CONFIG_DEBUG_INFO_BTF_MODULES='
    eval "${MAKE[0]}"
    cp "${BUILT_MODULE_NAME[0]}.ko" "$dkms_tree/"
"#;

/// The driver as DKMS builds it.
pub fn driver_by_dkms(bed: &Bed, kernel: &str) -> Result<PathBuf, Failure> {
    let _lock = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
    let dir = bed.project.root().join("target/test/dkms");
    make(Command::new("bash").args(["-c", DKMS, "dkms"]).arg(bed.project.root()).arg(&dir).arg(kernel))?;
    Ok(dir.join("corevisor_kvm.ko"))
}

/// The static program `tests/host-<name>/<name>.c`.
pub fn program(bed: &Bed, name: &str) -> Result<Vec<u8>, Failure> {
    let _lock = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
    let (source, dir) = places(bed, &format!("host-{name}"))?;
    let program = dir.join(name);
    let mut compiler = Command::new("aarch64-linux-gnu-gcc");
    let source = source.join(format!("{name}.c"));
    make(compiler.args(["-Wall", "-Wextra", "-O1", "-static", "-o"]).arg(&program).arg(source))?;
    Ok(std::fs::read(program)?)
}

/// `tests/host-programs/kvm-probe`, a static program of several files.
pub fn kvm_probe(bed: &Bed) -> Result<Vec<u8>, Failure> {
    let _lock = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
    let (source, dir) = places(bed, "host-programs/kvm-probe")?;
    let program = dir.join("kvm-probe");
    let files = std::fs::read_dir(&source)?.collect::<Result<Vec<_>, _>>()?;
    let parts = files.iter().map(|file| file.path()).filter(|file| file.extension().is_some_and(|end| end != "h"));
    let mut compiler = Command::new("aarch64-linux-gnu-gcc");
    make(compiler.args(["-Wall", "-Wextra", "-O1", "-static", "-o"]).arg(&program).args(parts))?;
    Ok(std::fs::read(program)?)
}

/// The kernel's KVM selftests: the folder of their programs.
pub fn kvm_selftests(bed: &Bed) -> Result<PathBuf, Failure> {
    let _lock = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
    make(Command::new(bed.project.root().join("scripts/setup")).arg("kvm-selftests"))?;
    Ok(bed.project.root().join("target/host/kvm-selftests"))
}

fn places(bed: &Bed, name: &str) -> Result<(PathBuf, PathBuf), Failure> {
    let dir = bed.project.root().join("target/test").join(name);
    std::fs::create_dir_all(&dir)?;
    Ok((bed.project.root().join("tests").join(name), dir))
}

fn copy_if_changed(from: &Path, to: &Path) -> Result<(), Failure> {
    let content = std::fs::read(from)?;
    if !std::fs::read(to).is_ok_and(|old| old == content) {
        std::fs::write(to, content)?;
    }
    Ok(())
}

fn make(command: &mut Command) -> Result<(), Failure> {
    let done = command.stdin(Stdio::null()).output()?;
    if done.status.success() {
        return Ok(());
    }
    Err(Failure::new(format!("{command:?} failed:\n{}", String::from_utf8_lossy(&done.stderr))))
}

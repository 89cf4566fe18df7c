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

/// What an administrator does with the folder of `build-driver --source-only`, by Debian's own dkms, in trees of the test's own. The compiler is named,
/// which is not the one that Debian built the kernel with, and `strip` is this architecture's. Nothing is signed: dkms would make a key in /var/lib for it.
/// It installs for root only: where the tests are not run by root, one that is root nowhere else.
const DKMS: &str = r#"
    set -eu
    root=$1 dir=$2 kernel=$3 module=corevisor-kvm/0.1.0
    source=$("$root/scripts/build-driver" --source-only)
    "$root/scripts/setup" dkms "module-headers:$kernel"
    release=$(cat "$root/target/host/$kernel/release")
    rm -rf "$dir"
    mkdir -p "$dir"/{bin,source,tree} "$dir/modules/$release"
    cp -r "$source" "$dir/source/${module/\//-}"
    ln -s "$root/target/host/$kernel/headers/build" "$dir/modules/$release/build"
    ln -s "$(command -v aarch64-linux-gnu-strip)" "$dir/bin/strip"
    export MAKEFLAGS='ARCH=arm64 CROSS_COMPILE=aarch64-linux-gnu- CC=aarch64-linux-gnu-gcc CONFIG_DEBUG_INFO_BTF_MODULES='
    export PATH=$dir/bin:$PATH:/usr/sbin:/sbin sign_file=$dir/none
    root_here=()
    [ "$(id -u)" = 0 ] || root_here=(unshare --map-root-user)
    dkms() { "${root_here[@]}" bash "$root/target/host/dkms" "$@" --sourcetree "$dir/source" --dkmstree "$dir/tree" --installtree "$dir/modules" --no-depmod; }
    is() { [ "$(dkms status)" = "$module$1" ] || { echo "dkms status: $(dkms status)"; exit 1; }; }
    exec >&2
    dkms add "$module"
    is ': added'
    dkms build "$module" -k "$release" -a aarch64
    is ", $release, aarch64: built"
    dkms install "$module" -k "$release" -a aarch64
    is ", $release, aarch64: installed"
    cp "$dir/modules/$release/updates/dkms/corevisor_kvm.ko" "$dir/"
    dkms remove "$module" -k "$release" -a aarch64
    [ -z "$(dkms status)" ] && [ ! -e "$dir/modules/$release/updates/dkms/corevisor_kvm.ko" ] || { echo "dkms leaves it there"; exit 1; }
"#;

/// The driver as Debian's dkms adds, builds and installs it.
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

/// Debian's stress-ng, its libraries and their loader: file names and contents.
pub fn stress_ng(bed: &Bed) -> Result<Vec<(String, Vec<u8>)>, Failure> {
    let _lock = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
    make(Command::new(bed.project.root().join("scripts/setup")).arg("stress-ng"))?;
    let files = std::fs::read_dir(bed.project.root().join("target/host/stress-ng/files"))?;
    files
        .map(|file| {
            let file = file?;
            Ok((file.file_name().to_string_lossy().into_owned(), std::fs::read(file.path())?))
        })
        .collect()
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

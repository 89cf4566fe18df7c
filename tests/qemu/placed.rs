//! A machine whose memory is filled by hand: core, device tree and initrd where a case wants them, and a few
//! instructions that start the core as a boot loader would. For device trees that QEMU itself would repair.

use crate::bed::{Bed, Failure};
use corevisor_tool::{
    bundle::bundle,
    initrd::{self, Extra},
    machine::Machine,
    project::Kernel,
    raspi::set,
    run::{Boot, Run},
};
use dtoolkit::{fdt::Fdt, model::DeviceTree};
use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};
use tempfile::TempDir;

const START: u64 = 0x4700_0000;
const TREE: u64 = 0x4800_0000;
const INITRD: u64 = 0x4900_0000;
/// Where QEMU's `-kernel` puts the core too.
pub const USUAL: u64 = 0x4020_0000;

/// What to put where.
pub struct Placed {
    /// The device tree that the core gets.
    pub tree: DeviceTree,
    /// Where the core's file goes.
    pub core_at: u64,
    /// Instructions that come first; they may use x1 to x3.
    pub before: Vec<u32>,
    /// The core's file, if it is another one than usual.
    pub core: Option<PathBuf>,
    machine: Machine,
    dir: TempDir,
}

impl Placed {
    /// QEMU's virt with `cpus` CPUs and 2 GiB, more options of `-M` and its device tree; the host runs `script`.
    pub fn virt(bed: &Bed, cpus: u32, options: &[&str], script: &str) -> Result<Self, Failure> {
        Self::virt_with(bed, cpus, options, script, Vec::new())
    }

    /// The same with more files for the host.
    pub fn virt_with(
        bed: &Bed,
        cpus: u32,
        options: &[&str],
        script: &str,
        files: Vec<(String, Vec<u8>)>,
    ) -> Result<Self, Failure> {
        let dir = tempfile::tempdir()?;
        let mut machine = Machine::virt().smp(cpus);
        let mut dump = "virt,virtualization=on,gic-version=3".to_owned();
        for option in options {
            machine = machine.machine_option(*option);
            dump.push_str(&format!(",{option}"));
        }
        let mut tree = qemu_tree(bed, &dump, cpus, dir.path())?;
        let initrd = initrd_of(bed, script, files)?;
        let chosen = tree.find_node_mut("/chosen").ok_or_else(|| Failure::new("QEMU's tree has no /chosen"))?;
        set(chosen, "bootargs", b"console=ttyAMA0 panic=-1 quiet corevisor.log=debug\0");
        set(chosen, "linux,initrd-start", &INITRD.to_be_bytes());
        set(chosen, "linux,initrd-end", &(INITRD + initrd.len() as u64).to_be_bytes());
        std::fs::write(dir.path().join("initrd"), initrd)?;
        Ok(Self { tree, core_at: USUAL, before: Vec::new(), core: None, machine, dir })
    }

    /// One more argument for QEMU.
    pub fn arg(&mut self, arg: impl Into<OsString>) -> &mut Self {
        self.machine = self.machine.clone().arg(arg);
        self
    }

    /// The run. Its files live as long as this.
    pub fn run(&self, bed: &Bed) -> Result<Run, Failure> {
        let path = |name: &str| self.dir.path().join(name);
        let core = self.core.clone().unwrap_or_else(|| bed.project.core());
        std::fs::write(path("core"), whole_of(bed, &core)?)?;
        std::fs::write(path("tree"), self.tree.to_dtb())?;
        std::fs::write(path("start"), start(&self.before, TREE, self.core_at))?;
        let machine = self.machine.clone();
        let machine = load(load(machine, &path("core"), self.core_at), &path("tree"), TREE);
        let machine = load(machine, &path("initrd"), INITRD);
        let machine = machine.arg("-device").arg(format!("{},cpu-num=0", loader(&path("start"), START)));
        Ok(bed.run(machine).boot(Boot::Nothing).no_initrd())
    }
}

/// The bundle of the core and Debian's 6.12.
pub fn whole(bed: &Bed) -> Result<Vec<u8>, Failure> {
    whole_of(bed, &bed.project.core())
}

fn whole_of(bed: &Bed, core: &Path) -> Result<Vec<u8>, Failure> {
    let kernel = std::fs::read(Kernel::resolve(&bed.project, "6.12")?.image)?;
    bundle(&std::fs::read(core)?, &kernel).map_err(|error| Failure::new(error.to_string()))
}

/// The initrd of 6.12 with `script`.
pub fn initrd_with(bed: &Bed, script: &str) -> Result<Vec<u8>, Failure> {
    initrd_of(bed, script, Vec::new())
}

fn initrd_of(bed: &Bed, script: &str, files: Vec<(String, Vec<u8>)>) -> Result<Vec<u8>, Failure> {
    let mut all = std::fs::read(initrd::base(&bed.project, &Kernel::resolve(&bed.project, "6.12")?)?)?;
    all.resize(all.len().next_multiple_of(4), 0);
    all.extend(Extra { script: Some(script.into()), files }.archive());
    Ok(all)
}

/// Puts a file into the machine's memory.
pub fn load(machine: Machine, file: &Path, at: u64) -> Machine {
    machine.arg("-device").arg(loader(file, at))
}

fn loader(file: &Path, at: u64) -> String {
    format!("loader,file={},addr={at:#x},force-raw=on", file.display())
}

/// ldr x0, tree; ldr x4, core; x1 to x3 are 0; br x4
fn start(before: &[u32], tree: u64, core: u64) -> Vec<u8> {
    let code: [u32; 6] = [0x5800_00c0, 0x5800_00e4, 0xd280_0001, 0xd280_0002, 0xd280_0003, 0xd61f_0080];
    // The two numbers behind must stand at multiples of 8: without a map all memory is device memory.
    let nop = [0xd503_201f].into_iter().take(before.len() % 2);
    let code = before.iter().copied().chain(nop).chain(code).flat_map(|instruction| instruction.to_le_bytes());
    code.chain(tree.to_le_bytes()).chain(core.to_le_bytes()).collect()
}

fn qemu_tree(bed: &Bed, machine: &str, cpus: u32, dir: &Path) -> Result<DeviceTree, Failure> {
    let file: PathBuf = dir.join("qemu.dtb");
    let mut qemu = Command::new(bed.project.qemu());
    qemu.args(["-M", &format!("{machine},dumpdtb={}", file.display()), "-cpu", "max", "-smp", &cpus.to_string()]);
    let done = qemu.args(["-m", "2G", "-nic", "none", "-nographic"]).stdin(Stdio::null()).output()?;
    let bytes = std::fs::read(&file).map_err(|_| Failure::new(String::from_utf8_lossy(&done.stderr)))?;
    let fdt = Fdt::new(&bytes).map_err(|error| Failure::new(format!("QEMU's device tree: {error}")))?;
    Ok(DeviceTree::from_fdt(&fdt))
}

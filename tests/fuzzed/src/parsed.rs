//! Targets that read files of others.
#![forbid(unsafe_code)]

use corevisor::abstract_machine::addr::{Pa, PhysRange};
use corevisor::platform::device_tree::{
    DeviceTree, DeviceTreeError, HostEdits, MachineDescription, Reason, buffer_size, describe, host_device_tree,
    host_tree_size, withhold,
};
use corevisor::platform::host_image::{BUNDLE_HEADER_OFFSET, BUNDLE_KERNEL_OFFSET, BundleHeader, ImageHeader};
use corevisor_tool::sign::{Image, Key};
use corevisor_tool::{arm64_image, bundle, newc};
use kserv_model::archive::Archive;
use kserv_model::boot_info::BootInfo;
use kserv_model::config::Kind;
use kserv_model::gic::GicVersion;
use kserv_model::{config, fdt, image};

/// The description of the machine, and whatever `act` makes of it.
fn described<R>(
    blob: &[u8],
    act: impl FnOnce(&DeviceTree<'_>, &MachineDescription) -> R,
) -> Result<R, DeviceTreeError> {
    let mut buffer = vec![0xa5; buffer_size(blob)?];
    let tree = DeviceTree::normalise(blob, &mut buffer)?;
    let mut machine = Box::new(MachineDescription::empty());
    describe(&tree, &mut machine)?;
    Ok(act(&tree, &machine))
}

/// A device tree: read, edited for the host, and the result read again.
pub fn trees(bytes: &[u8]) {
    let _ = described(bytes, |tree, machine| {
        let Some(first) = machine.ram.first() else { return };
        let core = [PhysRange::new(first.base(), 4096).expect("RAM begins at a page")];
        let initrd = PhysRange::new(Pa::new(0x1000), 0x1000);
        assert!(machine.windows.iter().all(|window| machine.ram.iter().all(|bank| !bank.overlaps(*window))));
        let mut left = machine.clone();
        if withhold(tree, &mut left, &core).is_ok() {
            let apart =
                |a: &[PhysRange], b: &[PhysRange]| a.iter().all(|one| b.iter().all(|other| !one.overlaps(*other)));
            assert!(apart(&left.ram, &left.windows) && apart(&left.ram, &left.withheld));
        }
        for smmus_taken in [false, true] {
            let edits = HostEdits {
                core_memory: &core,
                initrd,
                bootargs: Some("x"),
                smmus_taken,
                gic_taken: smmus_taken,
                seed: Some([1; 32]),
                version: "0",
            };
            let mut out = vec![0; host_tree_size(tree, &edits)];
            let Ok(host) = host_device_tree(tree, machine, &edits, &mut out) else { return };
            let after = described(host, |_, after| {
                assert!(after.ram.iter().all(|bank| !bank.overlaps(core[0])));
                assert!(!smmus_taken || after.smmus.is_empty() && after.beside_smmus.is_empty());
            });
            match after {
                Ok(()) => {}
                Err(error) => assert_eq!(error.reason, Reason::NoMemory, "{error}"),
            }
        }
    });
}

/// A file of some kind.
pub fn files(bytes: &[u8]) {
    let Some((kind, file)) = bytes.split_first() else { return };
    match kind % 7 {
        0 => header(file),
        1 => bundled(file),
        2 => kernel(file),
        3 => archive(file),
        4 => config::lines(file).flat_map(Result::err).for_each(|error| {
            assert!(error.to_string().starts_with("config line "));
        }),
        5 => _ = BootInfo::of_manifest(file).inspect(|info| assert!(info.images().count() >= 1)),
        _ => memory(file),
    }
}

fn header(file: &[u8]) {
    if let Ok(Some(header)) = BundleHeader::parse(file) {
        assert!((64..=1 << 32).contains(&header.kernel_size));
        let _ = header.check(file);
    }
    if let Ok(header) = ImageHeader::parse(Pa::new(0x4020_0000), file) {
        assert!(header.text_offset < 2 << 20);
        assert!(header.memory_size(file.len() as u64) >= header.image_size.max(file.len() as u64));
    }
}

/// What the tool writes the core reads.
fn bundled(kernel: &[u8]) {
    let Ok(file) = bundle::bundle(&smallest_image(), kernel) else { return };
    let header = BundleHeader::parse(&file[BUNDLE_HEADER_OFFSET as usize..]).expect("it was made now");
    let header = header.expect("it was made now");
    let found = &file[BUNDLE_KERNEL_OFFSET as usize..][..header.kernel_size as usize];
    assert_eq!(header.check(found), Ok(()));
    assert!(found.starts_with(kernel), "the kernel is not in it");
}

fn kernel(file: &[u8]) {
    let _ = arm64_image::image_size(file);
    arm64_image::text_offset(file);
    for kind in [Kind::Image, Kind::Flat, image::kind_of(file)] {
        if let Ok(placed) = image::place(kind, file, Some(file.len() as u64), 0x1000_0000) {
            assert!(placed.load < placed.kernel_end && placed.kernel_end <= 0x5000_0000);
            assert!(placed.initrd.is_none_or(|(start, end)| placed.kernel_end <= start && end <= 0x5000_0000));
        }
    }
}

fn archive(file: &[u8]) {
    let mut failed = 0;
    for entry in Archive::new(file).entries() {
        assert_eq!(failed, 0, "nothing comes after an error");
        match entry {
            Ok(entry) => assert!(entry.data.len() <= file.len()),
            Err(_) => failed += 1,
        }
    }
    let _ = Archive::new(file).find("config");
}

/// A VM's memory from 0x4000_0000 on.
fn memory(file: &[u8]) {
    const RAM: u64 = 0x4000_0000;
    let mut read = |gpa: u64, to: &mut [u8]| {
        let at = gpa.checked_sub(RAM).and_then(|at| usize::try_from(at).ok());
        let from = at.and_then(|at| file.get(at..)?.get(..to.len()));
        from.map(|from| to.copy_from_slice(from)).is_some()
    };
    for (pc, x0) in [(RAM, 0), (RAM, RAM + 64), (RAM + 64, RAM)] {
        let _ = BootInfo::infer(&mut read, pc, x0).inspect(|info| assert!((2..=3).contains(&info.images().count())));
    }
}

/// An arm64 Image that is nothing but its header.
fn smallest_image() -> Vec<u8> {
    let mut image = vec![0; 64];
    image[16..24].copy_from_slice(&0x1000_u64.to_le_bytes());
    image[56..60].copy_from_slice(b"ARM\x64");
    image
}

/// One good file of each kind, behind its number.
pub fn files_of_each_kind() -> Vec<Vec<u8>> {
    let kernel = smallest_image();
    let bundle = bundle::bundle(&kernel, &kernel).expect("a core and a kernel");
    let mut archive = newc::Archive::new();
    archive.dir("vm0");
    archive.file("config", 0o644, b"demo\n");
    archive.file("vm0/kernel", 0o755, b"0123456");
    let config =
        b"vm name=a kernel=k dtb=d vcpus=1 memory=4096 protected=0 kind=flat load=0x40080000 entry=0x40080000\ndemo\n";
    let image = Image { gpa: 0x4020_0000, content: &kernel };
    let manifest = Key::from_seed([1; 32]).sign(&[image], 0x4020_0000, 0).expect("an image");
    let files = [
        bundle[BUNDLE_HEADER_OFFSET as usize..][..64].to_vec(),
        kernel.clone(),
        kernel.clone(),
        archive.finish(),
        config.to_vec(),
        manifest,
        started(&kernel),
    ];
    (0..).zip(files).map(|(kind, file)| [vec![kind], file].concat()).collect()
}

/// The memory of a VM as QEMU starts it: six instructions that load x0 and jump, a kernel, a device tree.
fn started(kernel: &[u8]) -> Vec<u8> {
    const KERNEL: u64 = 0x4000_1000;
    const DTB: u64 = 0x4000_2000;
    let code = [0x5800_00c0_u32, 0xaa1f_03e1, 0xaa1f_03e2, 0xaa1f_03e3, 0x5800_0084, 0xd61f_0080];
    let mut memory: Vec<u8> = code.into_iter().flat_map(u32::to_le_bytes).collect();
    memory.extend([DTB, KERNEL].into_iter().flat_map(u64::to_le_bytes));
    memory.resize(0x1000, 0);
    memory.extend(kernel);
    memory.resize(0x2000, 0);
    let initrd = Some((0x4800_0000, 0x4812_3456));
    memory.extend(fdt::build(&fdt::Machine {
        vcpus: 1,
        memory: 0x1000_0000,
        gic: GicVersion::V2,
        bootargs: "",
        initrd,
    }));
    memory
}

//! What the mini host reads from its initrd: archive, config, kernels; right ones, wrong ones, and random ones with fixed seeds.
#![forbid(unsafe_code)]

use kserv_model::archive::{Archive, ArchiveError};
use kserv_model::config::{ConfigError, Kind, Line, VmConfig, Wrong, lines, number};
use kserv_model::image::{ImageHeader, PlaceError, kind_of, place};
use kserv_model::random::Random;

fn entry(name: &str, mode: u32, data: &[u8]) -> Vec<u8> {
    let mut out = b"070701".to_vec();
    for field in [1, mode, 0, 0, 1, 0, data.len() as u32, 0, 0, 0, 0, name.len() as u32 + 1, 0] {
        out.extend_from_slice(format!("{field:08X}").as_bytes());
    }
    out.extend_from_slice(name.as_bytes());
    out.push(0);
    out.resize(out.len().next_multiple_of(4), 0);
    out.extend_from_slice(data);
    out.resize(out.len().next_multiple_of(4), 0);
    out
}

fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut out: Vec<u8> = files.iter().flat_map(|(name, data)| entry(name, 0o100644, data)).collect();
    out.extend(entry("TRAILER!!!", 0, b""));
    out.resize(out.len().next_multiple_of(512), 0);
    out
}

#[test]
fn every_file_is_found_and_the_last_of_a_name_counts() {
    let mut bytes = archive(&[("config", b"demo\n"), ("vm0/kernel", b"old"), ("empty", b"")]);
    bytes.extend(archive(&[("vm0/kernel", b"newer"), ("/rooted", b"r")]));
    let all = Archive::new(&bytes);
    assert_eq!(all.entries().count(), 5);
    assert_eq!(all.find("config"), Ok(&b"demo\n"[..]));
    assert_eq!(all.find("/vm0/kernel"), Ok(&b"newer"[..]));
    assert_eq!((all.find("empty"), all.find("rooted")), (Ok(&b""[..]), Ok(&b"r"[..])));
    assert_eq!(all.find("vm0"), Err(ArchiveError::NotFound));
    assert_eq!(Archive::new(&[]).entries().count(), 0);
    assert_eq!(Archive::new(&[0; 600]).entries().count(), 0);
}

#[test]
fn only_regular_files_are_found() {
    let mut bytes = entry("dir", 0o040755, b"");
    bytes.extend(entry("link", 0o120777, b"dir"));
    bytes.extend(entry("TRAILER!!!", 0, b""));
    let all = Archive::new(&bytes);
    assert_eq!(all.entries().map(|entry| entry.unwrap().name).collect::<Vec<_>>(), ["dir", "link"]);
    assert_eq!(all.find("link"), Err(ArchiveError::NotFound));
}

#[test]
fn what_is_wrong_with_an_archive_is_named() {
    let good = archive(&[("a", b"0123456789")]);
    let first = |bytes: &[u8]| Archive::new(bytes).entries().find_map(Result::err);
    assert_eq!(first(b"070702 and more"), Some(ArchiveError::Magic { offset: 0 }));
    assert_eq!(first(&good[..109]), Some(ArchiveError::Truncated { offset: 0 }));
    assert_eq!(first(&good[..120]), Some(ArchiveError::Truncated { offset: 0 }));
    // No end mark.
    assert_eq!(first(&good[..124]), Some(ArchiveError::Truncated { offset: 124 }));
    let mut bad = good.clone();
    bad[6 + 8] = b'x';
    assert_eq!(first(&bad), Some(ArchiveError::Field { offset: 0 }));
    let mut bad = good.clone();
    bad[111] = b'!';
    assert_eq!(first(&bad), Some(ArchiveError::Name { offset: 0 }));
    let mut bad = good;
    bad[6 + 6 * 8..6 + 7 * 8].copy_from_slice(b"FFFFFFFF");
    assert_eq!(first(&bad), Some(ArchiveError::Truncated { offset: 0 }));
}

#[test]
fn a_vms_line_says_what_the_vm_is() {
    let text = b"# demo\n\n vm name=vm0 kernel=vm0/kernel dtb=vm0/dtb initrd=vm0/initrd manifest=vm0/manifest vcpus=2 memory=0x8000000 \
        protected=1 kind=image load=0x40200000 entry=0x40200000 # first\ndemo\nseconds=5\r\n";
    let vm = VmConfig {
        name: "vm0",
        kernel: "vm0/kernel",
        dtb: "vm0/dtb",
        initrd: Some("vm0/initrd"),
        manifest: Some("vm0/manifest"),
        vcpus: 2,
        memory: 0x800_0000,
        protected: true,
        kind: Kind::Image,
        load: 0x4020_0000,
        entry: 0x4020_0000,
    };
    let read: Vec<_> = lines(text).collect();
    assert_eq!(read, [Ok(Line::Vm(vm)), Ok(Line::Option("demo", None)), Ok(Line::Option("seconds", Some("5")))]);
}

#[test]
fn what_is_wrong_with_a_line_is_named() {
    const GOOD: &str =
        "vm name=a kernel=k dtb=d vcpus=1 memory=4096 protected=0 kind=flat load=0x40080000 entry=0x40080000";
    let wrong = |text: &str| match lines(text.as_bytes()).next() {
        Some(Err(ConfigError { line: 1, wrong })) => format!("{wrong:?}"),
        other => panic!("{text}: {other:?}"),
    };
    assert!(lines(GOOD.as_bytes()).all(|line| line.is_ok()));
    for key in ["name", "kernel", "dtb", "vcpus", "memory", "protected", "kind", "load", "entry"] {
        let word = GOOD.split(' ').find(|word| word.starts_with(&format!("{key}="))).unwrap();
        assert_eq!(wrong(&GOOD.replace(&format!(" {word}"), "")), format!("Missing({key:?})"));
        assert_eq!(wrong(&format!("{GOOD} {word}")), format!("Twice({key:?})"));
        assert_eq!(wrong(&GOOD.replace(word, &format!("{key}="))), format!("NoValue({key:?})"));
    }
    for (key, values) in [
        ("vcpus", &["0", "17", "x", "-1", "+1", "0x", "99999999999999999999"][..]),
        ("memory", &["0", "4095", "0x10000000000000000", "0x4000000000"]),
        ("protected", &["2", "yes"]),
        ("kind", &["elf"]),
        ("load", &["0", "0x4000000000"]),
        ("entry", &["0x3fffffff"]),
    ] {
        let word = GOOD.split(' ').find(|word| word.starts_with(&format!("{key}="))).unwrap();
        for value in values {
            assert_eq!(wrong(&GOOD.replace(word, &format!("{key}={value}"))), format!("Value({key:?})"));
        }
    }
    assert_eq!(wrong(&GOOD.replace("protected=0", "protected=1")), "Missing(\"manifest\")");
    assert_eq!(wrong("vm cpus=1"), "UnknownKey(\"cpus\")");
    assert_eq!(wrong("vm quick"), "NoValue(\"quick\")");
    assert_eq!(wrong("demo fast"), "TooMany");
    let bytes = [b"demo\n".as_slice(), &[0xff, b'\n'], b"quiet"].concat();
    let read: Vec<_> = lines(&bytes).collect();
    assert_eq!(read[1], Err(ConfigError { line: 2, wrong: Wrong::NotText }));
    assert_eq!(read[2], Ok(Line::Option("quiet", None)));
    assert_eq!((number("12"), number("0xfF"), number(""), number("0x+1")), (Some(12), Some(255), None, None));
}

fn image(len: usize, text_offset: u64, image_size: u64, flags: u64) -> Vec<u8> {
    let mut file = vec![0x5a; len];
    for (at, value) in [(8, text_offset), (16, image_size), (24, flags)] {
        file[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }
    file[56..60].copy_from_slice(b"ARM\x64");
    file
}

#[test]
fn a_kernel_its_initrd_and_its_device_tree_have_their_places() {
    let linux = image(4096, 0, 0x123_4567, 0xa);
    let placed = place(Kind::Image, &linux, Some(5000), 0x1000_0000).unwrap();
    assert_eq!((placed.load, placed.entry, placed.dtb), (0x4020_0000, 0x4020_0000, 0x4000_0000));
    assert_eq!((placed.kernel_end, placed.initrd), (0x4143_4567, Some((0x4160_0000, 0x4160_1388))));
    assert_eq!(placed.check_dtb(0x20_0000), Ok(()));
    assert_eq!(placed.check_dtb(0x20_0001), Err(PlaceError::DtbTooLarge));
    let old = place(Kind::Image, &image(4096, 0x8_0000, 0, 0), None, 0x1000_0000).unwrap();
    assert_eq!((old.load, old.kernel_end), (0x4028_0000, 0x4028_1000));
    let flat = place(Kind::Flat, b"\x14", None, 0x8_0001).unwrap();
    assert_eq!((flat.load, flat.kernel_end), (0x4008_0000, 0x4008_0001));
    assert_eq!(flat.check_dtb(0x8_0001), Err(PlaceError::DtbUnderKernel));
    assert_eq!((kind_of(&linux), kind_of(b"\x14")), (Kind::Image, Kind::Flat));
}

#[test]
fn what_cannot_be_placed_is_named() {
    let of = |kernel: &[u8]| place(Kind::Image, kernel, None, 0x1000_0000).err();
    assert_eq!(of(b""), Some(PlaceError::Empty));
    assert_eq!(of(&[0x1f, 0x8b, 8]), Some(PlaceError::Gzip));
    assert_eq!(of(b"MZ\0\0zimg"), Some(PlaceError::Zboot));
    assert_eq!(of(b"\x7fELF"), Some(PlaceError::NoMagic));
    assert_eq!(of(&image(64, 0, 64, 1)), Some(PlaceError::BigEndian));
    assert_eq!(of(&image(64, 0x20_0000, 64, 0)), Some(PlaceError::TextOffset));
    assert_eq!(of(&image(64, 0, u64::MAX, 0)), Some(PlaceError::TooLarge));
    assert_eq!(of(&image(64, 0, 0x1000_0000, 0)), Some(PlaceError::NeedsMemory(0x1020_0000)));
    assert_eq!(place(Kind::Flat, b"", None, 4096), Err(PlaceError::Empty));
    assert_eq!(place(Kind::Flat, b"a", Some(u64::MAX), 4096), Err(PlaceError::TooLarge));
    assert_eq!(ImageHeader::parse(&image(64, 0, 0, 0)).unwrap().text_offset, 0x8_0000);
}

/// Some bytes of a good file are changed, cut or doubled: 100,000 times.
fn damaged(seed: u64, good: &[u8], check: impl Fn(&[u8])) {
    let mut rng = Random::new(seed);
    for _ in 0..100_000 {
        let mut bytes = good.to_vec();
        for _ in 0..=rng.below(4) {
            let at = rng.below(bytes.len() as u64) as usize;
            match rng.below(6) {
                0 => bytes.truncate(at),
                1 => bytes.extend_from_within(at..),
                2 => bytes[at] = rng.pick(b"0fF=# \n\0"),
                _ => bytes[at] = rng.next() as u8,
            }
            if bytes.is_empty() {
                bytes.push(0);
            }
        }
        check(&bytes);
    }
}

#[test]
fn no_damage_to_an_archive_or_a_config_or_a_kernel_makes_its_reader_panic() {
    damaged(1, &archive(&[("config", b"demo"), ("vm0/kernel", b"0123456")]), |bytes| {
        let (mut count, mut failed) = (0, 0);
        for entry in Archive::new(bytes).entries() {
            assert_eq!(failed, 0, "nothing comes after an error");
            match entry {
                Ok(entry) => count += entry.name.len().min(1),
                Err(_) => failed += 1,
            }
        }
        assert!(count <= bytes.len() / 110);
        let _ = Archive::new(bytes).find("config");
    });
    let config =
        b"vm name=a kernel=k dtb=d vcpus=1 memory=4096 protected=0 kind=flat load=0x40080000 entry=0x40080000\ndemo\n";
    damaged(2, config, |bytes| {
        for line in lines(bytes) {
            if let Err(error) = line {
                assert!(error.to_string().starts_with("config line "));
            }
        }
    });
    damaged(3, &image(80, 0, 4096, 0), |bytes| {
        for kind in [Kind::Image, Kind::Flat, kind_of(bytes)] {
            if let Ok(placed) = place(kind, bytes, Some(bytes.len() as u64), 0x1000_0000) {
                assert!(placed.initrd.unwrap().1 <= 0x5000_0000 && placed.load < placed.kernel_end);
            }
        }
    });
}

//! An SD-card image: an MBR with one FAT32 partition, made as a plain file, without root and without loop devices.
//!
//! Deterministic: the same files give the same bytes.

use crate::error::FileError;
use fatfs::{FatType, FileSystem, FormatVolumeOptions, FsOptions, format_volume};
use fscommon::{BufStream, StreamSlice};
use std::{
    fs::File,
    io::{self, Seek, SeekFrom, Write},
    path::Path,
};

const SECTOR: u64 = 512;
/// The partition starts here, as partitioning tools like it.
const START: u64 = 4 << 20;
/// The least size of the partition; FAT32 needs 65,525 clusters, this gives twice that.
const LEAST: u64 = 128 << 20;
const CLUSTER: u32 = 1024;
const FAT32_LBA: u8 = 0x0c;
const ID: u32 = 0x434f_5245;

/// Writes a card image with `files` (name, content) to `path`; an eighth and 16 MiB stay free for the board's firmware.
///
/// # Errors
/// When the file cannot be written.
pub fn write(path: &Path, files: &[(&str, &[u8])]) -> Result<(), FileError> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let make = || -> io::Result<()> {
        let mut file = tempfile::Builder::new()
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
            .tempfile_in(dir)?;
        fill(file.as_file_mut(), files)?;
        file.persist(path).map_err(|error| error.error)?;
        Ok(())
    };
    make().map_err(FileError::at("write", path))
}

fn partition_size(files: &[(&str, &[u8])]) -> u64 {
    let content: u64 = files.iter().map(|(_, content)| content.len() as u64).sum();
    (content + content / 8 + (16 << 20)).max(LEAST).next_multiple_of(4 << 20)
}

fn fill(file: &mut File, files: &[(&str, &[u8])]) -> io::Result<()> {
    let size = partition_size(files);
    file.set_len(START + size)?;
    file.seek(SeekFrom::Start(0))?;
    file.write_all(&master_boot_record(size)?)?;

    let mut partition = BufStream::new(StreamSlice::new(&mut *file, START, START + size)?);
    let options = FormatVolumeOptions::new()
        .fat_type(FatType::Fat32)
        .bytes_per_cluster(CLUSTER)
        .volume_id(ID)
        .volume_label(*b"COREVISOR  ");
    format_volume(&mut partition, options)?;
    partition.seek(SeekFrom::Start(0))?;
    let system = FileSystem::new(partition, FsOptions::new())?;
    for (name, content) in files {
        let mut file = system.root_dir().create_file(name)?;
        file.truncate()?;
        file.write_all(content)?;
    }
    system.unmount()?;
    file.sync_all()
}

fn master_boot_record(size: u64) -> io::Result<[u8; 512]> {
    let sectors = |bytes: u64| u32::try_from(bytes / SECTOR).map_err(io::Error::other);
    let mut record = [0; 512];
    record[440..444].copy_from_slice(&ID.to_le_bytes());
    let entry = &mut record[446..462];
    // Addresses by cylinder and head: "too large to say so".
    entry[1..4].copy_from_slice(&[0xfe, 0xff, 0xff]);
    entry[4] = FAT32_LBA;
    entry[5..8].copy_from_slice(&[0xfe, 0xff, 0xff]);
    entry[8..12].copy_from_slice(&sectors(START)?.to_le_bytes());
    entry[12..16].copy_from_slice(&sectors(size)?.to_le_bytes());
    record[510..512].copy_from_slice(&[0x55, 0xaa]);
    Ok(record)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    #[test]
    fn files_come_back_from_the_partition_that_the_mbr_names() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("card.img");
        let kernel = vec![0x5a; 3 << 20];
        write(&path, &[("kernel8.img", &kernel), ("bcm2711-rpi-4-b.dtb", b"tree"), ("config.txt", b"")]).unwrap();

        let mut file = File::open(&path).unwrap();
        let mut record = [0; 512];
        file.read_exact(&mut record).unwrap();
        assert_eq!(record[510..], [0x55, 0xaa]);
        assert_eq!(record[450], 0x0c);
        let sector = |at: usize| u64::from(u32::from_le_bytes(record[at..at + 4].try_into().unwrap())) * 512;
        let (start, size) = (sector(454), sector(458));
        assert_eq!(start + size, file.metadata().unwrap().len());

        let system = FileSystem::new(StreamSlice::new(file, start, start + size).unwrap(), FsOptions::new()).unwrap();
        assert_eq!(system.fat_type(), FatType::Fat32);
        let mut names: Vec<_> = system.root_dir().iter().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        assert_eq!(names, ["bcm2711-rpi-4-b.dtb", "config.txt", "kernel8.img"]);
        let mut content = Vec::new();
        system.root_dir().open_file("kernel8.img").unwrap().read_to_end(&mut content).unwrap();
        assert!(content == kernel);
    }

    #[test]
    fn the_same_files_give_the_same_card() {
        let dir = tempfile::tempdir().unwrap();
        let card = |name: &str| {
            let path = dir.path().join(name);
            write(&path, &[("a", b"text")]).unwrap();
            crc32c::crc32c(&std::fs::read(path).unwrap())
        };
        assert_eq!(card("one"), card("two"));
    }

    #[test]
    fn a_large_kernel_gets_a_larger_card() {
        assert_eq!(partition_size(&[]), LEAST);
        let large = vec![0; 150 << 20];
        assert!(partition_size(&[("k", &large)]) > 160 << 20);
    }
}

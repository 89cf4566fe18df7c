//! What can go wrong around files: what was done, where, and what the system said.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
};

/// A file operation that failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {path}: {source}{hint}")]
pub struct FileError {
    action: &'static str,
    path: PathBufDisplay,
    hint: &'static str,
    source: io::Error,
}

#[derive(Debug)]
struct PathBufDisplay(PathBuf);

impl fmt::Display for PathBufDisplay {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.display().fmt(f)
    }
}

impl FileError {
    /// For `map_err`: names the action ("read", "write", ...) and the path.
    pub fn at(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| {
            let made_by_setup = path
                .components()
                .collect::<Vec<_>>()
                .windows(2)
                .any(|two| two[0].as_os_str() == "target" && two[1].as_os_str() == "host");
            let hint = if source.kind() == io::ErrorKind::NotFound && made_by_setup {
                " (scripts/setup puts it there)"
            } else {
                ""
            };
            Self { action, path: PathBufDisplay(path), hint, source }
        }
    }
}

/// A program cannot be looked at.
#[derive(Debug, thiserror::Error)]
pub enum ElfError {
    /// It cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
    /// It is no ELF file.
    #[error("{path}: {error}")]
    Elf {
        /// The file.
        path: String,
        /// Why.
        error: object::Error,
    },
}

impl ElfError {
    /// For `map_err`: names the program.
    pub fn at(elf: &Path) -> impl Fn(object::Error) -> Self {
        move |error| Self::Elf { path: elf.display().to_string(), error }
    }
}

/// Reads a file whole.
///
/// # Errors
/// With the path in the message.
pub fn read(path: &Path) -> Result<Vec<u8>, FileError> {
    fs::read(path).map_err(FileError::at("read", path))
}

/// Reads a text file whole.
///
/// # Errors
/// With the path in the message; also when it is not UTF-8.
pub fn read_text(path: &Path) -> Result<String, FileError> {
    fs::read_to_string(path).map_err(FileError::at("read", path))
}

/// Writes a file so that nobody ever sees half of it: next to its place first, then renamed.
///
/// # Errors
/// With the path in the message.
pub fn write(path: &Path, parts: &[&[u8]]) -> Result<(), FileError> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    create_dir(dir)?;
    let write = || -> io::Result<()> {
        let mut file = tempfile::Builder::new()
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
            .tempfile_in(dir)?;
        for part in parts {
            io::Write::write_all(&mut file, part)?;
        }
        file.persist(path).map_err(|e| e.error)?;
        Ok(())
    };
    write().map_err(FileError::at("write", path))
}

/// Writes a new file that only its owner may read.
///
/// # Errors
/// With the path in the message; also when the file is there.
pub fn write_secret(path: &Path, text: &str) -> Result<(), FileError> {
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
    create_dir(dir)?;
    let write = || -> io::Result<()> {
        // Readable by nobody else, as temporary files are.
        let mut file = tempfile::Builder::new().tempfile_in(dir)?;
        io::Write::write_all(&mut file, text.as_bytes())?;
        file.persist_noclobber(path).map_err(|e| e.error)?;
        Ok(())
    };
    write().map_err(FileError::at("write", path))
}

/// Makes a folder and those above it.
///
/// # Errors
/// With the path in the message.
pub fn create_dir(path: &Path) -> Result<(), FileError> {
    fs::create_dir_all(path).map_err(FileError::at("make the folder", path))
}

/// Whether the reason is that something is not there.
pub fn is_missing(error: &(dyn std::error::Error + 'static)) -> bool {
    let not_found = |cause: &io::Error| cause.kind() == io::ErrorKind::NotFound;
    std::iter::successors(Some(error), |error| error.source()).any(|cause| cause.downcast_ref().is_some_and(not_found))
}

/// A message with all its causes on one line: "cannot do this: because of that".
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !line.contains(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        cause = error.source();
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_setup_provides_is_told_from_others() {
        let missing = |path: &str| read(Path::new(path)).unwrap_err().to_string();
        assert!(missing("/x/target/host/6.12/Image").ends_with("(scripts/setup puts it there)"));
        assert!(!missing("/x/host/6.12/Image").contains("setup"));
    }

    #[test]
    fn a_file_written_is_whole_and_readable_by_all() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("new/file");
        write(&path, &[b"one ", b"two"]).unwrap();
        assert_eq!(read_text(&path).unwrap(), "one two");
        let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&path).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o644 & !umask());
    }

    #[test]
    fn what_is_not_there_is_told_from_what_is_wrong() {
        let error = |path: &str| crate::run::RunError::from(read(Path::new(path)).unwrap_err());
        assert!(is_missing(&error("/nonexistent")) && !is_missing(&error("/")));
    }

    fn umask() -> u32 {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|line| line.starts_with("Umask:")).unwrap();
        u32::from_str_radix(line["Umask:".len()..].trim(), 8).unwrap()
    }
}

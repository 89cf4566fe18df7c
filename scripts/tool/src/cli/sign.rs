//! `scripts/sign`, `scripts/header`.

use super::{CliError, say};
use crate::{
    error::{read, write},
    project::Project,
    sign::{Image, Key, hex, verify},
};
use clap::{ArgGroup, Args};
use kserv_model::image::{kind_of, place};
use std::{
    path::{Path, PathBuf},
    process::ExitCode,
};

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("what").required(true).multiple(true).args(["kernel", "public", "verify"]))]
pub(super) struct SignArgs {
    #[arg(long, value_parser = placed, requires = "dtb")]
    kernel: Option<Placed>,
    #[arg(long, value_parser = placed, requires = "kernel")]
    dtb: Option<Placed>,
    #[arg(long, value_parser = placed, requires = "kernel")]
    initrd: Option<Placed>,
    #[arg(long, value_parser = number, requires = "kernel")]
    entry: Option<u64>,
    #[arg(long, value_parser = number, requires = "kernel")]
    x0: Option<u64>,
    #[arg(long)]
    key: Option<PathBuf>,
    #[arg(long, requires = "kernel", conflicts_with = "verify")]
    output: Option<PathBuf>,
    #[arg(long, conflicts_with_all = ["kernel", "dtb", "initrd", "entry", "x0", "output", "verify"])]
    public: bool,
    #[arg(long)]
    verify: Option<PathBuf>,
}

/// A file, and where the VM sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Placed {
    file: PathBuf,
    at: Option<u64>,
}

/// FILE or FILE@ADDRESS. A folder may have an @ in its name.
fn placed(text: &str) -> Result<Placed, String> {
    let (file, at) = match text.rsplit_once('@') {
        Some((file, at)) if !at.contains('/') => (file, Some(number(at)?)),
        _ => (text, None),
    };
    Ok(Placed { file: file.into(), at })
}

/// An address, in C's notation.
fn number(text: &str) -> Result<u64, String> {
    let digits = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"));
    let number = digits.map_or_else(|| text.parse(), |digits| u64::from_str_radix(&digits.replace('_', ""), 16));
    number.map_err(|_| "an address such as 0x40200000".to_owned())
}

/// The key that `--key` names, or the development key.
pub(super) fn key(project: &Project, named: Option<&Path>) -> Result<Key, CliError> {
    // A name that is wrong must not become a new key.
    if let Some(path) = named {
        return Ok(Key::read(path)?);
    }
    let path = project.development_key();
    let (key, made) = Key::read_or_make(&path)?;
    if made {
        say(&format!("made a development key: {}", path.display()));
    }
    Ok(key)
}

pub(super) fn sign(args: &SignArgs) -> Result<ExitCode, CliError> {
    let project = Project::find()?;
    let key = key(&project, args.key.as_deref())?;
    if args.public {
        println!("{}", hex(&key.public()));
        return Ok(ExitCode::SUCCESS);
    }
    let (Some(kernel), Some(dtb)) = (&args.kernel, &args.dtb) else {
        let manifest = args.verify.clone().unwrap_or_default();
        return tell(&manifest, verify(&read(&manifest)?, key.public(), &[], None));
    };
    let contents = [Some(kernel), Some(dtb), args.initrd.as_ref()];
    let contents = contents.map(|placed| placed.map(|placed| read(&placed.file)).transpose());
    let [kernel_file, dtb_file, initrd_file] = contents;
    let (kernel_file, dtb_file, initrd_file) =
        (kernel_file?.unwrap_or_default(), dtb_file?.unwrap_or_default(), initrd_file?);
    let place =
        place(kind_of(&kernel_file), &kernel_file, initrd_file.as_ref().map(|file| file.len() as u64), u64::MAX >> 1)
            .map_err(|error| CliError::Place { path: kernel.file.display().to_string(), error })?;
    let mut images = vec![
        Image { gpa: kernel.at.unwrap_or(place.load), content: &kernel_file },
        Image { gpa: dtb.at.unwrap_or(place.dtb), content: &dtb_file },
    ];
    if let (Some(initrd), Some(content)) = (&args.initrd, &initrd_file) {
        images.push(Image { gpa: initrd.at.or(place.initrd.map(|(start, _)| start)).unwrap_or_default(), content });
    }
    let start = (args.entry.unwrap_or(images[0].gpa), args.x0.unwrap_or(images[1].gpa));
    if let Some(manifest) = &args.verify {
        return tell(manifest, verify(&read(manifest)?, key.public(), &images, Some(start)));
    }
    let manifest = key.sign(&images, start.0, start.1)?;
    let output = args.output.clone().unwrap_or_else(|| {
        let mut name = kernel.file.clone().into_os_string();
        name.push(".manifest");
        name.into()
    });
    write(&output, &[&manifest])?;
    for (name, image) in ["kernel", "dtb", "initrd"].iter().zip(&images) {
        println!("{name:6} at {:#x}, {} bytes", image.gpa, image.content.len());
    }
    println!("entry at {:#x}, x0 {:#x}, key {}", start.0, start.1, hex(&key.public()));
    println!("{}", output.display());
    Ok(ExitCode::SUCCESS)
}

fn tell(manifest: &Path, verdict: Result<(), crate::sign::Wrong>) -> Result<ExitCode, CliError> {
    match verdict {
        Ok(()) => {
            println!("{}: good", manifest.display());
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => Err(CliError::Manifest { path: manifest.display().to_string(), error }),
    }
}

#[derive(Debug, Args)]
pub(super) struct HeaderArgs {
    #[arg(long)]
    print: bool,
}

pub(super) fn header(args: &HeaderArgs) -> Result<ExitCode, CliError> {
    let text = corevisor_interface::header::text();
    if args.print {
        print!("{text}");
    } else {
        let path = Project::find()?.c_header();
        write(&path, &[text.as_bytes()])?;
        println!("{}", path.display());
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_may_have_an_address() {
        let is = |text: &str, file: &str, at| assert_eq!(placed(text), Ok(Placed { file: file.into(), at }));
        is("Image", "Image", None);
        is("a@b/Image@0x4020_0000", "a@b/Image", Some(0x4020_0000));
        is("Image@4096", "Image", Some(4096));
        assert!(placed("Image@here").is_err());
    }

    #[test]
    fn the_c_header_in_the_tree_is_the_generated_one() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let there = crate::error::read_text(&Project::at(root).c_header()).unwrap();
        assert!(there == corevisor_interface::header::text(), "scripts/header writes it anew");
    }
}

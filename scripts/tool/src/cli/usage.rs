//! What is wrong with a command line, on one line that names the script.

use clap::error::{ContextKind, ContextValue, Error, ErrorKind};
use std::error::Error as _;

/// The line for `error`; `command` is what [`super::Cli`] was to do, if it was said.
pub(super) fn line(error: &Error, command: Option<&str>) -> String {
    let program = match command {
        Some(name @ ("run" | "image" | "bench" | "sign" | "header")) => format!("scripts/{name}"),
        Some(name) => format!("corevisor-tool {name}"),
        None => "corevisor-tool".to_owned(),
    };
    format!("{} ({program} --help lists them)", wrong(error))
}

fn wrong(error: &Error) -> String {
    let texts = |kind| match error.get(kind) {
        Some(ContextValue::String(text)) => vec![text.clone()],
        Some(ContextValue::Strings(texts)) => texts.clone(),
        _ => vec![],
    };
    let names = |kind| texts(kind).iter().map(|text| bare(text)).collect::<Vec<_>>().join(" and ");
    let (option, value) = (names(ContextKind::InvalidArg), texts(ContextKind::InvalidValue).concat());
    let known = texts(ContextKind::ValidValue).join(", ");
    match error.kind() {
        ErrorKind::UnknownArgument => format!("there is no option {option}"),
        ErrorKind::InvalidValue if value.is_empty() => format!("{option} wants a value"),
        ErrorKind::InvalidValue => format!("{option} {value}: one of {known} is wanted"),
        ErrorKind::ValueValidation => {
            let why = error.source().map_or_else(String::new, ToString::to_string);
            format!("{option} {value}: {why}")
        }
        ErrorKind::TooManyValues => format!("{option} takes no value"),
        ErrorKind::MissingRequiredArgument => format!("missing: {option}"),
        ErrorKind::ArgumentConflict => match names(ContextKind::PriorArg) {
            same if same == option => format!("{option} can be given only once"),
            other => format!("{option} does not go with {other}"),
        },
        // What else there is comes of no script.
        _ => {
            let text = error.to_string();
            text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned()
        }
    }
}

/// clap's "--smp <SMP>" without its value; "<--vm <VM>|--check <CHECK>>" are two.
fn bare(text: &str) -> String {
    let inner = text.strip_prefix('<').and_then(|text| text.strip_suffix('>')).unwrap_or(text);
    let names = inner.split('|').map(|name| name.split([' ', '=']).next().unwrap_or(name));
    names.collect::<Vec<_>>().join(" or ")
}

#[cfg(test)]
mod tests {
    use super::{super::Cli, line};
    use clap::Parser;

    fn said(args: &[&str]) -> String {
        let error = Cli::try_parse_from(["corevisor-tool"].iter().chain(args)).unwrap_err();
        line(&error, args.first().copied())
    }

    #[test]
    fn what_is_wrong_is_one_line_that_names_the_script() {
        for (args, what) in [
            (&["run", "--bogus"][..], "there is no option --bogus"),
            (&["run", "--bogus=1"], "there is no option --bogus"),
            (&["run", "word"], "there is no option word"),
            (&["run", "--smp"], "--smp wants a value"),
            (&["run", "--smp", "0"], "--smp 0: 0 is not in 1..=512"),
            (&["run", "--memory", "0"], "--memory 0: a size from 1M up, such as 512M or 4G"),
            (&["run", "--board", "x"], "--board x: one of virt, raspi4b, imx8mp-evk, zcu102 is wanted"),
            (&["run", "--net=x"], "--net takes no value"),
            (&["run", "--gdb", "--gdb"], "--gdb can be given only once"),
            (&["run", "--mini"], "missing: --vm or --check"),
            (&["run", "--demo", "--vcpus", "2"], "missing: --mini or --guest"),
            (&["run", "--demo", "--kernel", "6.1"], "--demo does not go with --kernel"),
        ] {
            assert_eq!(said(args), format!("{what} (scripts/run --help lists them)"));
        }
        assert_eq!(said(&["sign"]), "missing: --kernel or --public or --verify (scripts/sign --help lists them)");
        assert_eq!(
            said(&["image", "--board", "x"]),
            "--board x: one of virt, raspi4b is wanted (scripts/image --help lists them)"
        );
        assert_eq!(said(&["bundle", "-x"]), "there is no option -x (corevisor-tool bundle --help lists them)");
    }
}

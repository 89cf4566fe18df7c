//! See the library.

fn main() -> std::process::ExitCode {
    corevisor_tool::cli::main()
}

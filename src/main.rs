//! The `crossfade` binary: arguments in, exit status out.

fn main() -> std::process::ExitCode {
    crossfade::cli::main()
}

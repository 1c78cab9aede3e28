//! nasd: a volume whose every fsync is a transaction on two machines.

fn main() -> std::process::ExitCode {
    nasd::cli::main()
}

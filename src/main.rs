//! Calls the command line.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    kz_record_call::cli::main()
}

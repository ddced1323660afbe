//! The pigateway program.

use std::process::ExitCode;

use clap::Parser;
use pigateway::cli::Cli;

fn main() -> ExitCode {
    match Cli::parse().execute() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("pigateway: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

//! The pigateway program.

use std::process::ExitCode;

use pigateway::cli;

/// The variable by which glibc is told how many memory arenas malloc may use, and its value.
#[cfg(target_env = "gnu")]
const ARENAS: (&str, &str) = ("MALLOC_ARENA_MAX", "1");

/// Sets the number of malloc's arenas and starts the program again. glibc gives threads arenas of their own, and memory that
/// was freed in one is not available in another: after some hundred busy clients the gateway would have twice the memory
/// that it needs (docs/decisions/allocator.md). glibc reads the number from the environment before `main`, so the program
/// has to replace itself with a new start. A variable that is set already stays as it is.
#[cfg(target_env = "gnu")]
fn limit_arenas() {
    use std::os::unix::process::CommandExt;
    use std::process::Command;

    let (name, most) = ARENAS;
    if std::env::var_os(name).is_some() {
        return;
    }
    let mut args = std::env::args_os();
    let (Ok(program), Some(called)) = (std::env::current_exe(), args.next()) else { return };
    // returns only where the system refuses, and then the gateway merely takes more memory
    let _refused = Command::new(program).arg0(called).args(args).env(name, most).exec();
}

fn main() -> ExitCode {
    #[cfg(target_env = "gnu")]
    limit_arenas();
    ExitCode::from(cli::main().number())
}

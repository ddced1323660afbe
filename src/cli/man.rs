//! `pigateway man` and `pigateway completions`: texts that are made from the definition of the command line.

use std::io::{self, Write};

use clap::CommandFactory;
use clap_complete::Shell;

use super::Cli;
use crate::app::exit_code::ExitCode;

#[derive(Debug, clap::Args)]
pub(super) struct CompletionsArgs {
    /// Shell to make completions for
    shell: Shell,
}

/// The script by which the shell completes pigateway's commands.
pub(super) fn completions(args: &CompletionsArgs) -> Vec<u8> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "pigateway", &mut script);
    script
}

/// The manual page with all commands.
pub(super) fn man_page() -> io::Result<Vec<u8>> {
    let plain = |text: &str| text.replace('\\', "\\\\").replace('-', "\\-");
    let mut page = Vec::new();
    let man = clap_mangen::Man::new(Cli::command());
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_options_section(&mut page)?;
    writeln!(page, ".SH COMMANDS")?;
    let mut root = Cli::command();
    root.build();
    for command in root.get_subcommands_mut() {
        let usage = command.render_usage().to_string();
        let about = command.get_about().map(ToString::to_string).unwrap_or_default();
        writeln!(page, ".TP\n\\fB{}\\fR\n{}.", plain(usage.trim_start_matches("Usage: ")), plain(&about))?;
    }
    writeln!(page, ".SH EXIT STATUS")?;
    for code in ExitCode::ALL {
        writeln!(page, ".TP\n{}\n{}", code.number(), plain(&code.meaning().replace('`', "")))?;
    }
    man.render_version_section(&mut page)?;
    Ok(page)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manual_has_every_command() {
        let page = String::from_utf8(man_page().unwrap()).unwrap();
        let mut root = Cli::command();
        root.build();
        for command in root.get_subcommands() {
            assert!(page.contains(&format!("\\fBpigateway {}", command.get_name())), "{}: {page}", command.get_name());
        }
        for code in ExitCode::ALL {
            assert!(page.contains(&format!(".TP\n{}\n", code.number())), "{code:?}: {page}");
        }
    }
}

//! The exit codes of the program, numbered as in sysexits.h. This is the only list of them: errors name their code by a
//! constant from here, the manual page prints the list, and a test compares it with the table in docs/commands.md.

/// The number with which the program ends, and what that number tells the person or program that started it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExitCode {
    number: u8,
    meaning: &'static str,
}

macro_rules! exit_codes {
    ($($name:ident = $number:literal, $meaning:literal;)*) => {
        impl ExitCode {
            $(pub(crate) const $name: ExitCode = ExitCode { number: $number, meaning: $meaning };)*

            /// Every code with which the program can end, in ascending order.
            pub const ALL: &[ExitCode] = &[$(ExitCode::$name),*];
        }
    };
}

exit_codes! {
    SUCCESS = 0, "The gateway was told to stop, or the command did what it was asked for.";
    PROBLEMS_FOUND = 1, "`pigateway doctor` has found problems.";
    // clap ends the program itself with this code
    USAGE = 2, "The command line is not valid.";
    DATA_ERROR = 65, "A password is not acceptable, the journal is damaged, or a file to import is of another kind.";
    NO_INPUT = 66, "A journal or a file to import is missing or cannot be read, nothing waits for the named upstream, or a \
        valid configuration names files that cannot be read.";
    NO_USER = 67, "The configuration has no such user.";
    UNAVAILABLE = 69, "No port can be opened, or a broker or a running gateway does not answer or refuses.";
    SOFTWARE = 70, "A part of the gateway ended unexpectedly, or an import made a configuration that is not valid.";
    OS_ERROR = 71, "The system refuses threads, timers, signals or the log.";
    CANNOT_CREATE = 73, "The data directory, the journal in it or another file cannot be created, used or written.";
    IO_ERROR = 74, "Standard input or output failed.";
    CONFIG = 78, "A configuration file is not valid, or is another program's.";
}

impl ExitCode {
    /// The number that the system hands to the parent process.
    pub fn number(self) -> u8 {
        self.number
    }

    /// What the number means, as one sentence with Markdown's backticks around commands.
    pub fn meaning(self) -> &'static str {
        self.meaning
    }
}

//! Commands whose arguments are described only when they are needed, because a starting gateway needs those of one command.

use clap::{ArgMatches, Args, Command, Error, FromArgMatches, Id};

/// Arguments that clap describes only if this command is called or its help is shown.
#[derive(Debug)]
pub(super) struct Deferred<T>(pub(super) T);

impl<T: FromArgMatches> FromArgMatches for Deferred<T> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, Error> {
        T::from_arg_matches(matches).map(Deferred)
    }

    fn from_arg_matches_mut(matches: &mut ArgMatches) -> Result<Self, Error> {
        T::from_arg_matches_mut(matches).map(Deferred)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), Error> {
        self.0.update_from_arg_matches(matches)
    }
}

impl<T: Args> Args for Deferred<T> {
    fn group_id() -> Option<Id> {
        T::group_id()
    }

    fn augment_args(command: Command) -> Command {
        command.defer(|command| with_about(command, T::augment_args))
    }

    fn augment_args_for_update(command: Command) -> Command {
        command.defer(|command| with_about(command, T::augment_args_for_update))
    }
}

/// Adds arguments to a command and keeps the command's own description instead of that of the arguments.
fn with_about(command: Command, augment: fn(Command) -> Command) -> Command {
    let (about, long) = (command.get_about().cloned(), command.get_long_about().cloned());
    let described = augment(command).about(None).long_about(None);
    let described = about.into_iter().fold(described, Command::about);
    long.into_iter().fold(described, Command::long_about)
}

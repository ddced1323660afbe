//! The configuration: from a TOML file to the valid settings of every room.
//!
//! A file is read to the end whatever is wrong with it, so that a person sees all problems at once, each with its line
//! and column, the key, what was found, what is valid and, for a word that is close to a valid one, that one. Settings
//! exist only when there is no problem; the rooms need not check them again.
//!
//! Passwords, certificates and keys are files of their own. One that is missing or will not do is no mistake of the
//! configuration: it is reported apart, and the part that needs it stays closed until the file is there.

mod accounts;
mod broker;
mod document;
mod error;
mod file;
mod home_assistant;
mod listeners;
mod mdns;
mod paths;
pub(crate) mod reload;
mod sensors;
mod settings;
mod sizes;
pub mod units;
mod upstream;
mod users;

pub(crate) use error::{ConfigProblem, ConfigProblems};
pub(crate) use file::load;
pub use file::read;
pub use paths::Environment;
pub(crate) use settings::Settings;
pub(crate) use users::{LARGEST as LARGEST_USERS_FILE, MadeUsers, load_made_users, made_users_path};
pub use users::{made_users_text, read_made_users};

#[cfg(test)]
mod tests;

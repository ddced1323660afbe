//! The configuration: reads a TOML file and produces the valid settings of every room.
//!
//! A file is always read to its end, so that a person sees all problems at once: each with line, column and key, what was
//! found, what is valid, and the word that was probably meant. Settings are produced only if there is no problem, so the
//! rooms need not check them again.
//!
//! Passwords, certificates and keys are in files of their own. A missing or unusable one is no mistake of the configuration:
//! it is reported separately, and the part that needs it waits for the file.

mod accounts;
mod broker;
mod document;
mod doors;
mod error;
mod file;
mod home_assistant;
mod listeners;
mod mdns;
mod own_address;
mod paths;
pub(crate) mod reload;
mod sensors;
mod settings;
mod sizes;
pub mod units;
mod upstream;
mod users;

pub(crate) use error::{ConfigProblem, ConfigProblems};
pub use file::read;
pub(crate) use file::{load, load_again};
pub use paths::Environment;
pub(crate) use settings::Settings;
pub(crate) use users::{LARGEST as LARGEST_USERS_FILE, MadeUsers, load_made_users, made_users_path};
pub use users::{made_users_text, read_made_users};

#[cfg(test)]
mod tests;

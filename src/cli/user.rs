//! `pigateway user`: prints the configuration table of a user.

use std::io::{self, IsTerminal};

use base64ct::{Base64, Encoding};

use super::{CliError, print};
use crate::access::hash;
use crate::access::settings::{beyond_basic, is_user_name};

#[derive(Debug, clap::Args)]
pub(super) struct UserArgs {
    /// Name of the user
    #[arg(value_parser = user_name)]
    pub(super) name: String,
}

fn user_name(text: &str) -> Result<String, &'static str> {
    if is_user_name(text) { Ok(text.into()) } else { Err("a name has 1 to 1024 bytes and no control characters") }
}

/// Reads a new password: twice on a terminal, otherwise one line of standard input.
fn ask_password(name: &str) -> Result<String, CliError> {
    let password = if io::stdin().is_terminal() {
        let first = prompt(&format!("Password for {name}: "))?;
        if first != prompt("The same again: ")? {
            return Err(CliError::Password("the two passwords differ"));
        }
        first
    } else {
        read_line()?
    };
    if password.is_empty() { Err(CliError::Password("the password is empty")) } else { Ok(password) }
}

/// Reads an existing password: once on a terminal, otherwise one line of standard input.
pub(super) fn read_password(name: &str) -> Result<String, CliError> {
    if io::stdin().is_terminal() { prompt(&format!("Password of {name}: ")) } else { read_line() }
}

fn prompt(text: &str) -> Result<String, CliError> {
    rpassword::prompt_password(text).map_err(CliError::io("the password cannot be read from the terminal"))
}

fn read_line() -> Result<String, CliError> {
    let mut line = String::new();
    let read = io::stdin().read_line(&mut line);
    read.map_err(CliError::io("the password cannot be read from standard input"))?;
    Ok(line.trim_start_matches('\u{feff}').trim_end_matches(['\r', '\n']).into())
}

/// Makes the table of a user with a new password.
pub(super) fn user(args: &UserArgs) -> Result<(), CliError> {
    if let Some(why) = beyond_basic(&args.name) {
        eprintln!("warning: {why}");
    }
    print(user_table(&args.name, &ask_password(&args.name)?)?.as_bytes())
}

/// What Basic authentication sends.
pub(super) fn basic(name: &str, password: &str) -> Result<String, CliError> {
    match beyond_basic(name) {
        Some(why) => Err(CliError::Gateway(why)),
        None => Ok(Base64::encode_string(format!("{name}:{password}").as_bytes())),
    }
}

/// The table of a user, to be pasted into the configuration.
fn user_table(name: &str, password: &str) -> Result<String, CliError> {
    let name = toml::Value::String(name.into());
    let hash = hash::make(password).map_err(CliError::io("the password cannot be hashed"))?;
    Ok(format!("[[broker.user]]\nname = {name}\npassword_hash = \"{hash}\"\npublish = [\"#\"]\nsubscribe = [\"#\"]\n"))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use argon2::password_hash::PasswordHash;
    use argon2::{Argon2, PasswordVerifier};

    use super::*;
    use crate::config;

    #[test]
    fn the_printed_table_is_a_user_with_that_password() {
        let table = user_table("esp \"loft\"", "hunter2").unwrap();
        let loaded = config::read(&table, Path::new("x.toml"), &config::Environment::default()).unwrap();
        let user = &loaded.settings.broker.access.users[0];
        assert_eq!(user.name, "esp \"loft\"");
        let hash = PasswordHash::new(user.password_hash.as_deref().unwrap()).unwrap();
        assert!(Argon2::default().verify_password(b"hunter2", &hash).is_ok());
        assert!(Argon2::default().verify_password(b"hunter3", &hash).is_err());
    }
}

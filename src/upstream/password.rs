//! Fetches passwords for each connection, because tokens such as SAS and JWT expire, and files are replaced.

use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::process::Command;
use tokio::time::timeout;

use super::settings::Password;
use crate::secret::{self, Secret};

/// The most bytes of a password.
const MOST: u64 = 4 << 10;
/// The longest time in which a program must print the password.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long the rest of the output is read once the program has ended, if something else keeps the output open.
const REST: Duration = Duration::from_secs(1);

/// Fetches a password. An error never contains the password itself.
pub(super) async fn fetch(from: &Password) -> Result<Secret, String> {
    match from {
        Password::File(path) => {
            let path = path.clone();
            let read = tokio::task::spawn_blocking(move || secret::password(&path)).await;
            read.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
        }
        Password::Command(command) => run(command, PATIENCE).await,
    }
}

/// The text without the line ending.
fn printed(bytes: Vec<u8>) -> Result<Secret, String> {
    if bytes.len() as u64 > MOST {
        return Err(format!("is longer than {MOST} bytes"));
    }
    let text = String::from_utf8(secret::plain(bytes)).map_err(|_| "is not UTF-8 text")?;
    let text = text.strip_suffix('\n').unwrap_or(&text);
    let text = text.strip_suffix('\r').unwrap_or(text);
    if text.is_empty() { Err("is empty".into()) } else { Ok(Secret::new(text)) }
}

/// Kills a program and all that it has started when dropped.
struct ProcessGroup(Option<Pid>);

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        if let Some(pid) = self.0 {
            // a process that has ended does not exist any more
            let _ = kill_process_group(pid, Signal::KILL);
        }
    }
}

async fn run(command: &[String], patience: Duration) -> Result<Secret, String> {
    let (program, arguments) = command.split_first().ok_or("password_command is empty")?;
    let failed = |error: std::io::Error| format!("password_command {program}: {error}");
    let mut child = Command::new(program)
        .args(arguments)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    let group = ProcessGroup(child.id().and_then(|id| Pid::from_raw(id.cast_signed())));
    let output = child.stdout.take().ok_or("password_command has no output")?;
    let (mut output, mut bytes) = (output.take(MOST + 1), Vec::new());
    let finished = timeout(patience, async {
        tokio::select! {
            biased;
            read = read_all(&mut output, &mut bytes) => read?,
            // what the program has left running may keep its output open
            status = child.wait() => return status.map(Some),
        }
        if bytes.len() as u64 > MOST { Ok(None) } else { child.wait().await.map(Some) }
    });
    let finished = finished.await;
    drop(group);
    if matches!(finished, Ok(Ok(Some(_)))) {
        // the program has ended, so all that it printed is in the pipe
        let _ = timeout(REST, read_all(&mut output, &mut bytes)).await;
    }
    // so that no process is left
    let _ = child.start_kill();
    match finished {
        Err(_) => Err(format!("password_command {program} has not ended within {} s", patience.as_secs())),
        Ok(Err(error)) => Err(failed(error)),
        Ok(Ok(Some(status))) if !status.success() => Err(format!("password_command {program} failed: {status}")),
        Ok(Ok(_)) => printed(bytes).map_err(|problem| format!("what password_command {program} prints {problem}")),
    }
}

/// Reads until the end. Safe to cancel, because what was read is in `into`.
async fn read_all(mut from: impl AsyncRead + Unpin, into: &mut Vec<u8>) -> std::io::Result<()> {
    while from.read_buf(into).await? > 0 {}
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn sh(script: &str) -> Result<String, String> {
        let command = ["/bin/sh", "-c", script].map(str::to_owned);
        run(&command, PATIENCE).await.map(|secret| secret.expose().to_owned())
    }

    #[tokio::test]
    async fn a_program_prints_the_password_and_knows_nothing_of_us() {
        assert_eq!(sh("echo hunter2").await.unwrap(), "hunter2");
        // a program that prints a file which was written on Windows
        assert_eq!(sh("printf '\\357\\273\\277hunter2\\r\\n'").await.unwrap(), "hunter2");
        // one that leaves something running, as those of agents do; it is ended too
        assert_eq!(sh("sleep 600 & echo hunter2").await.unwrap(), "hunter2");
        assert_eq!(sh("printf '%s' \"$PATH_INFO$HOME$CREDENTIALS_DIRECTORY$CARGO\"; pwd").await.unwrap(), "/");
        let command = ["/bin/echo", "$HOME; x"].map(str::to_owned);
        assert_eq!(run(&command, PATIENCE).await.unwrap().expose(), "$HOME; x", "there is no shell");
    }

    #[tokio::test]
    async fn what_it_prints_never_gets_into_an_error() {
        for (script, expected) in [
            ("echo hunter2; exit 3", "failed: exit status: 3"),
            ("echo hunter2 >&2; exit 1", "failed: exit status: 1"),
            ("true", "is empty"),
            ("printf 'hunter2\\377'", "not UTF-8"),
            ("head -c 5000 /dev/zero | tr '\\0' h", "longer than 4096 bytes"),
            ("yes hunter2", "longer than 4096 bytes"),
        ] {
            let error = sh(script).await.unwrap_err();
            assert!(error.contains(expected) && !error.contains("hunter2"), "{script}: {error}");
        }
        let missing = run(&["/does/not/exist".to_owned()], PATIENCE).await.unwrap_err();
        assert!(missing.contains("/does/not/exist") && missing.contains("No such file"), "{missing}");
    }

    #[tokio::test]
    async fn whoever_takes_too_long_is_ended_with_all_its_children() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pid");
        let script = format!("sleep 1000 & echo $! > {}; sleep 1000", file.display());
        let command = ["/bin/sh", "-c", &script].map(str::to_owned);
        let error = run(&command, Duration::from_secs(2)).await.unwrap_err();
        assert!(error.contains("within 2 s"), "{error}");
        let child = std::fs::read_to_string(&file).unwrap();
        let state = || std::fs::read_to_string(format!("/proc/{}/stat", child.trim())).unwrap_or_default();
        let begin = std::time::Instant::now();
        while !(state().is_empty() || state().contains(") Z")) {
            assert!(begin.elapsed() < Duration::from_secs(10), "{}", state());
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_file_is_read_each_time() {
        let file = tempfile::NamedTempFile::new().unwrap();
        for password in ["one", "two"] {
            std::fs::write(file.path(), format!("{password}\n")).unwrap();
            assert_eq!(fetch(&Password::File(file.path().into())).await.unwrap().expose(), password);
        }
        let error = fetch(&Password::File("/does/not/exist".into())).await.unwrap_err();
        assert!(error.contains("/does/not/exist"), "{error}");
    }
}

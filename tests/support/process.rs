//! A process that a test has started, with its output.

use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::{PATIENCE, wait_until};

/// A running process. Killed when dropped.
pub struct Process {
    name: String,
    child: Child,
    lines: Arc<Mutex<Vec<String>>>,
    readers: Vec<JoinHandle<()>>,
}

impl Process {
    /// Starts a command. Fails with a clear message if the program is missing.
    pub fn start(command: &mut Command) -> Process {
        let name = command.get_program().to_string_lossy().into_owned();
        let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = match piped.spawn() {
            Ok(child) => child,
            Err(error) => panic!("cannot run {name}: {error}; tests/run installs what the tests need"),
        };
        let lines = Arc::new(Mutex::new(Vec::new()));
        let stdout = child.stdout.take().map(|output| collect(output, lines.clone()));
        let stderr = child.stderr.take().map(|output| collect(output, lines.clone()));
        Process { name, child, lines, readers: stdout.into_iter().chain(stderr).collect() }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Writes this to its standard input and closes the input.
    pub fn input(&mut self, text: &[u8]) {
        if let Some(mut input) = self.child.stdin.take() {
            input.write_all(text).expect("standard input");
        }
    }

    /// Everything printed so far.
    pub fn log(&self) -> Vec<String> {
        self.lines.lock().unwrap().clone()
    }

    /// Waits for a line that contains `text` and returns it.
    #[track_caller]
    pub fn wait_for_line(&self, text: &str) -> String {
        self.wait_for_lines(text, 1).pop().unwrap()
    }

    /// Waits for this many lines that contain `text`.
    #[track_caller]
    pub fn wait_for_lines(&self, text: &str, count: usize) -> Vec<String> {
        let mut found: Vec<String> = Vec::new();
        let begin = Instant::now();
        while begin.elapsed() < PATIENCE {
            found = self.log().into_iter().filter(|line| line.contains(text)).collect();
            if found.len() >= count {
                return found;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        panic!("{}: {} of {count} lines with {text:?}; it says:\n{}", self.name, found.len(), self.log().join("\n"));
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Whether the process sleeps.
    pub fn is_asleep(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap_or_default();
        // pid (name) state
        stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('S'))
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, signal).expect("the process is there");
    }

    /// Waits for its end, and returns its exit code and everything that it printed.
    #[track_caller]
    pub fn wait(mut self) -> (Option<i32>, Vec<String>) {
        drop(self.child.stdin.take());
        let mut status: Option<ExitStatus> = None;
        wait_until(&format!("the end of {}", self.name), || {
            status = self.child.try_wait().expect("its status");
            status.is_some()
        });
        for reader in self.readers.drain(..) {
            reader.join().expect("its output");
        }
        (status.and_then(|status| status.code()), self.log())
    }

    /// Sends SIGTERM, and returns the result of [`Process::wait`].
    #[track_caller]
    pub fn stop(self) -> (Option<i32>, Vec<String>) {
        self.signal(Signal::TERM);
        self.wait()
    }

    /// Sends SIGKILL, which ends the process as suddenly as a power cut.
    pub fn kill(self) -> Vec<String> {
        self.signal(Signal::KILL);
        self.wait().1
    }

    /// A figure of /proc/PID/status in KiB, such as `VmRSS` or `VmHWM`.
    pub fn memory_kib(&self, name: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.pid())).expect("it runs");
        let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).expect("a known figure");
        line.trim().trim_end_matches(" kB").parse().expect("a number")
    }

    /// The number of its threads.
    pub fn threads(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/task", self.pid())).expect("it runs").count()
    }

    /// How often its threads have waited, which is how often they were woken.
    pub fn waits(&self) -> u64 {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.pid())).expect("it runs");
        let waits = tasks.flatten().filter_map(|task| {
            let text = std::fs::read_to_string(task.path().join("status")).ok()?;
            text.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"))?.trim().parse::<u64>().ok()
        });
        waits.sum()
    }

    /// Processor time of all its threads.
    pub fn cpu_time(&self) -> Duration {
        self.scheduled().0
    }

    /// For how long its threads together have run, and for how long they have waited for a processor that others used.
    pub fn scheduled(&self) -> (Duration, Duration) {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.pid())).expect("it runs");
        let figures = tasks.flatten().filter_map(|task| {
            let text = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
            let mut nanos = text.split_whitespace().map_while(|figure| figure.parse().ok().map(Duration::from_nanos));
            Some((nanos.next()?, nanos.next()?))
        });
        figures.fold((Duration::ZERO, Duration::ZERO), |sum, more| (sum.0 + more.0, sum.1 + more.1))
    }

    /// The share of the time since `before`, as [`Process::scheduled`] has given it, in which its threads ran while they could.
    /// The rest of that time other processes have used the processors.
    pub fn share_since(&self, before: (Duration, Duration)) -> f64 {
        let (ran, waited) = self.scheduled();
        let (ran, waited) = (ran.saturating_sub(before.0), waited.saturating_sub(before.1));
        ran.as_secs_f64() / (ran + waited).as_secs_f64().max(f64::MIN_POSITIVE)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.is_running() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if std::thread::panicking() {
            let log = self.log();
            let last = &log[log.len().saturating_sub(20)..];
            eprintln!("--- {} (pid {}) said last:\n{}\n---", self.name, self.pid(), last.join("\n"));
        }
    }
}

fn collect(output: impl Read + Send + 'static, lines: Arc<Mutex<Vec<String>>>) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let mut output = BufReader::new(output);
        let mut line = Vec::new();
        while output.read_until(b'\n', &mut line).is_ok_and(|count| count > 0) {
            lines.lock().unwrap().push(String::from_utf8_lossy(&line).trim_end().to_owned());
            line.clear();
        }
    })
}

//! Starts the gateway and mosquitto, each on a port of its own.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::ReadSome;
use super::{PATIENCE, Process, free_port};

/// CONNECT of MQTT 3.1.1 with client id "probe", clean, with a keep alive of a minute, without which the stock rumqttd
/// refuses it.
pub const PROBE: &[u8] = b"\x10\x11\0\x04MQTT\x04\x02\0\x3c\0\x05probe";

/// A gateway under test.
pub struct Gateway {
    process: Process,
    /// Its first listener's port.
    pub port: u16,
    dir: TempDir,
}

/// The settings with which a gateway is started.
pub struct Setup {
    port: u16,
    listen_on: &'static str,
    gpio: &'static str,
    extra: String,
    http: String,
    environment: Vec<(String, String)>,
    program: PathBuf,
    dir: TempDir,
}

impl Default for Setup {
    fn default() -> Self {
        let dir = tempfile::Builder::new().prefix("pigateway-test-").tempdir().expect("a temporary directory");
        Setup {
            port: free_port(),
            listen_on: "127.0.0.1",
            gpio: "simulated",
            extra: String::new(),
            http: "off".into(),
            environment: Vec::new(),
            program: env!("CARGO_BIN_EXE_pigateway").into(),
            dir,
        }
    }
}

impl Setup {
    /// Adds to the configuration: tables other than `[gateway]`, `[gpio]` and `[http]`.
    pub fn config(mut self, text: &str) -> Setup {
        self.extra.push_str(text);
        self.extra.push('\n');
        self
    }

    /// Makes the gateway listen at this address instead of 127.0.0.1.
    pub fn listen_on(mut self, address: &'static str) -> Setup {
        self.listen_on = address;
        self
    }

    /// Sets the backend of the GPIO.
    pub fn gpio(mut self, backend: &'static str) -> Setup {
        self.gpio = backend;
        self
    }

    /// Serves HTTPS on a loopback port, which it returns, with these files.
    pub fn http_tls(self, files: &str) -> (Setup, u16) {
        self.http_with(&format!("tls = {files}"))
    }

    /// Serves HTTP on a loopback port, which it returns, with these lines below `[http]`.
    pub fn http_with(self, lines: &str) -> (Setup, u16) {
        let (mut setup, port) = self.http();
        setup.http = format!("127.0.0.1:{port}\"\n{lines} #\"");
        (setup, port)
    }

    /// Serves HTTP on a loopback port, which it returns.
    pub fn http(mut self) -> (Setup, u16) {
        let port = free_port();
        self.http = format!("127.0.0.1:{port}");
        (self, port)
    }

    /// Uses this port, even if another program has it.
    pub fn port(mut self, port: u16) -> Setup {
        self.port = port;
        self
    }

    /// Sets a variable in its environment.
    pub fn environment(mut self, name: &str, value: &str) -> Setup {
        self.environment.push((name.into(), value.into()));
        self
    }

    /// Uses another build of the gateway, so that benchmarks can compare two.
    pub fn program(mut self, program: PathBuf) -> Setup {
        self.program = program;
        self
    }

    /// The port of its first listener.
    pub fn port_number(&self) -> u16 {
        self.port
    }

    /// The directory of the configuration and its files.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Writes the configuration.
    pub fn write(&self) -> PathBuf {
        let Setup { port, listen_on, gpio, extra, http, .. } = self;
        let text = format!(
            "[gateway]\nid = \"test\"\ndata_dir = \"data\"\n[gpio]\nbackend = \"{gpio}\"\n[http]\naddress = \"{http}\"\n\
             [[broker.listener]]\naddress = \"{listen_on}:{port}\"\n{extra}"
        );
        let path = self.dir.path().join("pigateway.toml");
        std::fs::write(&path, text).expect("the configuration");
        path
    }

    /// Starts the gateway without waiting for anything.
    pub fn spawn(&self) -> Process {
        let path = self.write();
        let mut command = Command::new(&self.program);
        if self.environment.iter().any(|(name, _)| name == "WATCHDOG_USEC") {
            // WATCHDOG_PID must be the program's own number, which is unknown before it starts
            command = Command::new("sh");
            command.args(["-c", "WATCHDOG_PID=$$ exec \"$0\" \"$@\""]).arg(&self.program);
        }
        command.arg("run").arg("--config").arg(path).current_dir(self.dir.path());
        Process::start(command.envs(self.environment.iter().map(|(name, value)| (name, value))))
    }

    /// Runs `script` in a mount namespace of its own, in the directory of the configuration, and then starts the gateway
    /// there. Needs no root if the system has user namespaces.
    #[track_caller]
    pub fn start_after(self, script: &str) -> Gateway {
        let script = format!("set -e; {script}; exec \"$0\" run --config \"$1\"");
        let mut command = Command::new("unshare");
        command.args(["--map-root-user", "--mount", "sh", "-c", &script]).arg(&self.program).arg(self.write());
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        let mut process = Process::start(command.current_dir(self.dir.path()));
        wait_until_served(&mut process, self.port);
        Gateway { process, port: self.port, dir: self.dir }
    }

    /// Starts the gateway and waits until it serves.
    #[track_caller]
    pub fn start(self) -> Gateway {
        let mut process = self.spawn();
        wait_until_served(&mut process, self.port);
        Gateway { process, port: self.port, dir: self.dir }
    }
}

/// The program under test.
pub fn gateway() -> Command {
    Command::new(env!("CARGO_BIN_EXE_pigateway"))
}

/// The hash of a password, as `pigateway user` prints it.
pub fn password_hash(password: &str) -> String {
    let mut process = Process::start(gateway().args(["user", "somebody"]));
    process.input(format!("{password}\n").as_bytes());
    let (code, lines) = process.wait();
    assert_eq!(code, Some(0), "{lines:?}");
    let line = lines.iter().find_map(|line| line.trim().strip_prefix("password_hash = \"")).expect("a hash");
    line.split('"').next().expect("a quoted hash").to_owned()
}

impl Gateway {
    /// Starts a gateway with the defaults.
    #[track_caller]
    pub fn start() -> Gateway {
        Setup::default().start()
    }

    /// Starts a gateway with these lines added to the configuration.
    #[track_caller]
    pub fn with(config: &str) -> Gateway {
        Setup::default().config(config).start()
    }

    /// The address to which clients connect.
    pub fn address(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    /// The directory of the configuration and its files.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Runs a command in the mount namespace of [`Setup::start_after`].
    #[track_caller]
    pub fn run_inside(&self, command: &[&str]) {
        let pid = self.pid().to_string();
        let mut nsenter = Command::new("nsenter");
        nsenter.args(["--preserve-credentials", "--user", "--mount", "--target", &pid, "--"]).args(command);
        let status = nsenter.status().expect("nsenter");
        assert!(status.success(), "{command:?}: {status}");
    }

    /// Ends the gateway in order, and returns what is left to start it again.
    #[track_caller]
    pub fn end(self) -> Killed {
        self.process.stop();
        Killed { dir: self.dir, port: self.port }
    }

    /// Sends SIGTERM. Returns the exit code and everything printed.
    #[track_caller]
    pub fn stop(self) -> (Option<i32>, Vec<String>) {
        self.process.stop()
    }

    /// Waits for its end. Returns the exit code and everything printed.
    #[track_caller]
    pub fn wait(self) -> (Option<i32>, Vec<String>) {
        self.process.wait()
    }

    /// Kills it with SIGKILL. The files stay on disk for [`Killed::restart`].
    pub fn kill(self) -> Killed {
        self.process.kill();
        Killed { dir: self.dir, port: self.port }
    }
}

impl Deref for Gateway {
    type Target = Process;

    fn deref(&self) -> &Process {
        &self.process
    }
}

impl DerefMut for Gateway {
    fn deref_mut(&mut self) -> &mut Process {
        &mut self.process
    }
}

/// What a gateway leaves when it is killed.
pub struct Killed {
    dir: TempDir,
    port: u16,
}

impl Killed {
    fn spawn(&self) -> Process {
        let path = self.dir.path().join("pigateway.toml");
        Process::start(gateway().arg("run").arg("--config").arg(path).current_dir(self.dir.path()))
    }

    /// Starts it again and kills it after this time, even if it is not ready.
    pub fn start_and_kill(self, after: Duration) -> Killed {
        let process = self.spawn();
        std::thread::sleep(after);
        process.kill();
        self
    }

    /// The directory of the configuration and its files.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The settings with which it was started, so that they can be changed.
    pub fn setup(self) -> Setup {
        Setup { port: self.port, dir: self.dir, ..Setup::default() }
    }

    /// Starts it again with the same files and port.
    #[track_caller]
    pub fn restart(self) -> Gateway {
        let mut process = self.spawn();
        wait_until_served(&mut process, self.port);
        Gateway { process, port: self.port, dir: self.dir }
    }
}

/// A mosquitto to compare with or to bridge to.
pub struct Mosquitto {
    process: Process,
    /// Its port.
    pub port: u16,
    _dir: TempDir,
}

impl Mosquitto {
    /// Starts it with these lines added to its configuration.
    #[track_caller]
    pub fn with(config: &str) -> Mosquitto {
        let (mut process, dir, port) = Self::spawn(config);
        wait_until_served(&mut process, port);
        Mosquitto { process, port, _dir: dir }
    }

    /// Starts it on this port, persistent if the lines say so.
    #[track_caller]
    pub fn on(port: u16, config: &str) -> Mosquitto {
        let (mut process, dir) = Self::spawn_on(port, config);
        wait_until_served(&mut process, port);
        Mosquitto { process, port, _dir: dir }
    }

    fn spawn(config: &str) -> (Process, TempDir, u16) {
        let port = free_port();
        let (process, dir) = Self::spawn_on(port, config);
        (process, dir, port)
    }

    fn spawn_on(port: u16, config: &str) -> (Process, TempDir) {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("mosquitto.conf");
        let text = format!("listener {port} 127.0.0.1\nallow_anonymous true\n{config}\n");
        std::fs::write(&path, text).expect("the configuration");
        (Process::start(Command::new(mosquitto()).arg("-c").arg(path)), dir)
    }

    /// From now on it can be reached at this port too, until the test ends.
    #[track_caller]
    pub fn also_at(&self, port: u16) {
        let listener = TcpListener::bind(("127.0.0.1", port)).expect("a free port");
        let own = self.port;
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                if let Ok(broker) = TcpStream::connect(("127.0.0.1", own)) {
                    carry_both_ways(client, broker);
                }
            }
        });
    }

    /// SIGTERM.
    pub fn stop(self) {
        self.process.stop();
    }
}

/// Carries all bytes between these connections from now on.
pub fn carry_both_ways(client: TcpStream, server: TcpStream) {
    let ways = [(client.try_clone(), server.try_clone()), (Ok(server), Ok(client))];
    for (from, to) in ways {
        let (mut from, mut to) = (from.expect("a second handle"), to.expect("a second handle"));
        std::thread::spawn(move || std::io::copy(&mut from, &mut to));
    }
}

/// The program of mosquitto. Debian installs it in a directory that is not in the path of most users.
fn mosquitto() -> &'static str {
    if Path::new("/usr/sbin/mosquitto").exists() { "/usr/sbin/mosquitto" } else { "mosquitto" }
}

impl Deref for Mosquitto {
    type Target = Process;

    fn deref(&self) -> &Process {
        &self.process
    }
}

/// Waits for a CONNACK from a process that listens on this loopback port.
#[track_caller]
pub fn wait_until_served(process: &mut Process, port: u16) {
    let begin = Instant::now();
    while !is_served(port) {
        assert!(process.is_running(), "it has ended: {}", process.log().join("\n"));
        assert!(begin.elapsed() < PATIENCE, "port {port} is not served; it says: {}", process.log().join("\n"));
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// Whether a broker answers CONNECT at this address.
pub fn is_served(port: u16) -> bool {
    let Ok(mut stream) = TcpStream::connect(("localhost", port)) else { return false };
    let mut answer = [0; 4];
    // any answer, even a refusal, shows that a broker serves
    stream.set_read_timeout(Some(Duration::from_secs(5))).is_ok()
        && stream.write_all(PROBE).is_ok()
        && stream.read_exact(&mut answer).is_ok()
        && answer[0] == 0x20
        && stream.write_all(&[0xe0, 0]).is_ok()
        // when the connection has ended, everything that it used is free again
        && stream.read_some(&mut answer).is_ok_and(|count| count == 0)
}

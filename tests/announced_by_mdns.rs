//! The gateway announces its open ports in the local network through Avahi. The tests use a real Avahi and a real D-Bus in a
//! network of their own, whose only interface is a loopback.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::path::Path;
use std::process::Command;

use rustix::process::Signal;
use support::{PATIENCE, Process, Setup, wait_until};
use tempfile::TempDir;

/// Makes a host for the programs in it, with files of its own below /run and for users, and with a network of its own.
const HOST: &str = "\
ip link set lo up multicast on
ip route add 224.0.0.0/4 dev lo
mount -t tmpfs none /run
mkdir /run/avahi-daemon
grep -v ^avahi: /etc/passwd > passwd; echo avahi:x:0:0::/:/bin/false >> passwd; mount --bind passwd /etc/passwd
grep -v ^avahi: /etc/group > group; echo avahi:x:0: >> group; mount --bind group /etc/group
echo up
exec sleep infinity
";

/// The configuration of a bus on which every program may do everything.
const BUS: &str = r#"<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
 "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path=/run/bus</listen>
  <policy context="default">
    <allow user="*"/>
    <allow own="*"/>
    <allow send_destination="*" eavesdrop="true"/>
    <allow receive_sender="*" eavesdrop="true"/>
  </policy>
</busconfig>
"#;

const AVAHI: &str =
    "[server]\nhost-name=pi\nallow-interfaces=lo\n[publish]\npublish-workstation=no\npublish-hinfo=no\n";

/// A host with a network of its own.
struct Host {
    root: Process,
    dir: TempDir,
}

impl Host {
    fn start() -> Host {
        let dir = tempfile::Builder::new().prefix("pigateway-test-").tempdir().unwrap();
        fs::write(dir.path().join("bus.conf"), BUS).unwrap();
        fs::write(dir.path().join("avahi.conf"), AVAHI).unwrap();
        let mut command = Command::new("unshare");
        command.args(["--map-root-user", "--mount", "--net", "sh", "-e", "-c", HOST]).current_dir(dir.path());
        let root = Process::start(&mut command);
        root.wait_for_line("up");
        Host { root, dir }
    }

    /// A command on this host.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new("nsenter");
        let pid = self.root.pid().to_string();
        command.args(["--preserve-credentials", "--user", "--mount", "--net", "--wd", "--target", &pid, "--", program]);
        command.env("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/run/bus").current_dir(self.dir.path());
        command
    }

    fn bus(&self) -> Process {
        let process =
            Process::start(self.command("dbus-daemon").args(["--config-file=bus.conf", "--nofork", "--nopidfile"]));
        self.wait_for("test -S /run/bus");
        process
    }

    fn avahi(&self) -> Process {
        let mut command = self.command("avahi-daemon");
        command.args(["--no-drop-root", "--no-chroot", "--no-rlimits", "--no-proc-title", "--file=avahi.conf"]);
        let process = Process::start(&mut command);
        process.wait_for_line("Server startup complete");
        process
    }

    fn wait_for(&self, condition: &str) {
        wait_until(condition, || self.command("sh").args(["-c", condition]).status().unwrap().success());
    }

    /// All announced services, as type, name, port and TXT records.
    fn found(&self) -> Vec<String> {
        let output = self
            .command("avahi-browse")
            .args(["--all", "--resolve", "--parsable", "--terminate", "--no-db-lookup"])
            .output();
        let output = String::from_utf8(output.expect("avahi-browse").stdout).unwrap();
        // =;interface;protocol;name;type;domain;host;address;port;txt
        let service = |line: &str| {
            let fields: Vec<&str> = line.splitn(10, ';').collect();
            let [_, _, "IPv4", name, kind, _, _, _, port, txt] = fields[..] else { return None };
            Some(format!("{kind} {} {port} {txt}", name.replace("\\032", " ").replace("\\035", "#")))
        };
        let mut found: Vec<String> = output.lines().filter(|line| line.starts_with('=')).filter_map(service).collect();
        found.sort();
        found
    }

    #[track_caller]
    fn finds(&self, expected: &[&str]) {
        let begin = std::time::Instant::now();
        loop {
            let found = self.found();
            if found == expected {
                return;
            }
            assert!(begin.elapsed() < PATIENCE, "found {found:#?} instead of {expected:#?}");
        }
    }

    /// Starts a gateway here.
    fn gateway(&self, setup: &Setup) -> Process {
        let program = env!("CARGO_BIN_EXE_pigateway");
        let mut command = self.command(program);
        command.arg("run").arg("--config").arg(setup.dir().join("pigateway.toml"));
        let process = Process::start(&mut command);
        process.wait_for_line("web page, REST");
        process
    }

    fn status(&self, setup: &Setup) -> String {
        let mut command = self.command(env!("CARGO_BIN_EXE_pigateway"));
        let output = command.args(["status", "--config"]).arg(setup.dir().join("pigateway.toml")).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    }
}

fn tls(dir: &Path) -> String {
    let authority = support::tls::Authority::new();
    authority.write_server_files(dir);
    "tls = { cert = \"server.crt\", key = \"server.key\" }".into()
}

#[test]
fn the_network_hears_of_open_ports_and_forgets_those_that_are_not() {
    let host = Host::start();
    let bus = host.bus();
    let avahi = host.avahi();
    // some listeners are not announced, and the key of one comes later
    let (setup, _) = Setup::default().http();
    let tls = tls(setup.dir());
    let key = setup.dir().join("server.key");
    fs::rename(&key, setup.dir().join("later")).unwrap();
    let port = setup.port_number();
    let listener = |address: &str, more: &str| format!("[[broker.listener]]\naddress = \"{address}\"\n{more}\n");
    let setup = setup.listen_on("0.0.0.0").config(
        &[
            listener("[::]:8883", &tls),
            listener("[::]:8884", &tls.replace(" }", ", client_ca = \"ca.crt\" }")),
            listener("127.0.0.1:1885", ""),
            listener("[::]:9001", "websocket = true"),
            listener("/run/mqtt.sock", ""),
        ]
        .concat(),
    );
    setup.write();
    // HTTP is open only for this host
    let gateway = host.gateway(&setup);
    let mqtt = format!("_mqtt._tcp pigateway test {port} \"id=test\" \"txtvers=1\"");
    host.finds(&[&mqtt]);
    let secure = "_secure-mqtt._tcp pigateway test 8883 \"id=test\" \"txtvers=1\"";
    fs::rename(setup.dir().join("later"), &key).unwrap();
    host.finds(&[&mqtt, secure]);
    gateway
        .wait_for_line(&format!("announced by mDNS as \"pigateway test\": _mqtt._tcp {port}, _secure-mqtt._tcp 8883"));
    let status = host.status(&setup);
    assert!(
        status.contains(&format!("announced by mDNS: _mqtt._tcp at port {port} as \"pigateway test\"\n")),
        "{status}"
    );

    // Avahi ends and starts again; a reload withdraws all announcements, and another restores them
    avahi.stop();
    wait_until("that there is no Avahi", || {
        host.status(&setup).contains("not announced by mDNS: Avahi does not run here\n")
    });
    let _avahi = host.avahi();
    host.finds(&[&mqtt, secure]);
    let path = setup.dir().join("pigateway.toml");
    let text = fs::read_to_string(&path).unwrap();
    fs::write(&path, format!("{text}\n[mdns]\nenabled = false\n")).unwrap();
    gateway.signal(Signal::HUP);
    host.finds(&[]);
    assert!(host.status(&setup).contains("not announced by mDNS: [mdns] enabled = false\n"));
    fs::write(&path, text).unwrap();
    gateway.signal(Signal::HUP);
    host.finds(&[&mqtt, secure]);

    // another gateway of the same name, with a page, and the first one ends
    let (other, page) = Setup::default().http();
    let path = other.write();
    let text = fs::read_to_string(&path).unwrap();
    // both ports are open for all hosts
    fs::write(&path, text.replace("127.0.0.1", "0.0.0.0")).unwrap();
    let second = host.gateway(&other);
    let page = format!("_http._tcp pigateway test #2 {page} \"path=/\" \"id=test\" \"txtvers=1\"");
    let renamed = format!("_mqtt._tcp pigateway test #2 {} \"id=test\" \"txtvers=1\"", other.port_number());
    host.finds(&[&page, &renamed, &mqtt, secure]);
    second.wait_for_line("the name \"pigateway test\" is taken, \"pigateway test #2\" is tried");
    let (code, log) = gateway.stop();
    assert_eq!(code, Some(0), "{log:?}");
    host.finds(&[&page, &renamed]);
    // the announcements of a killed gateway are withdrawn as well
    second.kill();
    host.finds(&[]);
    bus.stop();
}

#[test]
fn a_port_with_an_address_of_its_own_is_announced_where_it_is_although_two_interfaces_are_in_one_network() {
    let host = Host::start();
    let interfaces = "for at in 1 2; do ip link add net$at type veth peer name far$at; ip addr add 192.0.2.$at/24 dev net$at; \
                      ip link set far$at up; ip link set net$at up multicast on; done";
    assert!(host.command("sh").args(["-e", "-c", interfaces]).status().unwrap().success());
    let conf = host.dir.path().join("avahi.conf");
    fs::write(&conf, AVAHI.replace("=lo", "=net1,net2")).unwrap();
    let _bus = host.bus();
    let _avahi = host.avahi();
    for (address, interface) in [("192.0.2.1", "net1"), ("192.0.2.2", "net2")] {
        let (setup, _) = Setup::default().http();
        let setup = setup.listen_on(address);
        setup.write();
        let gateway = host.gateway(&setup);
        gateway.wait_for_line(&format!("announced by mDNS as \"pigateway test\": _mqtt._tcp {}", setup.port_number()));
        let found = |state: char| {
            let mut browse = host.command("avahi-browse");
            let output = browse.args(["--parsable", "--terminate", "--no-db-lookup", "_mqtt._tcp"]).output().unwrap();
            let output = String::from_utf8(output.stdout).unwrap();
            let lines = output.lines().filter(|line| line.starts_with(state));
            lines.filter_map(|line| line.split(';').nth(1).map(str::to_owned)).collect::<Vec<_>>()
        };
        wait_until("that it is found", || found('+') == [interface]);
        gateway.stop();
        wait_until("that it is forgotten", || found('+').is_empty());
    }
}

#[test]
fn the_file_for_hosts_of_containers_names_the_default_ports() {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/avahi.service")).unwrap();
    let mut expected = Vec::new();
    for listener in pigateway::broker::settings::BrokerSettings::default().listeners {
        expected.push(format!("<type>_mqtt._tcp</type><port>{}</port>", listener.address.tcp().unwrap().port()));
    }
    let page = pigateway::http::settings::HttpSettings::default().address.unwrap();
    expected.push(format!("<type>_http._tcp</type><port>{}</port>", page.port()));
    let text: String = text.split_whitespace().collect();
    let services: Vec<&str> = text.split("<service>").skip(1).collect();
    assert_eq!(services.len(), expected.len());
    for (service, expected) in services.iter().zip(expected) {
        assert!(service.starts_with(&expected), "{service} is not {expected}");
    }
}

//! A part that cannot work is a named problem, is tried again and shown, and never stops the other parts. A table lists all
//! parts: each is broken at the start, works again, breaks later and works again, as far as possible. Each time the page in
//! a browser, its data, `/readyz`, systemd's status line and the log say the same, and users of the other parts do not
//! notice.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};

use rustix::process::Signal;
use support::broker::gateway;
use support::browser::Tab;
use support::kernel::{CLOCK_IS_SET, kernel_of_the_test};
use support::packet::{Properties, publish};

use support::systemd::Systemd;
use support::tls::{Authority, client_config};
use support::{Client, Connect, Gateway, Mosquitto, PATIENCE, Setup, free_port, wait_until};

/// A sensor of all gateways here, which must keep working.
const STEADY: &str =
    "[[sensor]]\nname = \"steady\"\npin = 17\ntopic = \"steady\"\nwarm_up = \"0 s\"\nsimulate = [\"1 h off\"]\n";

/// A gateway with one part that can be broken.
struct Case {
    part: Part,
    dir: PathBuf,
    /// The port of the part, if it has one.
    port: u16,
    http: u16,
    taken: Option<TcpListener>,
    peer: Option<Mosquitto>,
    authority: Authority,
    /// The page, once it was opened.
    page: Option<Tab>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// Another program uses the address of a second listener.
    Listener,
    /// Another program uses the address of HTTP.
    Http,
    /// The key of a listener that asks for certificates is missing or belongs to another certificate.
    Certificate,
    /// The authority of its clients is missing or wrong.
    ClientCa,
    /// The certificate of HTTPS is missing or wrong.
    HttpCertificate,
    /// Two sensors are configured for the same pin.
    Sensor,
    /// The machine has no GPIO, and simulated motion is not configured.
    Gpio,
    /// The clock was not set since boot.
    Clock,
    /// No program listens at the address of the upstream.
    Upstream,
    /// The password for an upstream is missing.
    Password,
    /// The disk is full.
    Journal,
}

impl Part {
    fn config(self, port: u16) -> String {
        match self {
            Part::Listener => format!("[[broker.listener]]\naddress = \"127.0.0.1:{port}\"\n"),
            Part::Certificate | Part::ClientCa => format!(
                "[[broker.listener]]\naddress = \"127.0.0.1:{port}\"\n\
                 tls = {{ cert = \"server.crt\", key = \"server.key\", client_ca = \"ca.crt\" }}\n\
                 [[broker.user]]\nname = \"esp\"\n"
            ),
            Part::Gpio => {
                "[[sensor]]\nname = \"second\"\npin = 18\ntopic = \"second\"\n#simulate = \"random\"\n".into()
            }
            Part::Sensor => "[[sensor]]\nname = \"second\"\npin = 17\ntopic = \"second\"\n".into(),
            Part::Upstream | Part::Password => format!(
                "[[upstream]]\nname = \"home\"\naddresses = [\"mqtt://127.0.0.1:{port}\"]\nusername = \"ada\"\n\
                 retry = {{ min = \"100 ms\", max = \"200 ms\" }}\npassword_file = \"home.password\"\n\
                 [[upstream.out]]\ntopic_filter = \"up/#\"\n"
            ),
            Part::Http | Part::HttpCertificate | Part::Journal | Part::Clock => String::new(),
        }
    }

    /// The name of the part while it does not work. It differs if the part continues with its earlier files.
    fn name(self, port: u16, is_open: bool) -> String {
        match (self, is_open) {
            (Part::Certificate | Part::ClientCa, true) => format!("certificate of listener 127.0.0.1:{port}"),
            (Part::HttpCertificate, true) => format!("certificate of HTTP 127.0.0.1:{port}"),
            (Part::Listener | Part::Certificate | Part::ClientCa, _) => format!("listener 127.0.0.1:{port}"),
            (Part::Http | Part::HttpCertificate, _) => format!("HTTP 127.0.0.1:{port}"),
            (Part::Sensor | Part::Gpio, _) => "second".into(),
            (Part::Clock, _) => "clock".into(),
            (Part::Upstream | Part::Password, _) => "upstream home".into(),
            (Part::Journal, _) => "journal".into(),
        }
    }

    /// The words of the log about it.
    fn reason(self, is_open: bool) -> &'static str {
        match (self, is_open) {
            (Part::Listener | Part::Http, _) => "another program listens there",
            (Part::Certificate, false) => "server.key cannot be read: No such file",
            (Part::ClientCa, false) => "ca.crt cannot be read: No such file",
            (Part::HttpCertificate, false) => "server.crt cannot be read: No such file",
            (Part::Certificate, true) => "this key does not belong to the certificate",
            (Part::ClientCa, true) => "ca.crt has no certificate in PEM form",
            (Part::HttpCertificate, true) => "server.crt has no certificate in PEM form",
            (Part::Sensor, _) => "named twice",
            (Part::Gpio, _) => "this machine has no GPIO of a Raspberry Pi",
            (Part::Clock, _) => "no source of time has set the clock since boot",
            (Part::Upstream, _) => "waiting for upstream: Connection refused",
            (Part::Password, _) => "home.password cannot be read: No such file",
            (Part::Journal, _) => "has no room left",
        }
    }

    /// Whether the part can break while it works. No program can take an open port, and a clock that was set keeps running.
    fn can_break_later(self) -> bool {
        !matches!(self, Part::Listener | Part::Http | Part::Clock)
    }

    fn is_sensor(self) -> bool {
        matches!(self, Part::Sensor | Part::Gpio)
    }
}

impl Case {
    fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The file that is missing or wrong.
    fn culprit(&self) -> PathBuf {
        self.file(match self.part {
            Part::Certificate => "server.key",
            Part::ClientCa => "ca.crt",
            Part::Password => "home.password",
            _ => "server.crt",
        })
    }

    fn break_at_start(&mut self) {
        self.authority.write_server_files(&self.dir);
        fs::write(self.file("home.password"), "secret").unwrap();
        if self.part == Part::Password {
            self.peer = Some(Mosquitto::on(self.port, ""));
        }
        match self.part {
            Part::Listener | Part::Http => self.taken = Some(TcpListener::bind(("127.0.0.1", self.port)).unwrap()),
            Part::Certificate | Part::ClientCa | Part::HttpCertificate | Part::Password => {
                fs::rename(self.culprit(), self.file("elsewhere")).unwrap();
            }
            Part::Sensor | Part::Gpio | Part::Clock | Part::Upstream | Part::Journal => {}
        }
    }

    fn break_later(&mut self, gateway: &Gateway) {
        match self.part {
            Part::Listener | Part::Http | Part::Clock => unreachable!("{:?} cannot break later", self.part),
            Part::Certificate => {
                fs::write(self.culprit(), self.authority.sign("other").key).unwrap();
                // this shows the change at once; the gateway notices the others without a reload
                gateway.signal(Signal::HUP);
            }
            Part::ClientCa | Part::HttpCertificate => fs::write(self.culprit(), "not PEM").unwrap(),
            Part::Sensor => self.change_config(gateway, "pin = 18", "pin = 17"),
            Part::Upstream => self.peer.take().unwrap().stop(),
            Part::Password => {
                fs::rename(self.culprit(), self.file("elsewhere")).unwrap();
                // the password is read for the next connection
                self.peer.take().unwrap().stop();
                self.peer = Some(Mosquitto::on(self.port, ""));
            }
            Part::Gpio => self.change_config(gateway, "\nsimulate = \"random\"", "\n#simulate = \"random\""),
            Part::Journal => {
                let data = self.file("data").display().to_string();
                gateway.run_inside(&["sh", "-c", &format!("head -c 40M /dev/zero >{data}/ballast || true")]);
            }
        }
    }

    fn heal(&mut self, gateway: &Gateway) {
        match self.part {
            Part::Listener | Part::Http => drop(self.taken.take()),
            Part::Upstream => self.peer = Some(Mosquitto::on(self.port, "")),
            Part::Certificate | Part::ClientCa | Part::HttpCertificate | Part::Password => {
                if self.file("elsewhere").exists() {
                    fs::rename(self.file("elsewhere"), self.culprit()).unwrap();
                } else {
                    self.authority.write_server_files(&self.dir);
                }
            }
            Part::Sensor => self.change_config(gateway, "name = \"second\"\npin = 17", "name = \"second\"\npin = 18"),
            Part::Gpio => self.change_config(gateway, "#simulate", "simulate"),
            Part::Clock => gateway.run_inside(&["touch", CLOCK_IS_SET]),
            Part::Journal => {
                gateway.run_inside(&["rm", &self.file("data/ballast").display().to_string()]);
            }
        }
    }

    fn change_config(&self, gateway: &Gateway, from: &str, to: &str) {
        let path = self.file("pigateway.toml");
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{text}");
        fs::write(&path, text.replace(from, to)).unwrap();
        gateway.signal(Signal::HUP);
    }

    /// Whether the part does its work.
    fn works(&self, gateway: &Gateway) -> bool {
        if self.taken.is_some() {
            // a client that connects there reaches the other program, which never answers
            return false;
        }
        match self.part {
            Part::Listener => support::broker::is_served(self.port),
            Part::Http => support::http::try_request(self.port, "GET", "/livez", &[], b"").is_ok(),
            Part::Certificate | Part::ClientCa => {
                if !is_open(self.port) {
                    return false;
                }
                let identity = self.authority.sign("esp");
                !support::tls::is_turned_away(self.port, client_config(&self.authority, Some(&identity)))
            }
            Part::HttpCertificate => is_open(self.port),
            Part::Upstream | Part::Password => {
                pigateway_status(self).contains("\nupstream home: connected, 0 messages wait\n")
            }
            Part::Clock => support::http::get(self.http, "/api/v1/gateway").json()["clock_synchronised"] == true,
            Part::Sensor | Part::Gpio => {
                let mut client = Connect::new("sensor-probe").open(gateway.port);
                client.subscribe("second/status", 0);
                client.receive().text() == "online"
            }
            Part::Journal => {
                let mut client = Connect::v5("journal-probe").open(gateway.port);
                client.send(&publish(b"kept", b"x", 0x33, Some(7), Some(&Properties::new())));
                is_acknowledged(&mut client)
            }
        }
    }
}

/// Whether a PUBACK has arrived.
fn is_acknowledged(client: &mut Client) -> bool {
    client.send(&[0xc0, 0]);
    let mut acknowledged = false;
    while let Some(packet) = client.try_read() {
        match packet.kind() {
            4 => acknowledged = true,
            13 => break,
            _ => {}
        }
    }
    acknowledged
}

fn is_open(port: u16) -> bool {
    std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
}

/// Waits until all places that show problems show this one of the part, or none.
fn is_shown(case: &mut Case, gateway: &Gateway, systemd: &mut Systemd, expected: Option<&str>) {
    let part = case.part;
    let what = |place: &str| format!("{part:?} {expected:?} in {place}");
    // while HTTP is closed or uses TLS, this test cannot read its answers
    if !matches!(case.part, Part::Http | Part::HttpCertificate) || (case.part == Part::Http && expected.is_none()) {
        let name = expected.map(|name| if case.part.is_sensor() { format!("sensor {name}") } else { name.into() });
        let mut seen = String::new();
        wait_until(&what("the gateway's data"), || {
            case.poke(gateway);
            seen = support::http::get(case.http, "/api/v1/gateway").json()["faulty"].to_string();
            match &name {
                Some(name) => seen.contains(&format!("\"part\":\"{name}\"")),
                None => seen == "[]",
            }
        });
        assert!(expected.is_none() || seen.contains("\"remedy\"") && seen.contains("\"since_boot_ms\""), "{seen}");
        let ready = support::http::get(case.http, "/readyz");
        assert!(ready.head.contains(" 200 "), "{}", ready.head);
        let said = pigateway_status(case);
        match &name {
            Some(name) => assert!(said.contains(&format!("\nfaulty: {name}: ")), "{said}"),
            None => assert!(!said.contains("\nfaulty: "), "{said}"),
        }
        match name {
            Some(name) => assert!(ready.text().contains(&format!("{name}: ")), "{}", ready.text()),
            None => assert_eq!(ready.text(), "ok\n"),
        }
    }
    case.look_at_page(gateway, expected);
    wait_until(&what("the status line"), || match expected {
        Some(name) => systemd.status().contains(&format!("; faulty: {name}")),
        None => !systemd.status().contains("faulty"),
    });
}

/// The output of `pigateway status`.
fn pigateway_status(case: &Case) -> String {
    let mut command = gateway();
    let output = command.args(["status", "--config"]).arg(case.file("pigateway.toml")).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

impl Case {
    /// Checks that the open page shows by itself what is wrong, and when nothing is.
    fn look_at_page(&mut self, gateway: &Gateway, expected: Option<&str>) {
        let (scheme, port) = match self.part {
            // while HTTP is closed, the page cannot be loaded
            Part::Http if expected.is_some() => return,
            Part::HttpCertificate if !is_open(self.port) => return,
            Part::HttpCertificate => ("https", self.port),
            _ => ("http", self.http),
        };
        if self.page.is_none() {
            self.page = Some(Tab::open(&format!("{scheme}://localhost:{port}/")));
        }
        let Some(page) = &self.page else { return };
        let name = expected.map(|name| if self.part.is_sensor() { format!("sensor {name}") } else { name.into() });
        let begin = std::time::Instant::now();
        while !page.names_faulty(name.as_deref()) {
            let text = page.run("return document.body.innerText");
            assert!(begin.elapsed() < PATIENCE, "{:?}: {expected:?} on the page, which says: {text}", self.part);
            self.poke(gateway);
        }
    }

    /// Publishes a message that must be kept, because the gateway notices a full disk only when it writes.
    fn poke(&self, gateway: &Gateway) {
        if self.part == Part::Journal {
            let mut client = Connect::v5("journal-poke").open(gateway.port);
            // the file that is being written has room for some of these messages
            client.send(&publish(b"kept", &[b'x'; 200_000], 0x33, Some(7), Some(&Properties::new())));
        }
    }
}

/// A gateway whose part is broken from the start, and the messages that systemd gets from it.
fn start(part: Part) -> (Case, Gateway, Systemd) {
    let mut setup = Setup::default();
    let (mut port, mut http) = (free_port(), 0);
    if part == Part::HttpCertificate {
        (setup, port) = setup.http_tls("{ cert = \"server.crt\", key = \"server.key\" }");
    } else {
        (setup, http) = setup.http();
    }
    if part == Part::Http {
        port = http;
    }
    let setup = setup.config(STEADY).config(&part.config(port));
    let socket = setup.dir().join("notify");
    let systemd = Systemd::new(&socket);
    let setup = setup.environment("NOTIFY_SOCKET", &socket.display().to_string());
    let setup = match part {
        Part::Gpio => setup.gpio("auto"),
        Part::Clock => {
            let kernel = kernel_of_the_test(setup.dir());
            setup.environment("LD_PRELOAD", &kernel)
        }
        _ => setup,
    };
    let mut case = Case {
        part,
        dir: setup.dir().into(),
        port,
        http,
        taken: None,
        peer: None,
        authority: Authority::new(),
        page: None,
    };
    case.break_at_start();
    let gateway = match part {
        Part::Journal => {
            setup.start_after("mkdir data; mount -t tmpfs -o size=12m tmpfs data; head -c 10M /dev/zero >data/ballast")
        }
        // a system with systemd, on which a plausible date is no evidence that the clock is set
        Part::Clock => setup.start_after("mount -t tmpfs tmpfs /run; mkdir -p /run/systemd/system"),
        _ => setup.start(),
    };
    (case, gateway, systemd)
}

fn fails_alone(part: Part) {
    let (mut case, gateway, mut systemd) = start(part);
    let mut other = Connect::v5("other").open(gateway.port);
    other.subscribe("steady/status", 1);
    // it is "offline" until its pin is watched
    while other.receive().text() != "online" {}

    case.poke(&gateway);
    let closed = part.name(case.port, false);
    is_shown(&mut case, &gateway, &mut systemd, Some(&closed));
    gateway.wait_for_line(part.reason(false));
    assert!(!case.works(&gateway), "{part:?}");
    other.ping();

    // a reload does not repair the part
    gateway.signal(Signal::HUP);
    gateway.wait_for_line("configuration reloaded");
    is_shown(&mut case, &gateway, &mut systemd, Some(&closed));
    assert!(!case.works(&gateway), "{part:?} after a reload");

    case.heal(&gateway);
    wait_until(&format!("{part:?} works"), || case.works(&gateway));
    is_shown(&mut case, &gateway, &mut systemd, None);

    if part.can_break_later() {
        case.break_later(&gateway);
        let name = part.name(case.port, true);
        is_shown(&mut case, &gateway, &mut systemd, Some(&name));
        gateway.wait_for_line(part.reason(true));
        // the files that were read before they broke stay in use
        let goes_on = matches!(part, Part::Certificate | Part::ClientCa | Part::HttpCertificate);
        assert_eq!(case.works(&gateway), goes_on, "{part:?}");
        case.heal(&gateway);
        is_shown(&mut case, &gateway, &mut systemd, None);
        wait_until(&format!("{part:?} works again"), || case.works(&gateway));
    }
    if part == Part::Clock {
        // after hours without a time server the kernel reports an unset clock again, but the clock still runs well
        gateway.run_inside(&["rm", CLOCK_IS_SET]);
        gateway.signal(Signal::HUP);
        gateway.wait_for_lines("configuration reloaded", 2);
        is_shown(&mut case, &gateway, &mut systemd, None);
        assert!(case.works(&gateway), "a clock that was set");
    }
    // users of the other parts have not noticed
    other.ping();
    assert!(other.drain().is_empty(), "the other sensor has been disturbed");
    let (code, log) = gateway.stop();
    assert_eq!(code, Some(0), "{log:?}");
    assert_eq!(log.iter().filter(|line| line.contains("sensor=\"steady\"") && line.contains("watching")).count(), 1);
}

#[test]
fn a_listener_whose_port_is_taken() {
    fails_alone(Part::Listener);
}

#[test]
fn http_whose_port_is_taken() {
    fails_alone(Part::Http);
}

#[test]
fn a_listener_without_its_key() {
    fails_alone(Part::Certificate);
}

#[test]
fn a_listener_without_the_authority_of_its_clients() {
    fails_alone(Part::ClientCa);
}

#[test]
fn https_without_its_certificate() {
    fails_alone(Part::HttpCertificate);
}

#[test]
fn a_sensor_without_a_pin() {
    fails_alone(Part::Sensor);
}

#[test]
fn a_sensor_without_a_gpio() {
    if Path::new("/dev/gpiochip0").exists() {
        return; // the pins of this machine may be in use for something
    }
    fails_alone(Part::Gpio);
}

#[test]
fn an_upstream_that_is_away() {
    fails_alone(Part::Upstream);
}

#[test]
fn an_upstream_without_its_password() {
    fails_alone(Part::Password);
}

#[test]
fn a_clock_that_nothing_has_set() {
    fails_alone(Part::Clock);
}

#[test]
fn a_journal_without_room() {
    fails_alone(Part::Journal);
}

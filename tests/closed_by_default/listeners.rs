//! Listeners with settings of their own: who may sign in at each, by which transport, and how many connections it accepts.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::process::Command;

use super::{PASSWORD, hash, user};
use crate::support::tls::{Authority, client_config, is_turned_away, open, over};
use crate::support::{
    Client, Connect, Gateway, PATIENCE, Process, ReadSome, Setup, free_port, http, python, wait_until,
};

/// MQTT over WebSocket: each write is a frame.
struct WebSocket<S> {
    stream: S,
    payload: Vec<u8>,
}

impl<S: Read + Write> WebSocket<S> {
    fn open(mut stream: S) -> Result<WebSocket<S>, String> {
        let head = "GET /mqtt HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                    Sec-WebSocket-Protocol: mqtt\r\nSec-WebSocket-Version: 13\r\n\
                    Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
        stream.write_all(head.as_bytes()).unwrap();
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            if stream.read_some(&mut byte).unwrap_or(0) == 0 {
                break;
            }
            answer.push(byte[0]);
        }
        let answer = String::from_utf8(answer).unwrap();
        if answer.contains(" 101 ") { Ok(WebSocket { stream, payload: Vec::new() }) } else { Err(answer) }
    }
}

impl<S: Read + Write> Read for WebSocket<S> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        while self.payload.is_empty() {
            let mut head = [0; 2];
            self.stream.read_exact(&mut head)?;
            if head[0] & 15 == 8 {
                return Ok(0);
            }
            let mut len = usize::from(head[1]);
            if len == 126 {
                self.stream.read_exact(&mut head)?;
                len = usize::from(u16::from_be_bytes(head));
            }
            self.payload.resize(len, 0);
            self.stream.read_exact(&mut self.payload)?;
        }
        let count = buffer.len().min(self.payload.len());
        buffer[..count].copy_from_slice(&self.payload[..count]);
        self.payload.drain(..count);
        Ok(count)
    }
}

impl<S: Read + Write> Write for WebSocket<S> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let count = bytes.len().min(125);
        // a mask of zeros changes nothing
        self.stream.write_all(&[&[0x82, 0x80 | count as u8, 0, 0, 0, 0], &bytes[..count]].concat())?;
        Ok(count)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.stream.flush()
    }
}

fn connect(port: u16) -> TcpStream {
    let socket = TcpStream::connect(("127.0.0.1", port)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

#[test]
fn a_listener_may_be_for_websocket_and_nothing_else() {
    let authority = Authority::new();
    let setup = Setup::default();
    authority.write_server_files(setup.dir());
    let (plain, tls) = (free_port(), free_port());
    let gateway = setup
        .config(&format!(
            "[[broker.listener]]\naddress = \"127.0.0.1:{plain}\"\nwebsocket = true\n\
             [[broker.listener]]\naddress = \"127.0.0.1:{tls}\"\nwebsocket = true\nanonymous = \"none\"\n\
             tls = {{ cert = \"server.crt\", key = \"server.key\", client_ca = \"ca.crt\" }}\n{}",
            user("esp", "")
        ))
        .start();
    let socket = connect(plain);
    let stream = WebSocket::open(socket.try_clone().unwrap()).unwrap();
    let (mut client, connack) = Connect::v5("web").try_over(Box::new(stream), socket);
    assert_eq!(connack.reason, 0);
    client.subscribe("a", 1);
    Connect::new("plain").open(gateway.port).publish("a", "hello", 1, false);
    assert_eq!(client.receive().text(), "hello");
    let page = http::get(plain, "/");
    assert_eq!((page.status, http::get(plain, "/api/v1/clients").status), (426, 426), "no page, no REST");
    assert!(WebSocket::open(connect(gateway.port)).is_err(), "and no WebSocket where there is none");
    // over TLS the certificate names the user, as on every listener
    let identity = authority.sign("esp");
    let socket = connect(tls);
    let stream = over(socket.try_clone().unwrap(), client_config(&authority, Some(&identity)));
    let stream = WebSocket::open(stream).unwrap();
    assert_eq!(Connect::v5("tls").try_over(Box::new(stream), socket).1.reason, 0);
    let socket = connect(tls);
    let stream = over(socket.try_clone().unwrap(), client_config(&authority, Some(&authority.sign("stranger"))));
    let stream = WebSocket::open(stream).unwrap();
    assert_eq!(Connect::v5("tls").try_over(Box::new(stream), socket).1.reason, 0x87);
}

#[test]
fn a_websocket_listener_heals_like_others() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port();
    let gateway = Gateway::with(&format!("[[broker.listener]]\naddress = \"127.0.0.1:{port}\"\nwebsocket = true\n"));
    gateway.wait_for_line(&format!("cannot listen on 127.0.0.1:{port}"));
    Connect::new("others").open(gateway.port).ping();
    drop(taken);
    gateway.wait_for_line("listens now");
    assert!(WebSocket::open(connect(port)).is_ok());
}

#[test]
fn each_listener_says_who_may_come_in() {
    let (open_port, own_port) = (free_port(), free_port());
    let config = format!(
        "anonymous = \"none\"\n\
         [[broker.listener]]\naddress = \"127.0.0.1:{open_port}\"\nanonymous = {{ accept = \"all\", publish = [\"open/#\"] }}\n\
         [[broker.listener]]\naddress = \"127.0.0.1:{own_port}\"\n\
         [[broker.listener.user]]\nname = \"esp\"\npublish = [\"own/#\"]\n\
         [[broker.listener.user]]\nname = \"only\"\npassword_hash = \"{}\"\nclient_ids = [\"%u-*\", \"spare\"]\n\
         {}{}",
        hash(),
        user("esp", "publish = [\"usual/#\"]"),
        user("other", "")
    );
    let gateway = Gateway::with(&config);
    let usual = gateway.port;
    assert_eq!(Connect::v5("guest").refused(usual), 0x87, "this one has no guests");
    let mut guest = Connect::v5("guest").open(open_port);
    assert_eq!((guest.publish("open/a", "x", 1, false), guest.publish("usual/a", "x", 1, false)), (0, 0x87));
    let esp = || Connect::v5("a").login("esp", PASSWORD);
    assert_eq!(esp().open(usual).publish("usual/a", "x", 1, false), 0);
    let mut own = esp().open(own_port);
    assert_eq!((own.publish("own/a", "x", 1, false), own.publish("usual/a", "x", 1, false)), (0, 0x87));
    assert_eq!(Connect::v5("b").login("other", PASSWORD).refused(own_port), 0x86, "it is no user there");
    Connect::v5("b").login("other", PASSWORD).open(open_port).ping();
    // users that only one listener knows, and client ids that belong to them
    assert_eq!(Connect::v5("only-1").login("only", PASSWORD).refused(usual), 0x86);
    for id in ["only-1", "only-", "spare"] {
        Connect::v5(id).login("only", PASSWORD).open(own_port).ping();
    }
    for id in ["esp-1", "only", "x-only-1"] {
        assert_eq!(Connect::v5(id).login("only", PASSWORD).refused(own_port), 0x85, "{id}");
        assert_eq!(Connect::new(id).login("only", PASSWORD).refused(own_port), 2, "{id}");
    }
    Connect::v5("").login("only", PASSWORD).open(own_port).ping();
    // a reload changes it at once
    let path = gateway.dir().join("pigateway.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("accept = \"all\"", "accept = \"none\"")).unwrap();
    gateway.signal(rustix::process::Signal::HUP);
    guest.closed_with(0x98);
    assert_eq!(Connect::v5("guest").refused(open_port), 0x87);
    own.ping();
}

#[test]
fn a_proxy_is_believed_where_it_is_named_and_makes_nobody_local() {
    let (proxied, other) = (free_port(), free_port());
    let (setup, web) = Setup::default().http();
    let gateway = setup
        .config(&format!(
            "[[broker.listener]]\naddress = \"127.0.0.1:{proxied}\"\nproxy = [\"127.0.0.0/8\"]\nanonymous = \"all\"\n\
             [[broker.listener]]\naddress = \"127.0.0.1:{other}\"\nproxy = [\"127.0.0.1\", \"192.0.2.0/24\"]\n{}",
            user("esp", "")
        ))
        .start();
    let v2 = |source: [u8; 4]| {
        let mut header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec();
        header.extend(source);
        header.extend([10, 0, 0, 1, 0x30, 0x39, 7, 0x5b]);
        header
    };
    let local = b"PROXY TCP4 127.0.0.1 127.0.0.1 5 1883\r\n".to_vec();
    let v1 = b"PROXY TCP4 203.0.113.9 10.0.0.1 12345 1883\r\n".to_vec();
    let through = |port, header: &[u8], connect_as: Connect| {
        let mut socket = connect(port);
        // the header and what follows it may come in one piece
        socket.write_all(header).unwrap();
        connect_as.try_over(Box::new(socket.try_clone().unwrap()), socket)
    };
    for (header, from) in [(v1.clone(), "203.0.113.9"), (v2([198, 51, 100, 7]), "198.51.100.7")] {
        let (mut client, connack) = through(proxied, &header, Connect::v5("passed-on"));
        assert_eq!(connack.reason, 0);
        client.ping();
        wait_until("its own address is shown", || {
            http::get(web, "/api/v1/clients").json()[0]["address"].as_str() == Some(from)
        });
        client.disconnect();
    }
    for header in [local, v2([127, 0, 0, 1]), v1] {
        assert_eq!(through(other, &header, Connect::v5("guest")).1.reason, 0x87, "guests come from this host only");
        assert_eq!(through(other, &header, Connect::v5("esp").login("esp", PASSWORD)).1.reason, 0);
    }
    // the proxy must use the protocol, and no other address may use it
    let mut silent = Client::raw(proxied, 5);
    silent.try_send(&Connect::v5("a").encode());
    assert!(silent.closed().is_empty());
    gateway.wait_for_line("PROXY protocol");
    let mut liar = Client::raw(gateway.port, 5);
    liar.try_send(b"PROXY TCP4 203.0.113.9 10.0.0.1 12345 1883\r\n");
    liar.try_send(&Connect::v5("a").encode());
    assert!(liar.closed().is_empty());
}

#[test]
fn a_socket_in_the_file_system_has_guests_only_where_it_says_so() {
    let setup = Setup::default();
    let (closed, open_to_guests) = (setup.dir().join("a.sock"), setup.dir().join("b.sock"));
    // a socket that a killed gateway has left
    drop(std::os::unix::net::UnixListener::bind(&closed).unwrap());
    let gateway = setup
        .config(&format!(
            "[[broker.listener]]\naddress = \"{}\"\n[[broker.listener]]\naddress = \"{}\"\nanonymous = \"all\"\n\
             [broker.anonymous]\naccept = \"all\"\n{}",
            closed.display(),
            open_to_guests.display(),
            user("esp", "")
        ))
        .start();
    let through = |path: &std::path::Path, connect_as: Connect| {
        let stream = UnixStream::connect(path).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        connect_as.try_over(Box::new(stream), connect(gateway.port))
    };
    assert_eq!(through(&closed, Connect::v5("guest")).1.reason, 0x87);
    let (mut esp, connack) = through(&closed, Connect::v5("esp").login("esp", PASSWORD));
    assert_eq!(connack.reason, 0);
    esp.subscribe("a", 1);
    let (mut guest, connack) = through(&open_to_guests, Connect::v5("guest"));
    assert_eq!((connack.reason, guest.publish("a", "hello", 1, false)), (0, 0));
    assert_eq!(esp.receive().text(), "hello");
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&closed).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o660);
}

#[test]
fn a_listener_has_no_more_connections_than_it_says() {
    let port = free_port();
    let gateway = Gateway::with(&format!("[[broker.listener]]\naddress = \"127.0.0.1:{port}\"\nmax_connections = 2\n"));
    let clients = ["a", "b"].map(|id| Connect::new(id).open(port));
    let mut third = Client::raw(port, 4);
    third.try_send(&Connect::new("c").encode());
    assert!(third.closed().is_empty());
    gateway.wait_for_line("max_connections");
    Connect::new("elsewhere").open(gateway.port).ping();
    for client in clients {
        client.disconnect();
    }
    wait_until("there is room again", || {
        let mut client = Client::raw(port, 4);
        client.try_send(&Connect::new("c").encode()) && client.try_read().is_some()
    });
}

#[test]
fn certificates_may_only_open_the_door_and_may_be_revoked() {
    let authority = Authority::new();
    let setup = Setup::default();
    authority.write_server_files(setup.dir());
    std::fs::write(setup.dir().join("crl.pem"), authority.revoke(&[7])).unwrap();
    let (named, unnamed) = (free_port(), free_port());
    let files = "cert = \"server.crt\", key = \"server.key\", client_ca = \"ca.crt\"";
    let gateway = setup
        .config(&format!(
            "[[broker.listener]]\naddress = \"127.0.0.1:{named}\"\ntls = {{ {files}, crl = \"crl.pem\" }}\n\
             [[broker.listener]]\naddress = \"127.0.0.1:{unnamed}\"\nanonymous = \"none\"\n\
             tls = {{ {files}, use_identity = false }}\n{}",
            user("esp", "")
        ))
        .start();
    let (good, revoked) = (authority.sign_numbered("esp", 8), authority.sign_numbered("esp", 7));
    let config = |identity| client_config(&authority, Some(identity));
    assert_eq!(open(&Connect::v5("a"), named, config(&good)).1.reason, 0);
    assert!(is_turned_away(named, config(&revoked)));
    assert!(gateway.wait_for_line("Revoked").contains("crl"));
    // a renewed list of revoked certificates is used without a restart
    std::fs::write(gateway.dir().join("crl.pem"), authority.revoke(&[7, 8])).unwrap();
    gateway.signal(rustix::process::Signal::HUP);
    wait_until("the other one is revoked too", || is_turned_away(named, config(&good)));
    // if the certificate does not name the user, user name and password do, and the certificate is still required
    let stranger = authority.sign("stranger");
    assert_eq!(open(&Connect::v5("a").login("esp", PASSWORD), unnamed, config(&stranger)).1.reason, 0);
    assert_eq!(open(&Connect::v5("a").login("esp", "wrong"), unnamed, config(&stranger)).1.reason, 0x86);
    assert_eq!(open(&Connect::v5("a"), unnamed, config(&good)).1.reason, 0x87);
    assert!(is_turned_away(unnamed, client_config(&authority, None)));
}

/// A stream that cannot receive a record that is longer than its buffer.
struct Small {
    socket: TcpStream,
    record: Vec<u8>,
    largest: std::sync::Arc<std::sync::atomic::AtomicUsize>,
}

impl Read for Small {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.record.is_empty() {
            let mut head = [0; 5];
            self.socket.read_exact(&mut head)?;
            self.record.extend(head);
            self.record.resize(5 + usize::from(u16::from_be_bytes([head[3], head[4]])), 0);
            self.socket.read_exact(&mut self.record[5..])?;
            self.largest.fetch_max(self.record.len(), std::sync::atomic::Ordering::Relaxed);
        }
        let count = buffer.len().min(self.record.len());
        buffer[..count].copy_from_slice(&self.record[..count]);
        self.record.drain(..count);
        Ok(count)
    }
}

impl Write for Small {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.socket.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.socket.flush()
    }
}

#[test]
fn records_are_as_small_as_the_listener_says() {
    let authority = Authority::new();
    let setup = Setup::default();
    authority.write_server_files(setup.dir());
    let ports = [512, 1024, 2048].map(|size| (size, free_port()));
    let listener = |(size, port): &(usize, u16)| {
        format!(
            "[[broker.listener]]\naddress = \"127.0.0.1:{port}\"\nmax_fragment_size = \"{size} B\"\n\
             tls = {{ cert = \"server.crt\", key = \"server.key\" }}\n"
        )
    };
    let listeners: Vec<String> = ports.iter().map(listener).collect();
    let gateway = setup.config(&listeners.concat()).start();
    let payload = vec![b'x'; 20_000];
    Connect::new("retained").open(gateway.port).publish("a", &payload, 1, true);
    for (size, port) in ports {
        let (socket, largest) = (connect(port), std::sync::Arc::default());
        let small =
            Small { socket: socket.try_clone().unwrap(), record: Vec::new(), largest: std::sync::Arc::clone(&largest) };
        let stream = over(small, client_config(&authority, None));
        let (mut client, connack) = Connect::v5("small").try_over(Box::new(stream), socket);
        assert_eq!(connack.reason, 0);
        client.subscribe("a", 1);
        assert!(client.receive().payload == payload);
        client.disconnect();
        let largest = largest.load(std::sync::atomic::Ordering::Relaxed);
        assert!(largest <= size && largest > size / 2, "{largest} bytes where {size} are allowed");
    }
}

/// A client with BearSSL, as on an ESP8266, with a receive buffer of 2 KiB.
#[test]
fn a_bearssl_client_with_two_kibibytes_of_buffer() {
    let authority = Authority::new();
    let setup = Setup::default();
    authority.write_server_files(setup.dir());
    let port = free_port();
    let gateway = setup
        .config(&format!(
            "[[broker.listener]]\naddress = \"127.0.0.1:{port}\"\nmax_fragment_size = \"1 KiB\"\n\
             tls = {{ cert = \"server.crt\", key = \"server.key\" }}\n"
        ))
        .start();
    Connect::new("retained").open(gateway.port).publish("a", [b'x'; 20_000], 1, true);
    let program = gateway.dir().join("client_bearssl");
    let mut gcc = Command::new("gcc");
    gcc.arg(python::fixture("client_bearssl.c")).arg("-o").arg(&program).arg("-lbearssl");
    assert!(gcc.status().unwrap().success(), "libbearssl-dev and gcc are needed: tests/run installs them");
    let (code, lines) = Process::start(Command::new(&program).arg(port.to_string())).wait();
    assert_eq!((code, &lines[..]), (Some(0), &["20000 bytes of payload".to_owned()][..]));
}

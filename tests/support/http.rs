//! HTTP as bytes: a client that may break the rules, and server-sent events.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use serde_json::Value;

/// An answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Status code.
    pub status: u16,
    /// Head, as it came.
    pub head: String,
    /// Body.
    pub body: Vec<u8>,
}

impl Answer {
    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().filter_map(|line| line.split_once(':'));
        lines.find(|(known, _)| known.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {} {}", self.head, self.text()))
    }
}

/// Sends a request and reads the answer to the end of the connection.
#[track_caller]
pub fn request(port: u16, method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]) -> Answer {
    try_request(port, method, target, headers, body).expect("an answer")
}

/// Sends a request whose connection may be closed early. Returns an error then.
pub fn try_request(
    port: u16,
    method: &str,
    target: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> std::io::Result<Answer> {
    let mut stream = TcpStream::connect(("127.0.0.1", port))?;
    stream.set_read_timeout(Some(super::PATIENCE))?;
    let mut head = format!("{method} {target} HTTP/1.1\r\nConnection: close\r\n");
    if !headers.iter().any(|(name, _)| name.eq_ignore_ascii_case("host")) {
        head += &format!("Host: localhost:{port}\r\n");
    }
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    if !body.is_empty() || matches!(method, "PUT" | "POST") {
        head += &format!("Content-Length: {}\r\n", body.len());
    }
    stream.write_all((head + "\r\n").as_bytes())?;
    // if the request is refused early, the connection may be closed before all bytes were sent
    let _ = stream.write_all(body);
    read_answer(stream, method == "HEAD")
}

fn read_answer(stream: TcpStream, is_head: bool) -> std::io::Result<Answer> {
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head)? == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
    }
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    let mut answer = Answer { status, head: head.trim_end().to_owned(), body: Vec::new() };
    // not every server closes the connection when it is asked to
    match answer.header("content-length").and_then(|length| length.parse().ok()) {
        _ if is_head || status == 204 => {}
        Some(length) => {
            answer.body.resize(length, 0);
            reader.read_exact(&mut answer.body)?;
        }
        None => {
            reader.read_to_end(&mut answer.body)?;
        }
    }
    Ok(answer)
}

/// `GET`.
#[track_caller]
pub fn get(port: u16, target: &str) -> Answer {
    request(port, "GET", target, &[], &[])
}

/// A topic as a path: every byte that is not plain is escaped, and so is every slash.
pub fn escape(topic: &str) -> String {
    topic
        .bytes()
        .map(|byte| if byte.is_ascii_alphanumeric() { char::from(byte).to_string() } else { format!("%{byte:02X}") })
        .collect()
}

/// An event of a stream.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Event {
    /// Its id.
    pub id: Option<u64>,
    /// Its name.
    pub name: String,
    /// Its data.
    pub data: Value,
}

/// A stream of events.
pub struct Events {
    reader: BufReader<TcpStream>,
}

impl Events {
    /// Opens a stream with HTTP/1.0, so that it has no chunks.
    #[track_caller]
    pub fn open(port: u16, query: &str, headers: &[(&str, &str)]) -> Events {
        Events::open_at(port, &format!("/api/v1/stream?{query}"), headers)
    }

    /// Opens the stream at this address, which may be behind a proxy.
    #[track_caller]
    pub fn open_at(port: u16, target: &str, headers: &[(&str, &str)]) -> Events {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).expect("a connection");
        stream.set_read_timeout(Some(super::PATIENCE)).expect("a timeout");
        let mut head = format!("GET {target} HTTP/1.0\r\nHost: localhost:{port}\r\n");
        for (name, value) in headers {
            head += &format!("{name}: {value}\r\n");
        }
        stream.write_all((head + "\r\n").as_bytes()).expect("it is taken");
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        reader.read_line(&mut line).expect("an answer");
        assert!(line.contains(" 200 "), "{line}");
        while line != "\r\n" {
            line.clear();
            reader.read_line(&mut line).expect("a head");
        }
        Events { reader }
    }

    /// The next event, `None` at the end.
    pub fn next(&mut self) -> Option<Event> {
        let mut event = Event::default();
        let mut line = String::new();
        loop {
            line.clear();
            if self.reader.read_line(&mut line).ok()? == 0 {
                return None;
            }
            match line.trim_end_matches('\n').split_once(": ") {
                Some(("id", id)) => event.id = id.parse().ok(),
                Some(("event", name)) => event.name = name.into(),
                Some(("data", data)) => event.data = serde_json::from_str(data).expect("JSON"),
                _ if event.name.is_empty() => {}
                _ => return Some(event),
            }
        }
    }

    /// The next event with this name.
    #[track_caller]
    pub fn wait_for(&mut self, name: &str) -> Event {
        loop {
            let event = self.next().unwrap_or_else(|| panic!("the stream ended before {name}"));
            if event.name == name {
                return event;
            }
        }
    }

    /// Sets the longest wait for an event.
    pub fn patience(&self, patience: Duration) {
        self.reader.get_ref().set_read_timeout(Some(patience)).expect("a timeout");
    }
}

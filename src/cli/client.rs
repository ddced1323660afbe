//! `pigateway publish` and `pigateway subscribe`: a simple client over plain TCP. It publishes in MQTT 5, in which a
//! broker can say that it does not take the message, and in MQTT 3.1.1 where the broker knows no other. A traced
//! message has its id in a user property, and its progress is asked for over HTTP.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use bytes::BytesMut;

use super::{CliError, print, status, user};
use crate::message::{TRACE_PROPERTY, check_filter, check_topic};
use crate::mqtt::{Fields, write};

/// The longest wait for the broker.
const PATIENCE: Duration = Duration::from_secs(10);
const KEEP_ALIVE: u16 = 60;
const V311: u8 = 4;
const V5: u8 = 5;
const PUBLISH: u8 = 3;
/// The interval between requests for the progress of a traced message.
const LOOK: Duration = Duration::from_millis(100);
const USER_PROPERTY: u8 = 38;
const PUBACK: u8 = 4;
const SUBACK: u8 = 9;

/// The broker to connect to.
#[derive(Debug, clap::Args)]
pub(super) struct BrokerArgs {
    /// Host name or IP address of the broker
    #[arg(long, default_value = "localhost")]
    host: String,
    /// TCP port of the broker
    #[arg(long, short, default_value_t = 1883)]
    port: u16,
    /// User name; its password is asked for, or read from standard input
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
}

#[derive(Debug, clap::Args)]
pub(super) struct PublishArgs {
    /// Topic to publish on
    #[arg(value_parser = topic)]
    topic: String,
    /// Payload of the message; without it the payload is empty, which with --retain deletes the retained message
    #[arg(default_value = "")]
    payload: String,
    /// Keep the message as the retained message of its topic, for clients that subscribe later
    #[arg(long, short)]
    retain: bool,
    /// Quality of service: 0, or 1, which waits until the broker has acknowledged the message
    #[arg(long, short, default_value_t = 1, value_parser = clap::value_parser!(u8).range(0..=1))]
    qos: u8,
    /// Trace the message: show when the gateway accepted it, had it on disk, sent it upstream, and had it acknowledged there
    #[arg(long)]
    trace: bool,
    /// HTTP port of the gateway, which --trace asks
    #[arg(long, value_name = "PORT", default_value_t = 8080, requires = "trace")]
    http_port: u16,
    #[command(flatten)]
    broker: BrokerArgs,
}

#[derive(Debug, clap::Args)]
pub(super) struct SubscribeArgs {
    /// Topic filters to subscribe to
    #[arg(required = true, value_parser = filter)]
    filters: Vec<String>,
    /// End after this number of messages
    #[arg(long, short = 'n', value_name = "NUMBER")]
    count: Option<u64>,
    #[command(flatten)]
    broker: BrokerArgs,
}

fn topic(text: &str) -> Result<String, String> {
    check_topic(text).map(|()| text.to_owned()).map_err(|error| format!("a topic is meant; this {error}"))
}

fn filter(text: &str) -> Result<String, String> {
    check_filter(text).map(|()| text.to_owned()).map_err(|error| format!("a topic filter is meant; this {error}"))
}

struct CommandClient {
    stream: TcpStream,
    /// Host and port, for errors.
    at: String,
    input: Vec<u8>,
}

fn failed(what: impl Into<String>) -> CliError {
    CliError::Broker(what.into())
}

/// The start and the end of the body of the first packet; `None` while the packet is incomplete.
pub fn whole(bytes: &[u8]) -> Result<Option<(usize, usize)>, CliError> {
    let mut length = 0;
    for (at, byte) in bytes.iter().enumerate().skip(1).take(4) {
        length |= usize::from(byte & 0x7f) << (7 * (at - 1));
        if byte & 0x80 == 0 {
            let end = at + 1 + length;
            return Ok((bytes.len() >= end).then_some((at + 1, end)));
        }
    }
    if bytes.len() > 4 { Err(failed("what the broker sends is not MQTT")) } else { Ok(None) }
}

fn addresses(host: &str, port: u16) -> Result<Vec<SocketAddr>, CliError> {
    let found = (host, port).to_socket_addrs();
    Ok(found.map_err(|error| failed(format!("{host}:{port}: {error}")))?.collect())
}

fn binary(out: &mut Vec<u8>, bytes: &[u8]) {
    let length = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
    out.extend(length.to_be_bytes());
    out.extend(&bytes[..usize::from(length)]);
}

/// Why a broker does not let the client in.
struct BrokerRefusal {
    error: CliError,
    /// Whether another version of MQTT may help. Some brokers say nothing before they close the connection.
    is_of_version: bool,
}

impl From<CliError> for BrokerRefusal {
    fn from(error: CliError) -> BrokerRefusal {
        BrokerRefusal { error, is_of_version: false }
    }
}

impl CommandClient {
    /// Connects in MQTT 5 or, if the broker does not know it, in MQTT 3.1.1. Returns the version too.
    fn open_newest(broker: &BrokerArgs, password: Option<&str>) -> Result<(CommandClient, u8), CliError> {
        match CommandClient::try_open(broker, password, V5) {
            Ok(client) => Ok((client, V5)),
            Err(refusal) if refusal.is_of_version => Ok((CommandClient::open(broker, password, V311)?, V311)),
            Err(refusal) => Err(refusal.error),
        }
    }

    fn open(broker: &BrokerArgs, password: Option<&str>, version: u8) -> Result<CommandClient, CliError> {
        CommandClient::try_open(broker, password, version).map_err(|refusal| refusal.error)
    }

    fn try_open(broker: &BrokerArgs, password: Option<&str>, version: u8) -> Result<CommandClient, BrokerRefusal> {
        let at = format!("{}:{}", broker.host, broker.port);
        let mut stream = Err(failed(format!("{at}: the name has no address")));
        for address in addresses(&broker.host, broker.port)? {
            stream = TcpStream::connect_timeout(&address, PATIENCE).map_err(|error| failed(format!("{at}: {error}")));
            if stream.is_ok() {
                break;
            }
        }
        let mut client = CommandClient { stream: stream?, at: at.clone(), input: Vec::new() };
        client.set_read_timeout(Some(PATIENCE))?;
        let mut body = Vec::new();
        binary(&mut body, b"MQTT");
        body.push(version);
        body.push(0x02 | if broker.user.is_some() { 0xc0 } else { 0 });
        body.extend(KEEP_ALIVE.to_be_bytes());
        if version == V5 {
            body.push(0);
        }
        binary(&mut body, format!("pigateway-cli-{}", std::process::id()).as_bytes());
        if let Some(name) = &broker.user {
            binary(&mut body, name.as_bytes());
            binary(&mut body, password.unwrap_or_default().as_bytes());
        }
        client.send(0x10, &body)?;
        let answer = client.read(Some(Instant::now() + PATIENCE));
        let answer = answer.map_err(|error| BrokerRefusal { error, is_of_version: true })?;
        let (first, answer) = answer.ok_or_else(|| failed(format!("{at}: no answer")))?;
        let error = match (first >> 4, answer.get(1)) {
            (2, Some(0)) => return Ok(client),
            (2, Some(4 | 0x86)) => failed("wrong user name or password"),
            (2, Some(5 | 0x87)) => failed("not authorised: --user NAME gives a user name"),
            (2, Some(code)) => failed(format!("refused with code {code}")),
            _ => failed(format!("{at}: the answer is not MQTT")),
        };
        Err(BrokerRefusal { error, is_of_version: first >> 4 == 2 && matches!(answer.get(1), Some(1 | 0x84)) })
    }

    /// Names the broker with which the connection has failed.
    fn broken(&self, error: io::Error) -> CliError {
        failed(format!("{}: {error}", self.at))
    }

    fn set_read_timeout(&self, patience: Option<Duration>) -> Result<(), CliError> {
        self.stream.set_read_timeout(patience).map_err(|error| self.broken(error))
    }

    fn send(&mut self, first: u8, body: &[u8]) -> Result<(), CliError> {
        let mut packet = BytesMut::new();
        packet.extend([first]);
        write::variable(&mut packet, body.len());
        packet.extend_from_slice(body);
        self.stream.write_all(&packet).map_err(|error| self.broken(error))
    }

    /// Reads the next packet: its first byte and its body. `None` means that none came before `until`.
    fn read(&mut self, until: Option<Instant>) -> Result<Option<(u8, Vec<u8>)>, CliError> {
        loop {
            if let Some((body, end)) = whole(&self.input)? {
                let (first, body) = (self.input[0], self.input[body..end].to_vec());
                self.input.drain(..end);
                return Ok(Some((first, body)));
            }
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return Ok(None);
            }
            self.set_read_timeout(left)?;
            let mut bytes = [0; 16 << 10];
            match self.stream.read(&mut bytes) {
                Ok(0) => return Err(failed("the broker closed the connection")),
                Ok(count) => self.input.extend(&bytes[..count]),
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.broken(error)),
            }
        }
    }

    /// Waits for a packet of this type.
    fn expect(&mut self, kind: u8) -> Result<Vec<u8>, CliError> {
        let until = Instant::now() + PATIENCE;
        while let Some((first, body)) = self.read(Some(until))? {
            if first >> 4 == kind {
                return Ok(body);
            }
        }
        Err(failed("the broker does not answer"))
    }
}

pub(super) fn publish(args: &PublishArgs) -> Result<(), CliError> {
    let password = args.broker.user.as_deref().map(user::read_password).transpose()?;
    let trace = if args.trace { Some(FollowedMessage::begin(args, password.as_deref())?) } else { None };
    let (mut client, version) = CommandClient::open_newest(&args.broker, password.as_deref())?;
    let mut body = Vec::new();
    binary(&mut body, args.topic.as_bytes());
    if args.qos > 0 {
        body.extend([0, 1]);
    }
    if version == V5 {
        let mut property = Vec::new();
        if let Some(trace) = &trace {
            property.push(USER_PROPERTY);
            binary(&mut property, TRACE_PROPERTY.as_bytes());
            binary(&mut property, trace.id.as_bytes());
        }
        body.push(property.len() as u8);
        body.extend(property);
    }
    body.extend(args.payload.as_bytes());
    client.send(0x30 | args.qos << 1 | u8::from(args.retain), &body)?;
    if args.qos > 0 {
        match client.expect(PUBACK)?.get(2) {
            Some(0x87) => return Err(failed(format!("{}: the rules do not allow it", args.topic))),
            Some(reason @ 0x80..) => {
                return Err(failed(format!("the broker does not accept the message (reason {reason:#04x})")));
            }
            _ => {}
        }
    }
    client.send(0xe0, &[])?;
    trace.map_or(Ok(()), |trace| trace.print())
}

/// A message whose trace is printed after it was published.
struct FollowedMessage {
    at: SocketAddr,
    login: Option<String>,
    id: String,
}

impl FollowedMessage {
    fn begin(args: &PublishArgs, password: Option<&str>) -> Result<FollowedMessage, CliError> {
        let (host, user) = (&args.broker.host, args.broker.user.as_deref());
        let login = user.map(|user| user::basic(user, password.unwrap_or_default())).transpose()?;
        let mut last = Err(failed(format!("{host}: the name has no address")));
        for at in addresses(host, args.http_port)? {
            last = status::request(at, "POST", "/api/v1/traces", login.as_deref()).map(|answer| (at, answer));
            if last.is_ok() {
                break;
            }
        }
        let (at, answer) = last?;
        let id = answer["id"].as_str().ok_or_else(|| failed("the answer is not the gateway's"))?;
        Ok(FollowedMessage { at, login, id: id.to_owned() })
    }

    /// Prints the progress until all upstreams are done with the message, or until nothing has happened for a while.
    fn print(&self) -> Result<(), CliError> {
        let (mut printed, mut begin, mut last) = (0, None, Instant::now());
        loop {
            let trace = status::get(self.at, &format!("/api/v1/traces/{}", self.id), self.login.as_deref())?;
            let steps = trace["steps"].as_array().cloned().unwrap_or_default();
            for step in &steps[printed.min(steps.len())..] {
                let at = step["boot_ms"].as_u64().unwrap_or_default();
                let after = at.saturating_sub(*begin.get_or_insert(at));
                let what = step["step"].as_str().unwrap_or_default();
                let who = step["upstream"].as_str().map(|name| format!("upstream {name}: ")).unwrap_or_default();
                print(format!("{:>8.3} s  {who}{what}\n", after as f64 / 1000.0).as_bytes())?;
                last = Instant::now();
            }
            printed = steps.len();
            let waits = trace["waits_for_upstreams"].as_u64().unwrap_or_default();
            let is_safe = trace["is_kept"] == false || steps.iter().any(|step| step["step"] == "synced");
            if printed > 0 && waits == 0 && is_safe {
                return Ok(());
            }
            if last.elapsed() >= PATIENCE {
                if printed == 0 {
                    return Err(failed("the gateway has not accepted the message: may this client publish it?"));
                }
                let left = match waits {
                    0 => "it is not on disk yet".to_owned(),
                    waits => format!("it still waits for {waits} upstream(s)"),
                };
                let where_to = format!("GET /api/v1/traces/{}", self.id);
                return print(format!("          {left}; {where_to} tells later\n").as_bytes());
            }
            std::thread::sleep(LOOK);
        }
    }
}

/// Prints messages as they arrive.
pub(super) fn subscribe(args: &SubscribeArgs) -> Result<(), CliError> {
    let password = args.broker.user.as_deref().map(user::read_password).transpose()?;
    let mut client = CommandClient::open(&args.broker, password.as_deref(), V311)?;
    let mut body = vec![0, 1];
    for filter in &args.filters {
        binary(&mut body, filter.as_bytes());
        body.push(0);
    }
    client.send(0x82, &body)?;
    let answer = client.expect(SUBACK)?;
    for (filter, code) in args.filters.iter().zip(answer.iter().skip(2)) {
        if *code == 0x80 {
            return Err(failed(format!("{filter}: the rules do not allow it")));
        }
    }
    let mut left = args.count;
    while left != Some(0) {
        let Some((first, body)) = client.read(Some(Instant::now() + Duration::from_secs(u64::from(KEEP_ALIVE) / 2)))?
        else {
            client.send(0xc0, &[])?;
            continue;
        };
        if first >> 4 == PUBLISH {
            let mut fields = Fields::new(&body);
            let topic = fields.string().map_err(|error| failed(error.to_string()))?;
            let payload = String::from_utf8_lossy(fields.rest()).into_owned();
            print(format!("{topic} {payload}\n").as_bytes())?;
            left = left.map(|left| left - 1);
        }
    }
    client.send(0xe0, &[])
}

//! Targets for HTTP, WebSocket, the PROXY protocol, and the answers that the command line reads.

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use pigateway::access::made::UserDesk;
use pigateway::broker::connection::serve_known;
use pigateway::cli::{client, status};
use pigateway::health::{Health, LoggedProblems, PulseTaker};
use pigateway::http::guard::HttpGuard;
use pigateway::http::hub::Hub;
use pigateway::http::server::{Site, serve};
use pigateway::http::websocket::{Arrival, MqttDoor, WebSocketDoor};
use pigateway::http::{Http, Parts};
use pigateway::net::forwarded;
use pigateway::status::{Announced, ClientsShown, GatewayStatus};
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Source;
use super::house::{House, house, peer};
use super::meter::paid_by;

fn here() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 4711))
}

/// The services of the port: page, REST, streams and MQTT over WebSocket.
fn whole() -> &'static Arc<Site> {
    static SITE: OnceLock<Arc<Site>> = OnceLock::new();
    SITE.get_or_init(|| {
        let House { runtime, core, .. } = house();
        let cancel = CancellationToken::new();
        let hub = Hub::new(core.ingress.clone());
        let (_, pulse) = PulseTaker::new();
        runtime.spawn(hub.clone().run(pulse, cancel.clone()));
        let (list, count) = (core.clone(), core.clone());
        let status = GatewayStatus {
            gateway_id: "fuzz".into(),
            sensors: watch::channel(Vec::new()).1,
            upstreams: Vec::new(),
            clients: ClientsShown::new(move |most| list.clients(most), move || count.client_counts()),
            problems: LoggedProblems::default(),
            health: Health::default(),
            lost_at_power_cut: None,
            announced: watch::channel(Announced::default()).1,
            listeners: Arc::default(),
        };
        let served = core.clone();
        let mqtt: MqttDoor = Arc::new(move |frames, Arrival { .. }, place| {
            let (reader, writer) = tokio::io::split(frames);
            let core = served.clone();
            Box::pin(async move { serve_known(core, reader, writer, peer(), |user| place.belongs_to(user)).await })
        });
        // nothing applies changes of users, so they are refused
        let (users, _) = UserDesk::new(watch::channel(Arc::default()).1);
        Site::whole(&Http::new(Parts {
            access: core.access.clone(),
            ingress: core.ingress.clone(),
            hub,
            status,
            mqtt,
            connections: TaskTracker::new(),
            cancel,
            history: "fuzz/none".into(),
            guard: HttpGuard::new("fuzz", &[], 8080),
            trusted_proxies: Vec::new(),
            frame_ancestors: Vec::new(),
            users,
            disconnect: Arc::new(|_, _| 0),
            is_tls: false,
        }))
    })
}

/// A connection to the port. Whatever the request is, the answer is HTTP/1, and the connection ends afterwards.
pub(super) fn http(data: &[u8]) {
    let house = house();
    let House { runtime, core, .. } = house;
    runtime.block_on(house.serves(async {
        let (ours, theirs) = duplex(1 << 20);
        let serving = tokio::spawn(async move { serve(whole(), theirs, here()).await });
        let (mut reader, mut writer) = tokio::io::split(ours);
        let _ = writer.write_all(&data[..data.len().min(1 << 20)]).await;
        let mut answer = vec![0; 64 << 10];
        let _ = writer.shutdown().await;
        let mut have = 0;
        // an event stream lasts until its client closes it
        while let Ok(count @ 1..) = reader.read(&mut answer[have..]).await {
            have += count;
            if have == answer.len() || contains(&answer[..have.min(1024)], b"text/event-stream") {
                break;
            }
        }
        drop((reader, writer));
        assert!(serving.await.is_ok());
        if have > 0 {
            assert!(answer.starts_with(b"HTTP/1."), "an answer that is not HTTP");
            assert!(!answer.starts_with(b"HTTP/1.1 500") && !answer.starts_with(b"HTTP/1.0 500"), "a fault of ours");
        }
    }));
    assert_eq!(core.stats.panics.get(), 0, "a session has panicked");
}

fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|window| window == wanted)
}

/// The payloads of the data frames of a WebSocket connection, decoded strictly by RFC 6455, up to the first error.
fn payloads(mut bytes: &[u8]) -> Vec<u8> {
    let mut carried = Vec::new();
    let mut is_within = false;
    while let [first, second, rest @ ..] = bytes {
        let (kind, is_final, is_control) = (first & 15, first & 0x80 != 0, first & 8 != 0);
        let extended = match second & 0x7f {
            126 => 2,
            127 => 8,
            _ => 0,
        };
        let Some((number, rest)) = rest.split_at_checked(extended) else { break };
        let length = match extended {
            0 => u64::from(second & 0x7f),
            _ => number.iter().fold(0, |all, byte| all << 8 | u64::from(*byte)),
        };
        let Some((mask, rest)) = rest.split_at_checked(4) else { break };
        let is_wrong =
            first & 0x70 != 0 || second & 0x80 == 0 || length >> 63 != 0 || (is_control && (length > 125 || !is_final));
        match kind {
            2 if !is_within && !is_wrong => is_within = !is_final,
            0 if is_within && !is_wrong => is_within = !is_final,
            9 | 10 if !is_wrong => {}
            _ => break,
        }
        let have = rest.len().min(usize::try_from(length).unwrap_or(usize::MAX));
        if !is_control {
            carried.extend(rest[..have].iter().enumerate().map(|(at, byte)| byte ^ mask[at % 4]));
        }
        bytes = &rest[have..];
    }
    carried
}

/// A site, together with the MQTT bytes that it has received.
type Recording = (Arc<Site>, Arc<Mutex<Vec<u8>>>);

fn recording() -> &'static Recording {
    static SITE: OnceLock<Recording> = OnceLock::new();
    SITE.get_or_init(|| {
        let heard = Arc::new(Mutex::new(Vec::new()));
        let writing = heard.clone();
        let mqtt: MqttDoor = Arc::new(move |mut frames, _, _| {
            let heard = writing.clone();
            Box::pin(async move {
                let mut bytes = [0; 700];
                while let Ok(count @ 1..) = frames.read(&mut bytes).await {
                    heard.lock().extend_from_slice(&bytes[..count]);
                    let _ = frames.write_all(&[0xd0, 0]).await;
                }
                let _ = frames.shutdown().await;
            })
        });
        let door = WebSocketDoor { mqtt, connections: TaskTracker::new(), trusted_proxies: Arc::new([]) };
        let access = house().core.access.clone();
        let site = Site::websocket(HttpGuard::new("fuzz", &[], 8080), door, false, (access, CancellationToken::new()));
        (site, heard)
    })
}

/// The handshake and the frames behind it. The bytes that come out must be the payloads of the frames.
pub(super) fn websocket(data: &[u8]) {
    let (site, heard) = recording();
    let mut source = Source(data);
    // the number of bytes that are passed at a time
    let piece = source.number() % 4096 + 1;
    let frames = source.0;
    let handshake = b"GET /mqtt HTTP/1.1\r\nHost: localhost:8080\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
        Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\
        Sec-WebSocket-Protocol: mqtt\r\n\r\n";
    house().runtime.block_on(async {
        let (ours, theirs) = duplex(1 << 20);
        let serving = tokio::spawn(async move { serve(site, theirs, here()).await });
        let (mut reader, mut writer) = tokio::io::split(ours);
        let _ = writer.write_all(handshake).await;
        let mut answer = Vec::new();
        while !answer.ends_with(b"\r\n\r\n") {
            match reader.read_u8().await {
                Ok(byte) => answer.push(byte),
                Err(error) => panic!("{error}: {}", String::from_utf8_lossy(&answer)),
            }
        }
        assert!(answer.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&answer));
        for part in frames.chunks(piece) {
            if writer.write_all(part).await.is_err() {
                break;
            }
            tokio::task::yield_now().await;
        }
        let _ = writer.shutdown().await;
        let _ = reader.read_to_end(&mut answer).await;
        assert!(serving.await.is_ok());
    });
    let heard = std::mem::take(&mut *heard.lock());
    let carried = payloads(frames);
    assert!(carried.starts_with(&heard), "other bytes than the frames carry");
    assert_eq!(heard.len(), carried.len(), "less than the frames carry");
}

/// The header of the PROXY protocol. Its address must never count as this host, and no byte behind it is read.
pub(super) fn proxy_header(data: &[u8]) {
    let read = async {
        let mut input = data;
        let from = forwarded::read(&mut input, here()).await;
        let taken = data.len() - input.len();
        assert!(taken <= 16 + 4096);
        if let Ok(from) = from {
            assert!(!from.ip().to_canonical().is_loopback());
            // the same header gives the same address, whatever bytes are behind it
            let mut again = &data[..taken];
            assert_eq!(forwarded::read(&mut again, here()).await.ok(), Some(from));
            assert!(again.is_empty());
        }
    };
    let local = local();
    paid_by(data.len(), (16 << 10, 64), || local.block_on(read));
}

fn local() -> &'static tokio::runtime::Runtime {
    static LOCAL: OnceLock<tokio::runtime::Runtime> = OnceLock::new();
    LOCAL.get_or_init(|| match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => panic!("{error}"),
    })
}

/// The answers that `pigateway status`, `publish` and `subscribe` read. Each is shown or refused, at a limited cost.
pub(super) fn answers(data: &[u8]) {
    if let Ok(Some((body, end))) = client::whole(data) {
        assert!(body <= end && end <= data.len());
    }
    paid_by(data.len(), (16 << 10, 512), || match status::read(data) {
        Ok(answer) => {
            let part = |name: &str| answer.get(name).cloned().unwrap_or(Value::Null);
            let text =
                status::shown(&answer, &part("upstreams"), &part("clients"), &part("sensors"), &part("problems"));
            assert!(!text.is_empty());
            // nothing in an answer may move the cursor of a terminal
            assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{text:?}");
        }
        Err(why) => assert!(!why.is_empty()),
    });
}

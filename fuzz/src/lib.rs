//! What the fuzzer feeds: each function takes any bytes and panics where the gateway breaks a promise.
//!
//! `cargo +nightly fuzz run packets` looks for new inputs; `tests/fuzz_corpus.rs` replays those in `corpus/` with every
//! test run, on the stable compiler.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::{Arc, OnceLock};

use pigateway::broker::Broker;
use pigateway::broker::connection::{Peer, serve};
use pigateway::broker::core::Core;
use pigateway::broker::settings::BrokerSettings;
use pigateway::config::{Environment, read};
use pigateway::health::PulseTaker;
use pigateway::journal::Journal;
use pigateway::mqtt::{Connect, PacketType, Publish, Subscribe, Unsubscribe, Version};
use pigateway::mqtt::{acknowledgement, disconnect, frame};
use pigateway::time::SystemClock;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

const LARGEST: usize = 256 * 1024;

/// The first packet of a connection, as it arrives: any prefix of it must be read without a panic, and must not be
/// understood differently from the whole.
pub fn first_bytes(data: &[u8]) {
    let strict = frame(data, LARGEST, Version::V5);
    // what the newer versions take, the oldest takes too
    let Ok(Some(whole)) = frame(data, LARGEST, Version::V31) else {
        assert!(!matches!(strict, Ok(Some(_))));
        return;
    };
    assert!(whole.body <= whole.len && whole.len <= data.len());
    for end in 0..whole.len.min(64) {
        let part = frame(&data[..end], LARGEST, Version::V31);
        assert!(!matches!(part, Ok(Some(_)) | Err(_)), "understood before it was complete");
    }
    let body = &data[whole.body..whole.len];
    if whole.kind == PacketType::Connect
        && let Ok(connect) = Connect::decode(body)
    {
        assert!(connect.client_id.len() <= body.len());
        assert!(!connect.client_id.contains('\0'));
    }
    for version in [Version::V31, Version::V311, Version::V5] {
        decode(&whole, &data[..whole.len], body, version);
    }
}

fn decode(whole: &pigateway::mqtt::Frame, packet: &[u8], body: &[u8], version: Version) {
    match whole.kind {
        PacketType::Publish => {
            if let Ok(publish) = Publish::decode(whole, packet, version) {
                assert!(!publish.topic.contains(['+', '#', '\0']));
            }
        }
        PacketType::Subscribe => drop(Subscribe::decode(body, version)),
        PacketType::Unsubscribe => drop(Unsubscribe::decode(body, version)),
        PacketType::Disconnect => drop(disconnect(body, version)),
        _ => drop(acknowledgement(body, version)),
    }
}

struct Serving {
    runtime: Runtime,
    core: Arc<Core>,
}

/// One broker for all inputs, as in life.
fn serving() -> &'static Serving {
    static SERVING: OnceLock<Serving> = OnceLock::new();
    SERVING.get_or_init(|| {
        let runtime = match Runtime::new() {
            Ok(runtime) => runtime,
            Err(error) => panic!("{error}"),
        };
        let settings = BrokerSettings { listeners: Vec::new(), max_sessions: 16, ..BrokerSettings::default() };
        let cancel = CancellationToken::new();
        let opened = Broker::open(settings, Journal::default(), Arc::new(SystemClock), cancel.clone());
        let Broker { core, dispatcher, .. } = match opened {
            Ok(broker) => broker,
            Err(error) => panic!("{error}"),
        };
        let (_, pulse) = PulseTaker::new();
        runtime.spawn(dispatcher.run(cancel, || Ok(()), pulse));
        runtime.spawn(core.clone().sweep());
        Serving { runtime, core }
    })
}

/// A whole connection: whatever the client says, the session ends with the connection and without a panic.
pub fn packets(data: &[u8]) {
    let Serving { runtime, core } = serving();
    runtime.block_on(async {
        let (mut client, server) = tokio::io::duplex(1 << 20);
        let (reader, writer) = tokio::io::split(server);
        let peer = Peer::at(IpAddr::V4(Ipv4Addr::LOCALHOST));
        let session = tokio::spawn(serve(core.clone(), reader, writer, peer));
        // the session may hang up before it has taken everything
        let _ = client.write_all(data).await;
        let _ = client.shutdown().await;
        let _ = client.read_to_end(&mut Vec::new()).await;
        assert!(session.await.is_ok());
    });
    assert_eq!(core.stats.panics.get(), 0, "a session has panicked");
}

/// A configuration: valid settings, or at least one problem that says where it is.
pub fn configuration(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let environment = Environment { host_name: "fuzz".into(), state_dir: None, credentials_dir: None };
    match read(text, Path::new("fuzz/none/pigateway.toml"), &environment) {
        Ok(loaded) => assert!(!loaded.settings.broker.listeners.is_empty()),
        Err(problems) => {
            assert!(!problems.problems.is_empty());
            assert!(!problems.to_string().is_empty());
        }
    }
}

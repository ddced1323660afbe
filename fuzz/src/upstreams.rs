//! Targets for the data that upstreams and the proxies in front of them send.

use std::path::Path;
use std::sync::{Arc, OnceLock};

use pigateway::config::{Environment, read};
use pigateway::health::PulseTaker;
use pigateway::journal::{Limits, WhenFull};
use pigateway::message::{BatchBuilder, Draft, Origin, Qos, TopicFilter};
use pigateway::status::UpstreamState;
use pigateway::upstream::Upstream;
use pigateway::upstream::client::{RemoteClient, proxy};
use pigateway::upstream::mark::SessionMark;
use pigateway::upstream::settings::{Order, Protocol, Proxy, UpstreamAddress, UpstreamSettings};
use pigateway::upstream::wire::{
    Ack, Broken, Busy, ClientEvent, ConnectOffer, Link, OutMessage, RetainedWanted, StatusWill, UpstreamClient, Version,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::Source;
use super::house::{House, LARGEST, house};
use super::meter::paid_by;

/// The configuration of an upstream with all features that its answers can affect.
const CONFIGURATION: &str = "[[upstream]]\nname = \"far\"\naddresses = [\"mqtt://192.0.2.1\", \"ws://192.0.2.1\"]\n\
    client_id = \"pi\"\nstatus_topic = \"pi/status\"\n\
    [[upstream.out]]\ntopic_filter = \"up/#\"\n[[upstream.out]]\ntopic_filter = \"exact/#\"\nqos = 2\n\
    [[upstream.in]]\ntopic_filter = \"down/#\"\nqos = 2\n[[upstream.in]]\ntopic_filter = \"a/+/b\"\n";

fn settings() -> Arc<UpstreamSettings> {
    static SETTINGS: OnceLock<Arc<UpstreamSettings>> = OnceLock::new();
    let read = || {
        let environment = Environment { host_name: "fuzz".into(), state_dir: None, credentials_dir: None };
        match read(CONFIGURATION, Path::new("fuzz/none/pigateway.toml"), &environment) {
            Ok(loaded) => Arc::new(loaded.settings.upstreams[0].clone()),
            Err(problems) => panic!("{problems}"),
        }
    };
    SETTINGS.get_or_init(read).clone()
}

/// Selects by one byte how the gateway connects to an upstream.
fn how(byte: u8) -> (ConnectOffer, UpstreamAddress) {
    let settings = settings();
    let version = if byte & 1 == 0 { Version::V311 } else { Version::V5 };
    let address = settings.addresses[usize::from(byte & 4 != 0)].clone();
    let offer = ConnectOffer { version, will: StatusWill::Whole, is_trial: false, has_small_segments: byte & 8 != 0 };
    (offer, address)
}

fn out_message(packet_id: Option<u16>, qos: Qos) -> OutMessage {
    let (topic, payload) = ("up/a".to_owned(), vec![7; 40].into());
    OutMessage { topic, payload, qos, retain: true, properties: Vec::new(), packet_id, is_repeated: false }
}

/// One connection: all bytes of an upstream become events or end the connection, and their cost is limited by their number.
pub(super) fn upstream(data: &[u8]) {
    let mut source = Source(data);
    let (offer, address) = how(source.byte());
    let said = source.0;
    let connect = async {
        let (ours, mut theirs) = duplex(1 << 20);
        let _ = theirs.write_all(said).await;
        let _ = theirs.shutdown().await;
        let settings = settings();
        let (mut client, link) = RemoteClient::over(ours, &settings, &address, offer, LARGEST).await.ok()?;
        assert!(link.version == offer.version && link.receive_maximum > 0);
        let _ = client.publish(out_message(None, Qos::AtLeastOnce));
        let _ = client.publish(out_message(Some(0x4000), Qos::ExactlyOnce));
        let _ = client.subscribe(&[(TopicFilter::new("down/#").ok()?, Qos::ExactlyOnce)], RetainedWanted::IfNew);
        let mut received = 0;
        while let Ok(events) = client.events().await {
            for event in events {
                if let ClientEvent::Received(message) = event {
                    received += message.topic.len() + message.payload.len();
                    assert_eq!(message.packet_id == 0, message.qos == Qos::AtMostOnce, "what is to be answered");
                    let ack = match message.qos {
                        Qos::ExactlyOnce => Ack::Recorded(message.packet_id),
                        _ => Ack::Taken(message.packet_id),
                    };
                    let _ = client.ack(ack);
                }
            }
        }
        assert!(received <= said.len(), "more came in than was sent");
        Some(())
    };
    // an event for each packet, which has at least two bytes, and buffers for the handshake, for reading and for writing
    let local = local();
    paid_by(data.len(), (2 << 20, 512), || local.block_on(connect));
}

fn local() -> &'static tokio::runtime::Runtime {
    thread_local! {
        static LOCAL: &'static tokio::runtime::Runtime = {
            match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => Box::leak(Box::new(runtime)),
                Err(error) => panic!("{error}"),
            }
        };
    }
    LOCAL.with(|local| *local)
}

/// A client whose first connection delivers the input, and whose further connections fail.
struct Once {
    stream: Option<DuplexStream>,
    client: Option<RemoteClient>,
}

impl UpstreamClient for Once {
    async fn connect(
        &mut self,
        settings: &UpstreamSettings,
        address: &UpstreamAddress,
        offer: ConnectOffer,
        _: &mut SessionMark,
    ) -> Result<Link, Broken> {
        let Some(stream) = self.stream.take() else { return std::future::pending().await };
        let (client, link) = RemoteClient::over(stream, settings, address, offer, LARGEST).await?;
        self.client = Some(client);
        Ok(link)
    }

    fn publish(&mut self, message: OutMessage) -> Result<(), Busy> {
        self.client.as_mut().map_or(Ok(()), |client| client.publish(message))
    }

    fn subscribe(&mut self, filters: &[(TopicFilter, Qos)], wanted: RetainedWanted) -> Result<(), Busy> {
        self.client.as_mut().map_or(Ok(()), |client| client.subscribe(filters, wanted))
    }

    fn unsubscribe(&mut self, filters: &[TopicFilter]) -> Result<(), Busy> {
        self.client.as_mut().map_or(Ok(()), |client| client.unsubscribe(filters))
    }

    fn ack(&mut self, ack: Ack) -> Result<(), Busy> {
        self.client.as_mut().map_or(Ok(()), |client| client.ack(ack))
    }

    async fn events(&mut self) -> Result<Vec<ClientEvent>, Broken> {
        match &mut self.client {
            Some(client) => client.events().await,
            None => Err(Broken::Closed),
        }
    }

    fn disconnect(&mut self) -> Result<(), Busy> {
        self.client.as_mut().map_or(Ok(()), RemoteClient::disconnect)
    }

    fn close(&mut self) {
        self.client = None;
    }
}

/// How often the tasks of the runtime get their turn between two parts of an input.
const STEPS: usize = 16;

/// The task of an upstream with waiting messages. It survives all bytes of the upstream, and every accepted message is
/// acknowledged, set aside with a reason, or still waits.
pub(super) fn task(data: &[u8]) {
    let house = house();
    let House { runtime, core, .. } = house;
    let mut source = Source(data);
    let flags = source.byte();
    let mut upstream = (*settings()).clone();
    upstream.protocol = if flags & 1 == 0 { Protocol::V4 } else { Protocol::V5 };
    runtime.block_on(house.serves(async {
        let (ingress, journal) = (&core.ingress, core.ingress.journal());
        let (_changes, changed) = watch::channel(Arc::new(upstream));
        let (ours, theirs) = duplex(1 << 20);
        let (mut heard, mut theirs) = tokio::io::split(theirs);
        let client = Once { stream: Some(ours), client: None };
        let limits = Limits { messages: 100, bytes: 1 << 20, when_full: WhenFull::DropOldest };
        let (kept, clock) = ((limits, Order::LiveFirst), ingress.clock().clone());
        let task = Upstream::speaking_by(client, changed, journal, kept, ingress.clone(), LARGEST, clock);
        let shown = task.shown();
        let before = shown.now().ledger;
        let mut accepted = before.accepted;
        for topic in ["up/1", "up/2", "exact/1", "exact/2", "up/3"] {
            let payload = b"x";
            let draft = Draft {
                qos: Qos::AtLeastOnce,
                retain: flags & 2 != 0,
                boot_ms: ingress.clock().boot_ms(),
                origin: Origin::http(),
                ..Draft::new(topic, payload)
            };
            let mut batch = BatchBuilder::default();
            batch.push(&draft);
            if let Ok(Some(_)) = ingress.try_publish(&mut batch) {
                accepted += 1;
            }
        }
        let cancel = CancellationToken::new();
        let (_taker, pulse) = PulseTaker::new();
        let run = tokio::spawn(task.run(pulse, cancel.clone()));
        let hearing =
            tokio::spawn(async move { while heard.read(&mut [0; 512]).await.is_ok_and(|count| count > 0) {} });
        while !source.is_empty() {
            let length = source.number() % 512;
            let _ = theirs.write_all(source.take(length)).await;
            // each part of the input is processed before the next one
            for _ in 0..STEPS {
                tokio::task::yield_now().await;
            }
        }
        let _ = theirs.shutdown().await;
        let _ = hearing.await;
        drop(theirs);
        let mut looked = shown.clone();
        while looked.now().state == UpstreamState::Connected {
            looked.changed().await;
        }
        cancel.cancel();
        assert!(matches!(run.await, Ok(Ok(()))), "the task has ended by itself");
        let ledger = shown.now().ledger;
        assert_eq!(ledger.accepted, accepted);
        let settled = ledger.acked + ledger.sent_unconfirmed + ledger.expired + ledger.dropped.total() + ledger.pending;
        assert_eq!(settled, ledger.accepted, "{ledger:?}");
        for (name, id, _) in journal.consumers() {
            if name.starts_with("upstream/") {
                journal.remove(id);
            }
        }
    }));
}

/// The answer of an HTTP or SOCKS5 proxy. All bytes behind the answer must reach the upstream's connection.
pub(super) fn proxy_answer(data: &[u8]) {
    let mut source = Source(data);
    let flags = source.byte();
    let text = if flags & 1 == 0 { "http://u:p@192.0.2.1" } else { "socks5://u:p@192.0.2.1" };
    let Some(mut by) = Proxy::parse(text) else { panic!("{text}") };
    if flags & 2 != 0 {
        by.login = None;
    }
    let answer = source.0;
    let ask = async {
        let (mut ours, mut theirs) = duplex(1 << 16);
        let answer = &answer[..answer.len().min(1 << 16)];
        let _ = theirs.write_all(answer).await;
        let _ = theirs.shutdown().await;
        let agreed = match flags & 1 {
            0 => proxy::http(&mut ours, &by, "far.example.org:1883").await,
            _ => proxy::socks5(&mut ours, &by, "far.example.org", 1883).await,
        };
        if agreed.is_ok() {
            let mut rest = Vec::new();
            let _ = ours.read_to_end(&mut rest).await;
            assert!(answer.ends_with(&rest) && rest.len() < answer.len());
        }
    };
    let local = local();
    paid_by(data.len(), (256 << 10, 16), || local.block_on(ask));
}

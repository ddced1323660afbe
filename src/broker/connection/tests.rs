use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Buf;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use super::*;
use crate::access::identity::SessionName;
use crate::exchange::filters::MAX_LEVELS;
use crate::mqtt::Will;

/// A broker without a port.
pub(super) fn broker(journal: impl FnOnce() -> crate::journal::Journal + Send + 'static) -> crate::broker::Broker {
    let settings = crate::broker::settings::BrokerSettings { listeners: Vec::new(), ..Default::default() };
    let clock = Arc::new(crate::time::SystemClock);
    let opening =
        std::thread::spawn(|| crate::broker::Broker::open(settings, journal(), clock, Default::default()).unwrap());
    opening.join().unwrap()
}

/// A journal that keeps sessions.
fn journal() -> crate::journal::Journal {
    use crate::journal::storage::memory::MemoryStorage;

    let (storage, clock) = (Arc::new(MemoryStorage::default()), Arc::new(crate::time::SystemClock));
    crate::journal::Journal::open(storage, Default::default(), clock).unwrap()
}

/// The client's side of a connection with a buffer of this many bytes.
fn reach(broker: &crate::broker::Broker, bytes: usize) -> tokio::io::DuplexStream {
    let (client, server) = tokio::io::duplex(bytes);
    let (reader, writer) = tokio::io::split(server);
    let peer = Peer::at(IpAddr::from([127, 0, 0, 1]));
    tokio::spawn(serve(broker.core.clone(), reader, writer, peer));
    client
}

/// A broker with a connected client.
pub(super) async fn connected() -> (crate::broker::Broker, tokio::io::DuplexStream) {
    let broker = broker(crate::journal::Journal::default);
    let mut client = reach(&broker, 4096);
    client.write_all(b"\x10\x0d\0\x04MQTT\x04\x02\0\x3c\0\x01a").await.unwrap();
    let mut connack = [0; 4];
    client.read_exact(&mut connack).await.unwrap();
    assert_eq!(connack, [0x20, 2, 0, 0]);
    (broker, client)
}

#[tokio::test(start_paused = true)]
async fn a_client_that_was_quiet_for_long_still_gets_its_answers() {
    let (_broker, mut client) = connected().await;
    for _ in 0..50 {
        // longer than a client may read nothing, and shorter than its keep alive allows
        tokio::time::sleep(Duration::from_secs(59)).await;
        client.write_all(&[0xc0, 0]).await.unwrap();
        let mut pingresp = [0; 2];
        client.read_exact(&mut pingresp).await.expect("it is still connected");
        assert_eq!(pingresp, [0xd0, 0]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_client_that_takes_nothing_is_cut_off() {
    let (_broker, mut client) = connected().await;
    let begin = Instant::now();
    let mut taken = 0;
    let ping = async {
        // the answers fill the pipe, and then nothing moves any more
        while client.write_all(&[0xc0, 0].repeat(512)).await.is_ok() {
            // once its time is over, what it has sent before is read without being answered
            taken += if begin.elapsed() < Duration::from_secs(30) { 1024 } else { 0 };
        }
    };
    timeout(Duration::from_secs(300), ping).await.expect("it is cut off");
    assert!(begin.elapsed() >= Duration::from_secs(30), "{:?}", begin.elapsed());
    // as many bytes as there are answers, and what was read or on its way when the last of them was full
    assert!((128 << 10..256 << 10).contains(&taken), "{taken} bytes were taken from it");
}

#[tokio::test(start_paused = true)]
async fn a_silent_client_is_cut_off_within_a_beat_after_its_time() {
    let (_broker, mut client) = connected().await;
    let begin = Instant::now();
    // its keep alive is a minute
    assert_eq!(client.read(&mut [0; 1]).await.unwrap(), 0);
    let silent = begin.elapsed().as_secs_f64();
    assert!((90.0..90.0 + 4.1 + 0.3).contains(&silent), "{silent} s");
}

/// Subscribes to this topic at QoS 1.
fn subscribe(topic: u8) -> [u8; 8] {
    [0x82, 6, 0, 1, 0, 1, topic, 1]
}

#[tokio::test(start_paused = true)]
async fn all_clients_of_a_user_have_one_allowance() {
    let guests = PlaceHolder::of(None, IpAddr::from([127, 0, 0, 1]));
    let (broker, mut without_session) = connected().await;
    let mut client = reach(&broker, 4096);
    client.write_all(b"\x10\x0d\0\x04MQTT\x04\0\0\0\0\x01b").await.unwrap();
    client.read_exact(&mut [0; 4]).await.unwrap();
    broker.core.allowance.charge(&guests, 9_600_000);
    let begin = Instant::now();
    // what ends with its connection is not written, and pays nothing
    without_session.write_all(&subscribe(b't')).await.unwrap();
    without_session.read_exact(&mut [0; 5]).await.unwrap();
    assert!(begin.elapsed() < Duration::from_secs(1), "{:?}", begin.elapsed());
    client.write_all(&subscribe(b't')).await.unwrap();
    // this journal keeps no sessions, so what is answered in the end does not matter
    let _ = client.read(&mut [0; 5]).await;
    // a network of guests has 8 MB at once and 0.8 MB a minute
    assert!(begin.elapsed() >= Duration::from_secs(115), "{:?}", begin.elapsed());
}

#[tokio::test]
async fn what_clients_write_is_at_the_cost_of_their_user() {
    let guests = PlaceHolder::of(None, IpAddr::from([127, 0, 0, 1]));
    let broker = broker(journal);
    for id in *b"ab" {
        let mut client = reach(&broker, 4096);
        client.write_all(&[&b"\x10\x0d\0\x04MQTT\x04\0\0\0\0\x01"[..], &[id], &subscribe(id)].concat()).await.unwrap();
        client.read_exact(&mut [0; 9]).await.unwrap();
    }
    let holders = broker.core.allowance.holders();
    assert_eq!(holders, [guests, PlaceHolder::Guest(None)].into());
}

#[tokio::test]
async fn a_message_of_mqtt_3_that_is_not_taken_writes_nothing_to_the_card() {
    let broker = broker(journal);
    let mut client = reach(&broker, 4096);
    client.write_all(&[&connect(b'a')[..], &subscribe(b'a')].concat()).await.unwrap();
    client.read_exact(&mut [0; 9]).await.unwrap();
    let barrier = || broker.core.ingress.journal().barrier();
    let before = barrier();
    let topic = "/".repeat(MAX_LEVELS);
    let mut publish = bytes::BytesMut::from(&[0x34][..]);
    write::variable(&mut publish, 2 + topic.len() + 2);
    publish.extend([&(topic.len() as u16).to_be_bytes()[..], topic.as_bytes(), &[0, 7]].concat());
    for _ in 0..3 {
        let mut answers = [0; 8];
        client.write_all(&[&publish[..], &[0x62, 2, 0, 7]].concat()).await.unwrap();
        client.read_exact(&mut answers).await.unwrap();
        assert_eq!(answers, [0x50, 2, 0, 7, 0x70, 2, 0, 7], "PUBREC and PUBCOMP");
    }
    assert_eq!(barrier(), before);
    // a message that is taken does write
    client.write_all(b"\x34\x05\0\x01t\0\x08").await.unwrap();
    client.read_exact(&mut [0; 4]).await.unwrap();
    assert_ne!(barrier(), before);
}

#[tokio::test]
async fn what_the_journal_refuses_is_not_granted() {
    use crate::journal::Note;
    use crate::journal::storage::memory::{Faults, MemoryStorage};

    let storage = MemoryStorage::default();
    let files = storage.clone();
    let clock = Arc::new(crate::time::SystemClock);
    let broker = broker(move || crate::journal::Journal::open(Arc::new(files), Default::default(), clock).unwrap());
    let mut client = reach(&broker, 4096);
    // QoS 2 with packet id 7
    client.write_all(&[connect(b'a'), b"\x34\x06\0\x01t\0\x07x".to_vec()].concat()).await.unwrap();
    let mut answers = [0; 8];
    client.read_exact(&mut answers).await.unwrap();
    assert_eq!(answers, [0x20, 2, 0, 0, 0x50, 2, 0, 7]);
    // from now on the disk does not respond, and there is no room left; what is being written has left room
    let journal = broker.core.ingress.journal();
    let quiet = async |wanted: bool| {
        while journal.is_quiet() != wanted {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    quiet(true).await;
    storage.set_faults(Faults { hold_sync: true, ..Faults::NONE });
    journal.keep_session("being written", Some(b"x"), false).unwrap();
    quiet(false).await;
    for size in [400, 1] {
        let keep = |number| journal.keep_session(&format!("{size}.{number}"), Some(&vec![b'x'; size]), false);
        let _ = (0..).find(|number: &u32| keep(*number).is_err());
    }
    let consumer = journal.consumers()[0].1;
    while journal.note(consumer, Note::Again(1)).is_ok() {}
    let mut other = reach(&broker, 4096);
    other.write_all(&connect(b'b')).await.unwrap();
    let mut refused = [0; 4];
    other.read_exact(&mut refused).await.unwrap();
    assert_eq!(refused, [0x20, 2, 0, 3], "its session would be gone after a restart");
    client.write_all(&subscribe(b't')).await.unwrap();
    let mut suback = [0; 5];
    client.read_exact(&mut suback).await.unwrap();
    assert_eq!(suback, [0x90, 3, 0, 1, 0x80]);
    // without a PUBCOMP the client sends its PUBREL again when it connects again
    client.write_all(b"\x62\x02\0\x07").await.unwrap();
    assert_eq!(client.read(&mut [0; 4]).await.unwrap(), 0);
    storage.set_faults(Faults::NONE);
    while journal.status().pending_bytes > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let mut client = reach(&broker, 4096);
    client.write_all(&[connect(b'a'), b"\x62\x02\0\x07".to_vec()].concat()).await.unwrap();
    let mut answers = [0; 8];
    client.read_exact(&mut answers).await.unwrap();
    assert_eq!(answers, [0x20, 2, 1, 0, 0x70, 2, 0, 7]);
}

/// The CONNECT of a client with a persistent session.
fn connect(id: u8) -> Vec<u8> {
    [&b"\x10\x0d\0\x04MQTT\x04\0\0\0\0\x01"[..], &[id]].concat()
}

/// Makes a session with this many subscriptions, which expires at once.
async fn leave_expired(broker: &crate::broker::Broker, id: u8, filters: usize) {
    let mut client = reach(broker, 64 << 10);
    let subscribe = subscribe_to((0..filters).map(|number| format!("{id}/{number}")));
    client.write_all(&[connect(id), subscribe].concat()).await.unwrap();
    client.read_exact(&mut vec![0; 4 + 1 + write::variable_len(2 + filters) + 2 + filters]).await.unwrap();
    client.write_all(&[0xe0, 0]).await.unwrap();
    let name = SessionName::of_guest(std::str::from_utf8(&[id]).unwrap());
    let registry = &broker.core.registry;
    let mut parked = loop {
        match registry.take(&name, |_| true) {
            Some(parked) => break parked,
            None => tokio::time::sleep(Duration::from_millis(1)).await,
        }
    };
    parked.expires = Instant::now();
    registry.restore(&name, parked);
}

#[tokio::test]
async fn who_comes_back_while_expired_sessions_are_ended_has_a_session_that_lasts() {
    use crate::message::{Draft, Qos};

    let broker = broker(journal);
    for id in *b"ab" {
        leave_expired(&broker, id, 200).await;
    }
    let mut sweep = Box::pin(broker.core.clone().sweep());
    let first_portion = std::future::poll_fn(|context| Poll::Ready(sweep.as_mut().poll(context)));
    assert!(first_portion.await.is_pending());
    let mut client = reach(&broker, 4096);
    client.write_all(&[&connect(b'b')[..], &subscribe(b't')].concat()).await.unwrap();
    let mut answers = [0; 9];
    client.read_exact(&mut answers).await.unwrap();
    assert_eq!(answers, [0x20, 2, 0, 0, 0x90, 3, 0, 1, 1], "the expired session is not continued");
    tokio::spawn(sweep);
    while broker.core.registry.counts() != (1, 0) {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(broker.core.stats.sessions_expired.get(), 2);
    let draft = Draft { qos: Qos::AtLeastOnce, ..Draft::new("t", b"heard") };
    broker.core.ingress.publish(&draft).await.unwrap();
    let mut publish = [0; 12];
    timeout(Duration::from_secs(30), client.read_exact(&mut publish)).await.expect("it hears").unwrap();
    assert_eq!(&publish[7..], b"heard");
    assert!(!broker.core.ingress.journal().kept(&SessionName::of_guest("b")).is_empty(), "it outlives a restart");
}

#[tokio::test]
async fn who_comes_back_to_a_session_that_is_being_ended_waits_for_the_end() {
    let broker = broker(journal);
    leave_expired(&broker, b'a', 200).await;
    let mut sweep = Box::pin(broker.core.clone().sweep());
    let first_portion = std::future::poll_fn(|context| Poll::Ready(sweep.as_mut().poll(context)));
    assert!(first_portion.await.is_pending());
    let mut client = reach(&broker, 4096);
    client.write_all(&connect(b'a')).await.unwrap();
    while broker.core.registry.counts() != (1, 0) {
        tokio::task::yield_now().await;
    }
    assert!(broker.core.clients(1).is_empty(), "it has no session before the old one has ended");
    tokio::spawn(sweep);
    let mut connack = [0; 4];
    timeout(Duration::from_secs(30), client.read_exact(&mut connack)).await.expect("it is not left waiting").unwrap();
    assert_eq!(connack, [0x20, 2, 0, 0]);
}

#[tokio::test]
async fn a_user_who_is_removed_while_its_will_is_published_leaves_no_session() {
    let core = broker(journal).core;
    let name = "u/ada\0node";
    let session = core.new_session(name, 1, true, 60);
    let since = Instant::now();
    core.registry.restore(name, Parked { session, expires: since + Duration::from_secs(60), since, will: None });
    let (claim, parked) = core.registry.take_due(since, 0).unwrap();
    core.end_sessions_of("ada").await;
    let over = core.registry.release(claim, Some(parked)).expect("it ends");
    core.end_in_hand(over).await;
    assert!(!core.registry.knows(name) && core.ingress.journal().consumers().is_empty());
}

#[tokio::test]
async fn a_will_is_published_before_its_client_continues_a_session_after_the_delay() {
    let broker = broker(journal);
    let will = Will {
        topic: "will".into(),
        payload: (*b"gone").into(),
        qos: crate::message::Qos::AtMostOnce,
        retain: true,
        delay: 1,
        expiry: None,
        properties: [].into(),
    };
    let retained = || broker.core.ingress.retained_size().0;
    for (delay, is_due) in [(Duration::from_secs(60), false), (Duration::ZERO, true)] {
        leave_expired(&broker, b'a', 1).await;
        let (claim, mut parked) = broker.core.registry.take_in_hand(&SessionName::of_guest("a")).unwrap();
        let now = Instant::now();
        parked.expires = now + Duration::from_secs(60);
        let holder = Core::holder(&parked.session.owner, None);
        parked.will = Some((now + delay, WaitingWill::kept(&broker.core.wills, holder, will.clone())));
        assert!(broker.core.registry.release(claim, Some(parked)).is_none());
        let mut client = reach(&broker, 4096);
        client.write_all(&[connect(b'a'), vec![0xe0, 0]].concat()).await.unwrap();
        let mut connack = [0; 4];
        client.read_exact(&mut connack).await.unwrap();
        assert_eq!((connack, retained() > 0), ([0x20, 2, 1, 0], is_due));
    }
}

/// A SUBSCRIBE to these filters at QoS 0.
fn subscribe_to(filters: impl Iterator<Item = String>) -> Vec<u8> {
    let mut body = vec![0, 1];
    for filter in filters {
        body.extend_from_slice(&(filter.len() as u16).to_be_bytes());
        body.extend_from_slice(filter.as_bytes());
        body.push(0);
    }
    let mut packet = BytesMut::from(&[0x82][..]);
    write::variable(&mut packet, body.len());
    [&packet, &body[..]].concat()
}

#[tokio::test]
async fn a_session_has_no_more_filters_and_no_longer_ones_than_it_may() {
    let broker = broker(crate::journal::Journal::default);
    let open = async |id: u8| {
        let mut client = reach(&broker, 64 << 10);
        client.write_all(&[&b"\x10\x0d\0\x04MQTT\x04\x02\0\0\0\x01"[..], &[id]].concat()).await.unwrap();
        client.read_exact(&mut [0; 4]).await.unwrap();
        client
    };
    let mut client = open(b'a').await;
    let mut granted = Vec::new();
    for number in 0..34 {
        let long = subscribe_to(std::iter::once(format!("{number}/{}", "x".repeat(65_000))));
        client.write_all(&long).await.unwrap();
        let mut suback = [0; 5];
        client.read_exact(&mut suback).await.unwrap();
        granted.push(suback[4] == 0);
    }
    assert_eq!(granted.iter().position(|granted| !granted), Some(32), "two MiB");
    let mut client = open(b'b').await;
    client.write_all(&subscribe_to((0..12_000).map(|number| format!("a/{number}")))).await.unwrap();
    let mut suback = vec![0; 1 + 2 + 2 + 12_000];
    client.read_exact(&mut suback).await.unwrap();
    assert_eq!(suback[5..].iter().filter(|reason| **reason == 0).count(), 10_000);
    // however short the filters are, the answer has a byte for each
    client.write_all(&subscribe_to((0..65_536).map(|_| "#".into()))).await.unwrap();
    assert_eq!(client.read(&mut [0; 1]).await.unwrap(), 0, "the connection ends");
}

/// A future that counts how often it is polled.
struct Counted<F>(std::pin::Pin<Box<F>>, Arc<std::sync::atomic::AtomicUsize>);

impl<F: Future> Future for Counted<F> {
    type Output = F::Output;

    fn poll(mut self: std::pin::Pin<&mut Self>, context: &mut std::task::Context<'_>) -> std::task::Poll<F::Output> {
        self.1.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        self.0.as_mut().poll(context)
    }
}

#[tokio::test]
async fn a_delivery_to_a_persistent_session_wakes_it_once() {
    use crate::message::{Draft, Qos};

    let broker = broker(journal);
    let (mut client, server) = tokio::io::duplex(65536);
    let (reader, writer) = tokio::io::split(server);
    let peer = Peer::at(IpAddr::from([127, 0, 0, 1]));
    let polls = Arc::<std::sync::atomic::AtomicUsize>::default();
    tokio::spawn(Counted(Box::pin(serve(broker.core.clone(), reader, writer, peer)), polls.clone()));
    // CONNECT without clean session, and SUBSCRIBE to "t" at QoS 1
    client.write_all(b"\x10\x0d\0\x04MQTT\x04\0\0\x3c\0\x01a\x82\x06\0\x01\0\x01t\x01").await.unwrap();
    let mut answers = [0; 9];
    client.read_exact(&mut answers).await.unwrap();
    let mut wakes = Vec::new();
    for number in 0..50u16 {
        // by now the connection has finished its work
        tokio::time::sleep(Duration::from_millis(20)).await;
        let before = polls.load(std::sync::atomic::Ordering::Relaxed);
        let payload = number.to_be_bytes();
        let draft = Draft { qos: Qos::AtLeastOnce, ..Draft::new("t", &payload) };
        broker.core.ingress.publish(&draft).await.unwrap();
        let mut publish = [0; 9];
        client.read_exact(&mut publish).await.unwrap();
        assert_eq!((publish[0], &publish[7..]), (0x32, &number.to_be_bytes()[..]));
        tokio::time::sleep(Duration::from_millis(20)).await;
        wakes.push(polls.load(std::sync::atomic::Ordering::Relaxed) - before);
        client.write_all(&[0x40, 2, publish[5], publish[6]]).await.unwrap();
    }
    // on a busy machine work that follows an acknowledgement may end only during the next delivery
    let once = wakes.iter().filter(|wakes| **wakes == 1).count();
    assert!(once > wakes.len() / 2, "{wakes:?}");
    let dropped = broker.core.stats.publish_dropped.get();
    assert_eq!(dropped, 0);
}

/// A writer that takes everything and passes it on when flushed, as TLS does while the socket takes nothing.
struct KeepsBack<W> {
    writer: W,
    kept: BytesMut,
    is_open: tokio::sync::watch::Receiver<bool>,
    opened: tokio_util::sync::ReusableBoxFuture<'static, ()>,
}

impl<W: AsyncWrite + Unpin> KeepsBack<W> {
    fn new(writer: W, is_open: tokio::sync::watch::Receiver<bool>) -> KeepsBack<W> {
        let mut waits = is_open.clone();
        let opened = async move { _ = waits.wait_for(|is_open| *is_open).await };
        KeepsBack { writer, kept: BytesMut::new(), is_open, opened: tokio_util::sync::ReusableBoxFuture::new(opened) }
    }
}

impl<W: AsyncWrite + Unpin> AsyncWrite for KeepsBack<W> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.kept.extend_from_slice(bytes);
        let _ = self.poll_flush(context);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !*this.is_open.borrow() {
            std::task::ready!(this.opened.poll(context));
        }
        while !this.kept.is_empty() {
            let count = std::task::ready!(Pin::new(&mut this.writer).poll_write(context, &this.kept))?;
            this.kept.advance(count);
        }
        Pin::new(&mut this.writer).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        std::task::ready!(self.as_mut().poll_flush(context))?;
        Pin::new(&mut self.writer).poll_shutdown(context)
    }
}

#[tokio::test]
async fn what_tls_has_kept_back_follows_without_another_message() {
    use crate::message::Draft;

    let broker = broker(crate::journal::Journal::default);
    let (mut client, server) = tokio::io::duplex(65536);
    let (reader, writer) = tokio::io::split(server);
    let (open, is_open) = tokio::sync::watch::channel(true);
    let writer = KeepsBack::new(writer, is_open);
    tokio::spawn(serve(broker.core.clone(), reader, writer, Peer::at(IpAddr::from([127, 0, 0, 1]))));
    client.write_all(b"\x10\x0d\0\x04MQTT\x04\x02\0\x3c\0\x01a\x82\x06\0\x01\0\x01t\0").await.unwrap();
    let mut answers = [0; 9];
    client.read_exact(&mut answers).await.unwrap();
    open.send_replace(false);
    let sent = broker.core.stats.publish_sent.get();
    broker.core.ingress.publish(&Draft::new("t", b"kept")).await.unwrap();
    while broker.core.stats.publish_sent.get() == sent {
        tokio::task::yield_now().await;
    }
    open.send_replace(true);
    let mut publish = [0; 9];
    timeout(Duration::from_secs(30), client.read_exact(&mut publish)).await.expect("it follows").unwrap();
    assert_eq!(&publish, b"\x30\x07\0\x01tkept");
}

#[tokio::test]
async fn a_panic_costs_only_the_future_that_panicked() {
    assert_eq!(contain(async { 7 }).await, Ok(7));
    let result = contain(async {
        tokio::task::yield_now().await;
        panic!("on purpose");
    });
    assert_eq!(result.await, Err::<(), ()>(()));
}

#[tokio::test]
async fn a_waiting_connection_is_small() {
    let broker = broker(crate::journal::Journal::default);
    let (_client, server) = tokio::io::duplex(64);
    let (reader, writer) = tokio::io::split(server);
    let connection = serve(broker.core.clone(), reader, writer, Peer::at(IpAddr::from([127, 0, 0, 1])));
    // ten thousand of them are connected at the same time on a large installation
    let size = size_of_val(&connection);
    assert!(size <= 5 * 1024, "{size} bytes");
}

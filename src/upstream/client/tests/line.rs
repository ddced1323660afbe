//! Tests with a real socket whose other side reads slowly.

use std::time::Duration;

use socket2::SockRef;
use tokio::net::TcpListener;
use tokio::time::{sleep, timeout};

use super::*;
use crate::upstream::wire::LineProgress;

const OWED: Duration = Duration::from_secs(60);

/// A connection over TCP with this keep alive, and the upstream's side of it, which takes little at a time.
async fn over_tcp(keep_alive: Duration) -> (UpstreamConnection, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    SockRef::from(&listener).set_recv_buffer_size(8 << 10).unwrap();
    let ours = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (mut theirs, _) = listener.accept().await.unwrap();
    let mut connection = UpstreamConnection::new(Box::new(ours), Version::V311, 1000, 100);
    let mut settings = settings();
    (settings.keep_alive, settings.max_inflight) = (keep_alive, 1000);
    theirs.write_all(&[0x20, 2, 0, 0]).await.unwrap();
    connection.open(&settings, StatusWill::Whole, None).await.unwrap();
    let mut connect = [0; 2];
    theirs.read_exact(&mut connect).await.unwrap();
    theirs.read_exact(&mut vec![0; connect[1].into()]).await.unwrap();
    (connection, theirs)
}

/// Sends a message of this size, which the kernel takes at once.
async fn send(connection: &mut UpstreamConnection, size: usize) {
    connection.request(Request::Publish(message(&vec![0; size], Qos::AtLeastOnce))).unwrap();
    assert_eq!(connection.events().await, Ok(vec![ClientEvent::Sent(1)]));
}

#[tokio::test]
async fn a_large_message_in_the_kernel_of_a_slow_line_is_not_silence() {
    let (mut connection, mut theirs) = over_tcp(Duration::from_secs(1)).await;
    let size = 2 << 20;
    send(&mut connection, size).await;
    // that takes several times the keep alive
    let slowly = async {
        for _ in 0..size / (64 << 10) {
            theirs.read_exact(&mut vec![0; 64 << 10]).await.unwrap();
            sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::select! {
        () = slowly => {}
        events = connection.events() => panic!("{events:?}"),
    }
    // an upstream that has everything and says nothing is silent
    let drain = async { while theirs.read_u8().await.is_ok() {} };
    tokio::select! {
        () = drain => panic!("closed"),
        events = timeout(OWED, connection.events()) => assert_eq!(events, Ok(Err(Broken::Silent))),
    }
}

#[tokio::test]
async fn a_line_on_which_nothing_moves_is_dead_although_much_waits() {
    let (mut connection, _theirs) = over_tcp(Duration::from_secs(1)).await;
    send(&mut connection, 2 << 20).await;
    assert_eq!(timeout(OWED, connection.events()).await, Ok(Err(Broken::Silent)));
}

#[tokio::test]
async fn the_line_moves_while_the_other_side_takes_what_waits() {
    let (mut connection, mut theirs) = over_tcp(OWED).await;
    assert_eq!(connection.line(OWED), LineProgress::Nothing, "there is nothing on it");
    let size = 1 << 20;
    send(&mut connection, size).await;
    assert_eq!(connection.line(Duration::ZERO), LineProgress::Unsure, "the first look was before the answer was owed");
    while connection.line(OWED) == LineProgress::Moves {
        sleep(Duration::from_millis(10)).await;
    }
    theirs.read_exact(&mut vec![0; size / 2]).await.unwrap();
    let moves = async {
        while connection.line(OWED) != LineProgress::Moves {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(OWED, moves).await.unwrap();
    let size = message(&vec![0; size], Qos::AtLeastOnce).packet_size(Version::V311) - size / 2;
    theirs.read_exact(&mut vec![0; size]).await.unwrap();
    // the last part counts as well, and then the answer should have come
    let moves = async {
        while connection.line(OWED) != LineProgress::Moves {
            sleep(Duration::from_millis(10)).await;
        }
        while connection.line(OWED) == LineProgress::Moves {
            sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(OWED, moves).await.unwrap();
    assert_eq!(connection.line(OWED), LineProgress::Nothing);
}

#[tokio::test]
async fn answers_wait_behind_a_large_message_that_arrives() {
    let (mut connection, mut theirs) = over_tcp(OWED).await;
    let mut arrive = async |bytes: &[u8]| {
        theirs.write_all(bytes).await.unwrap();
        let events = timeout(Duration::from_millis(200), connection.events()).await;
        assert!(events.is_err(), "{events:?}");
        connection.line(OWED)
    };
    assert_eq!(arrive(&[0x30, 0xe0, 0xff, 0x07, 0, 1, b'a']).await, LineProgress::Unsure);
    assert_eq!(arrive(b"").await, LineProgress::Nothing);
    assert_eq!(arrive(&[0; 5000]).await, LineProgress::Moves);
    assert_eq!(arrive(b"an answer to a ping").await, LineProgress::Nothing);
    // what a line of 120 bytes a second carries between two looks
    assert_eq!(arrive(&[0; 600]).await, LineProgress::Moves);
}

#[tokio::test]
async fn what_was_written_and_what_was_answered_is_told_in_one_turn() {
    let (mut connection, mut theirs) = over_tcp(OWED).await;
    let publish = |connection: &mut UpstreamConnection| {
        connection.request(Request::Publish(message(b"", Qos::AtLeastOnce))).unwrap();
    };
    let size = message(b"", Qos::AtLeastOnce).packet_size(Version::V311);
    let upstream = async {
        for id in 1..=2000u16 {
            theirs.read_exact(&mut vec![0; size]).await.unwrap();
            let [high, low] = id.to_be_bytes();
            theirs.write_all(&[0x40, 2, high, low]).await.unwrap();
        }
    };
    let (mut turns, mut written_only) = (0, 0);
    let gateway = async {
        let (mut sent, mut acked) = (1, 0);
        publish(&mut connection);
        while acked < 2000 {
            let events = connection.events().await.unwrap();
            let answers = events.iter().filter(|event| matches!(event, ClientEvent::Acked(..))).count();
            turns += 1;
            written_only += u32::from(answers == 0);
            acked += answers;
            for _ in 0..answers.min(2000 - sent) {
                publish(&mut connection);
                sent += 1;
            }
        }
    };
    tokio::join!(gateway, upstream);
    // otherwise every other turn would only tell of what was written
    assert!(written_only * 4 < turns, "{written_only} of {turns}");
}

/// How the connection ends if the upstream answers nothing more, and this many bytes of a large message arrive each second;
/// `None` if it has not ended within three times the keep alive.
async fn drip(bytes: usize) -> Option<Broken> {
    let (mut connection, mut theirs, _) = opened(Version::V311, 1 << 16).await;
    // the head of a message that is larger than what is kept
    theirs.write_all(&[0x30, 0xff, 0xff, 0x7f, 0, 1, b't']).await.unwrap();
    let drips = async {
        for _ in 0..3 * settings().keep_alive.as_secs() {
            theirs.write_all(&vec![0; bytes]).await.unwrap();
            sleep(Duration::from_secs(1)).await;
        }
    };
    let mut drips = std::pin::pin!(drips);
    loop {
        tokio::select! {
            () = &mut drips => return None,
            events = connection.events() => match events {
                Ok(_) => {}
                Err(broken) => return Some(broken),
            },
        }
    }
}

#[tokio::test(start_paused = true)]
async fn single_bytes_of_a_packet_that_does_not_end_are_no_answer_to_a_ping() {
    assert_eq!(drip(1).await, Some(Broken::Silent));
    assert_eq!(drip(100).await, None, "a message at 100 bytes a second is one");
}

#[tokio::test]
async fn who_does_not_answer_is_said() {
    // it accepts connections, and never answers
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = listener.local_addr().unwrap();
    for (scheme, proxy, expected) in [
        ("mqtts", None, "does not answer to TLS"),
        ("ws", None, "does not answer to WebSocket"),
        ("mqtt", Some("http"), "proxy http://127.0.0.1"),
        ("mqtt", Some("socks5"), "proxy socks5://127.0.0.1"),
    ] {
        let mut settings = settings();
        settings.proxy =
            proxy.map(|scheme| crate::upstream::settings::Proxy::parse(&format!("{scheme}://{at}")).unwrap());
        settings.tls =
            Some(crate::upstream::settings::UpstreamTls { fingerprint: Some([0; 32]), ..Default::default() });
        let address = UpstreamAddress::parse(&format!("{scheme}://{at}")).unwrap();
        let mut progress = OpenProgress::default();
        let opening = open(&settings, &address, false, PeerOrder::default(), &mut progress);
        assert!(timeout(Duration::from_millis(500), opening).await.is_err(), "{scheme}: it is opened");
        let why = too_late(&settings, progress.step).to_string();
        assert!(why.contains(expected) && why.contains("within 30 s"), "{why}");
    }
}

#[tokio::test]
async fn what_is_too_much_for_an_upstream_is_told_apart() {
    use crate::upstream::wire::EndReason::{PaceExceeded, TooMuch, WindowExceeded};
    for (code, reason) in [(0x93, WindowExceeded), (0x96, PaceExceeded), (0x97, TooMuch)] {
        let (mut connection, mut theirs, _) = opened(Version::V5, 1024).await;
        theirs.write_all(&[0xe0, 1, code]).await.unwrap();
        let ended = connection.events().await;
        assert!(matches!(&ended, Err(Broken::Ended(found, _)) if *found == reason), "{code:#x}: {ended:?}");
    }
}

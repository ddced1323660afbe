//! The first bytes of an upstream.

use std::time::Duration;

use tokio::time::timeout;

use super::*;

/// What comes of an upstream that answers so and keeps the connection; `None` if that is not known yet.
async fn answered(version: Version, answer: &[u8]) -> Option<Result<Link, Broken>> {
    let (ours, mut theirs) = duplex(64 << 10);
    let stream = Box::new(Counted(ours, Arc::default()));
    let mut connection = UpstreamConnection::new(stream, version, 1000, 100);
    theirs.write_all(answer).await.unwrap();
    let settings = settings();
    timeout(Duration::from_secs(10), connection.open(&settings, StatusWill::Whole, None)).await.ok()
}

#[tokio::test(start_paused = true)]
async fn what_is_not_mqtt_is_known_by_its_first_byte() {
    let others: [&[u8]; 11] = [
        b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n",
        b"\0\0\x12\x04\0\0\0\0\0",
        b"SSH-2.0-OpenSSH_9.2p1\r\n",
        b"220 mx.example.org ESMTP\r\n",
        b"-ERR unknown command\r\n",
        b"AMQP\0\0\x09\x01",
        b"N",
        b"\x15\x03\x01\0\x02\x02\x46",
        // packets of MQTT that come too early, or have flags that they may not have
        b"\x40\x02\0\x01",
        b"\xd0\0",
        b"\x21",
    ];
    for version in [Version::V311, Version::V5] {
        for other in others {
            let end = answered(version, other).await;
            assert_eq!(end, Some(Err(Broken::Garbled)), "{version:?} {:?}", String::from_utf8_lossy(other));
        }
        assert_eq!(answered(version, b"\x20").await, None, "the rest may follow");
        assert_eq!(answered(version, b"\xe0\0").await, Some(Err(Broken::Closed)), "it says why it ends");
    }
    let auth = answered(Version::V5, b"\xf0").await;
    assert!(matches!(&auth, Some(Err(Broken::Failed(why))) if why.contains("AUTH")), "{auth:?}");
    assert_eq!(answered(Version::V311, b"\xf0").await, Some(Err(Broken::Garbled)));
}

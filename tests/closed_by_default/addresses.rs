//! The addresses from which anonymous clients are accepted. A test host has no other usable address, so connections are
//! served with an address that the test chooses.

use std::net::IpAddr;
use std::sync::Arc;

use pigateway::access::settings::{AccessSettings, AnonymousFrom, AnonymousSettings};
use pigateway::broker::Broker;
use pigateway::broker::connection::{Peer, serve};
use pigateway::broker::settings::{BrokerSettings, ListenerSettings};
use pigateway::journal::Journal;
use pigateway::time::SystemClock;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_util::sync::CancellationToken;

use crate::support::Connect;

#[tokio::test(flavor = "multi_thread")]
async fn anonymous_clients_are_accepted_from_loopback_only_unless_one_line_says_otherwise() {
    let (here, there) =
        (["127.0.0.1", "127.1.2.3", "::1", "::ffff:127.0.0.1"], ["192.0.2.7", "2001:db8::7", "fe80::1"]);
    for (accept, from_here, from_there) in
        [(AnonymousFrom::None, 5, 5), (AnonymousFrom::Loopback, 0, 5), (AnonymousFrom::All, 0, 0)]
    {
        assert_eq!(answers(accept, &here).await, [from_here; 4], "{accept:?}");
        assert_eq!(answers(accept, &there).await, [from_there; 3], "{accept:?}");
    }
    assert_eq!(AnonymousSettings::default().accept, AnonymousFrom::Loopback);
}

/// The CONNACK codes for clients at these addresses.
async fn answers(accept: AnonymousFrom, addresses: &[&str]) -> Vec<u8> {
    let settings = BrokerSettings {
        access: AccessSettings {
            anonymous: AnonymousSettings { accept, ..AnonymousSettings::default() },
            ..AccessSettings::default()
        },
        listeners: vec![ListenerSettings::new(std::net::SocketAddr::from(([127, 0, 0, 1], 0)))],
        ..BrokerSettings::default()
    };
    let cancel = CancellationToken::new();
    let token = cancel.clone();
    let opening = move || Broker::open(settings, Journal::default(), Arc::new(SystemClock), token);
    let broker = match tokio::task::block_in_place(opening) {
        Ok(broker) => broker,
        Err(error) => panic!("{error}"),
    };
    let mut codes = Vec::new();
    for address in addresses {
        let (client, server) = tokio::io::duplex(4096);
        let (reader, writer) = tokio::io::split(server);
        let address: IpAddr = address.parse().unwrap();
        let peer = Peer::at(address);
        let serving = tokio::spawn(serve(broker.core.clone(), reader, writer, peer));
        let (mut reader, mut writer) = tokio::io::split(client);
        writer.write_all(&Connect::new("a").encode()).await.unwrap();
        let mut connack = [0; 4];
        reader.read_exact(&mut connack).await.unwrap();
        codes.push(connack[3]);
        drop((reader, writer));
        serving.await.unwrap();
    }
    cancel.cancel();
    codes
}

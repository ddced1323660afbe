//! The PROXY protocol, versions 1 and 2: a proxy in front of a port reports the addresses of its clients.
//!
//! It is believed only from the addresses that the configuration names, and these must use it. A proxied connection never
//! counts as coming from this host, whatever the header says. Otherwise anybody who reaches a proxy on this host would be
//! trusted like a person who is logged in here.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use ppp::{v1, v2};
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::timeout;

/// The longest wait for the header, which a proxy sends first and at once.
const PATIENCE: Duration = Duration::from_secs(5);
/// The length of a version 2 header without addresses.
const HEAD: usize = 16;
/// The longest line of version 1.
const LINE: usize = 107;
/// Most bytes of addresses and additional data, such as certificates and host names.
const MOST: usize = 4096;
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// A network: addresses that begin with the same bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    bits: u8,
}

impl Network {
    /// Reads a network such as `10.0.0.0/8`, or a single address.
    pub fn parse(text: &str) -> Option<Network> {
        let (address, bits) = text.split_once('/').map_or((text, None), |(address, bits)| (address, Some(bits)));
        let address: IpAddr = address.parse().ok()?;
        let most = if address.is_ipv4() { 32 } else { 128 };
        let bits = bits.map_or(Some(most), |bits| bits.parse().ok())?;
        // a network of all addresses would trust everybody
        (1..=most).contains(&bits).then_some(Network { address, bits })
    }

    pub(crate) fn contains(&self, address: IpAddr) -> bool {
        let number = |address: IpAddr| match address.to_canonical() {
            IpAddr::V4(address) => (u128::from(u32::from(address)) << 96, true),
            IpAddr::V6(address) => (u128::from(address), false),
        };
        let ((own, own_is_v4), (other, other_is_v4)) = (number(self.address), number(address));
        own_is_v4 == other_is_v4 && (own ^ other) >> (128 - u32::from(self.bits)) == 0
    }
}

/// Reads the header and nothing after it. Returns the client's address, which is never one of this host.
pub async fn read(stream: &mut (impl AsyncRead + Unpin), proxy: SocketAddr) -> io::Result<SocketAddr> {
    let read = timeout(PATIENCE, header(stream)).await;
    let source = read.map_err(|_| wrong("it has not come within 5 s"))??;
    Ok(elsewhere(source.unwrap_or(proxy)))
}

fn wrong(why: impl std::fmt::Display) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the header of the PROXY protocol will not do: {why}"))
}

/// The address, or an unspecified one if it belongs to this host.
fn elsewhere(address: SocketAddr) -> SocketAddr {
    match address.ip().to_canonical() {
        ip if !ip.is_loopback() => SocketAddr::new(ip, address.port()),
        IpAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, address.port())),
        IpAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, address.port())),
    }
}

async fn header(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<SocketAddr>> {
    let mut bytes = vec![0; SIGNATURE.len()];
    stream.read_exact(&mut bytes).await?;
    if bytes != SIGNATURE {
        if !bytes.starts_with(b"PROXY ") {
            return Err(wrong("there is none; the listener believes this address (proxy), so it must send one"));
        }
        while !bytes.ends_with(b"\r\n") {
            if bytes.len() >= LINE {
                return Err(wrong("its line is too long"));
            }
            // the bytes after the line belong to the client, and TLS needs all of them
            bytes.push(stream.read_u8().await?);
        }
        let header = v1::Header::try_from(&bytes[..]).map_err(wrong)?;
        return Ok(match header.addresses {
            v1::Addresses::Unknown => None,
            v1::Addresses::Tcp4(from) => Some((from.source_address, from.source_port).into()),
            v1::Addresses::Tcp6(from) => Some((from.source_address, from.source_port).into()),
        });
    }
    bytes.resize(HEAD, 0);
    stream.read_exact(&mut bytes[SIGNATURE.len()..]).await?;
    let more = usize::from(u16::from_be_bytes([bytes[14], bytes[15]]));
    if more > MOST {
        return Err(wrong("it is too long"));
    }
    bytes.resize(HEAD + more, 0);
    stream.read_exact(&mut bytes[HEAD..]).await?;
    let header = v2::Header::try_from(&bytes[..]).map_err(wrong)?;
    Ok(match (header.command, header.addresses) {
        // a health check by the proxy itself
        (v2::Command::Local, _) => None,
        (v2::Command::Proxy, v2::Addresses::IPv4(from)) => Some((from.source_address, from.source_port).into()),
        (v2::Command::Proxy, v2::Addresses::IPv6(from)) => Some((from.source_address, from.source_port).into()),
        (v2::Command::Proxy, _) => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn of(bytes: &[u8]) -> io::Result<(SocketAddr, Vec<u8>)> {
        let mut input = bytes;
        let from = read(&mut input, "127.0.0.1:9".parse().unwrap()).await?;
        Ok((from, input.to_vec()))
    }

    fn v2(command: u8, family: u8, addresses: &[u8]) -> Vec<u8> {
        let mut header = SIGNATURE.to_vec();
        header.extend([0x20 | command, family]);
        header.extend((addresses.len() as u16).to_be_bytes());
        header.extend(addresses);
        header.extend(b"rest");
        header
    }

    #[tokio::test]
    async fn both_versions_say_where_a_client_is_and_nothing_more_is_read() {
        let four = [192, 0, 2, 7, 10, 0, 0, 1, 0x30, 0x39, 7, 0x5b];
        let mut with_more = four.to_vec();
        with_more.extend([4, 0, 1, 0]);
        let mut six = [0u8; 36];
        six[..16].copy_from_slice(&"2001:db8::1".parse::<Ipv6Addr>().unwrap().octets());
        six[33] = 5;
        for (bytes, expected) in [
            (b"PROXY TCP4 192.0.2.7 10.0.0.1 12345 1883\r\nrest".to_vec(), "192.0.2.7:12345"),
            (b"PROXY TCP6 2001:db8::1 ::2 5 1883\r\nrest".to_vec(), "[2001:db8::1]:5"),
            (v2(1, 0x11, &four), "192.0.2.7:12345"),
            (v2(1, 0x11, &with_more), "192.0.2.7:12345"),
            (v2(1, 0x21, &six), "[2001:db8::1]:5"),
        ] {
            let (from, rest) = of(&bytes).await.unwrap();
            assert_eq!((from.to_string().as_str(), &rest[..]), (expected, &b"rest"[..]));
        }
    }

    #[tokio::test]
    async fn nobody_who_is_passed_on_is_on_this_host() {
        let local = [127, 0, 0, 1, 10, 0, 0, 1, 0, 1, 7, 0x5b];
        for bytes in [
            b"PROXY UNKNOWN\r\nrest".to_vec(),
            b"PROXY TCP4 127.0.0.1 10.0.0.1 1 1883\r\nrest".to_vec(),
            b"PROXY TCP4 127.9.9.9 10.0.0.1 1 1883\r\nrest".to_vec(),
            b"PROXY TCP6 ::1 ::2 5 1883\r\nrest".to_vec(),
            b"PROXY TCP6 ::ffff:127.0.0.1 ::2 5 1883\r\nrest".to_vec(),
            v2(1, 0x11, &local),
            v2(0, 0x11, &local),
            v2(0, 0, &[]),
            v2(1, 0, &[]),
        ] {
            let (from, rest) = of(&bytes).await.unwrap();
            assert!(!from.ip().to_canonical().is_loopback(), "{from}");
            assert_eq!(rest, b"rest");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_no_header_is_refused() {
        let long = [b"PROXY TCP4 ".to_vec(), vec![b'1'; 200]].concat();
        let mut huge = v2(1, 0x11, &[]);
        huge[14] = 0xff;
        for bytes in [
            &b"\x10\x0d\0\x04MQTT\x04\x02\0\x3c\0\x01a"[..],
            b"PROXY TCP4 x y 1 2\r\n",
            b"PROXY",
            &long,
            &huge,
            &v2(1, 0x11, &[1, 2, 3]),
        ] {
            assert!(of(bytes).await.is_err(), "{bytes:?}");
        }
        let (mut silent, _other) = tokio::io::duplex(64);
        assert!(read(&mut silent, "192.0.2.1:9".parse().unwrap()).await.is_err());
    }

    #[test]
    fn networks_hold_what_begins_like_them() {
        let within = |network: &str, address: &str| Network::parse(network).unwrap().contains(address.parse().unwrap());
        assert!(within("10.0.0.0/8", "10.255.0.1") && !within("10.0.0.0/8", "11.0.0.1"));
        assert!(within("10.0.0.1", "::ffff:10.0.0.1") && !within("10.0.0.1", "10.0.0.2"));
        assert!(within("2001:db8::/32", "2001:db8:1::1") && !within("2001:db8::/32", "2001:db9::1"));
        assert!(within("0.0.0.0/1", "10.0.2.1") && !within("0.0.0.0/1", "2001:db8::1"));
        for wrong in ["", "0.0.0.0/0", "::/0", "10.0.0.0/33", "::/129", "host", "10.0.0.0/x"] {
            assert_eq!(Network::parse(wrong), None, "{wrong}");
        }
    }
}

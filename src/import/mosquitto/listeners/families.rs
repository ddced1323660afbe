//! Joins what mosquitto opens once for IPv4 and once for IPv6, because `[::]` takes both here.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{ListenerOpening, Listeners};
use crate::import::mosquitto::document::{MosquittoDocument, Section};

const ANY_V4: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
const ANY_V6: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);

impl Listeners {
    /// Writes `[::]` for all addresses of both families. A listener that took IPv6 only must not take IPv4 as well, so it is
    /// opened to this host until its addresses are written.
    pub(super) fn join_families(&mut self, document: &MosquittoDocument) {
        let section = |opening: &ListenerOpening| opening.section.and_then(|index| document.listeners.get(index));
        let mut at = 0;
        while let Some(opening) = self.openings.get(at) {
            let of_opening = section(opening);
            let Some(half) = any(opening, ANY_V6).filter(|_| opening.addresses.len() == 1) else {
                at += 1;
                continue;
            };
            let other = [SocketAddr::new(ANY_V4, half.port())];
            let is_other = |of: &ListenerOpening| of.addresses == other && is_same(section(of), of_opening);
            match self.openings.iter().position(is_other) {
                Some(other) => {
                    merge(of_opening, section(&self.openings[other]));
                    self.openings[other].addresses.push(half);
                    self.openings.remove(at);
                }
                None => {
                    self.only_this_host(at, half.port(), of_opening);
                    at += 1;
                }
            }
        }
        for opening in &mut self.openings {
            if let Some(both) = any(opening, ANY_V6) {
                opening.addresses = vec![both];
            }
        }
    }

    fn only_this_host(&mut self, at: usize, port: u16, section: Option<&Section>) {
        self.openings[at].addresses = vec![SocketAddr::from((Ipv6Addr::LOCALHOST, port))];
        self.to_do.push(format!(
            "write the IPv6 address of this host into the listener of port {port}, or \"[::]:{port}\", which takes IPv4 too"
        ));
        for line in section.into_iter().flat_map(Section::everything) {
            if matches!(line.key.as_str(), "listener" | "bind_address" | "socket_domain") {
                line.revoke(
                    "[::] takes IPv4 too, and this listener did not; until its address is written it is this host only",
                );
            }
        }
    }
}

fn any(opening: &ListenerOpening, ip: IpAddr) -> Option<SocketAddr> {
    opening.addresses.iter().find(|address| address.ip() == ip).copied()
}

/// Whether two sections say the same, except for their addresses.
fn is_same(a: Option<&Section>, b: Option<&Section>) -> bool {
    let lines = |section: Option<&Section>| {
        let lines = section.into_iter().flat_map(|section| &section.lines);
        let others = lines.filter(|line| !matches!(line.key.as_str(), "port" | "bind_address" | "socket_domain"));
        let mut lines: Vec<(String, String)> = others.map(|line| (line.key.clone(), line.value.clone())).collect();
        lines.sort();
        lines
    };
    lines(a) == lines(b)
}

/// Sets the fate of the lines of a section that becomes part of another one.
fn merge(section: Option<&Section>, other: Option<&Section>) {
    let other = other.and_then(|other| other.everything().next()).map(|line| line.place().to_string());
    let other = other.unwrap_or_default();
    for line in section.into_iter().flat_map(|section| &section.lines) {
        if line.key == "max_connections" {
            line.differs(format!("the limit of {other} holds for both families together"));
        }
        line.not_needed(format!("the listener of {other} takes both families, and says it too"));
    }
}

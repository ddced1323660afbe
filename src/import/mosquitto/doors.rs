//! The doors that mosquitto does not have: HTTP, with `[broker.anonymous]` and `[[broker.user]]`, which it shares with all
//! listeners that have no settings of their own.
//!
//! HTTP has a port of its own, without TLS, and asks for no certificate of a client. So it lets in only whom a listener lets
//! in that is as open as HTTP itself, and it is reachable from where that listener is. What other listeners allow is written
//! at these listeners.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::access::{self, AccessOptions, ImportedUser};
use super::acl::AclRules;
use super::document::MosquittoDocument;
use super::listeners::tables::Own;
use super::listeners::{ListenerOpening, Listeners};
use crate::access::settings::AnonymousFrom;
use crate::import::text::{TomlText, quoted};

/// The port of the web page.
const HTTP_PORT: u16 = 8080;

#[derive(Debug)]
pub(super) struct Doors {
    http: IpAddr,
    accept: AnonymousFrom,
    /// What clients without a user name may do, if some are let in.
    guests: AclRules,
    /// What to say about `accept`.
    remark: Option<&'static str>,
    /// The users of the whole file.
    pub(crate) users: Vec<ImportedUser>,
    /// The access settings of each listener that differ from those of the whole file.
    pub(crate) own: Vec<Option<Own>>,
}

impl Doors {
    pub(crate) fn of(document: &MosquittoDocument, listeners: &Listeners, securities: &[AccessOptions]) -> Doors {
        let openings = &listeners.openings;
        let is_own = document.per_listener && openings.len() > 1 && securities.len() == openings.len();
        let security = |index: usize| &securities[if is_own { index } else { 0 }];
        let lets_in = |index: &usize| security(*index).allow_anonymous;
        let http = http(openings);
        let like_http: Vec<usize> = (0..openings.len()).filter(|at| is_like_http(&openings[*at], http)).collect();
        let on_this_host = || (0..openings.len()).filter(|at| asks_for_no_more(&openings[*at]));

        let remote_out = (0..openings.len()).any(|at| !openings[at].is_local() && !lets_in(&at));
        let accept = if http.is_unspecified() && like_http.iter().any(lets_in) && !remote_out {
            AnonymousFrom::All
        } else if on_this_host().any(|at| lets_in(&at)) {
            // each listener has its own setting; this one is for everything else
            AnonymousFrom::Loopback
        } else {
            AnonymousFrom::None
        };
        let in_there = like_http.iter().copied().chain(on_this_host()).find(lets_in);
        let guests = in_there.map(|at| security(at).anonymous_rules()).unwrap_or_default();

        let names_certificates = openings.iter().any(ListenerOpening::asks_for_certificates);
        let all = merge(securities.iter().map(|security| security.users(names_certificates)));
        // by HTTP a password is enough, so users who needed a certificate as well are written at their listeners only
        let need_more = like_http.is_empty() && all.iter().any(|user| user.hash.is_some());
        let is_alone = is_own || !openings.is_empty() && need_more;
        let like_http = like_http.iter().map(|at| security(*at).users(names_certificates));
        let users = if is_alone { merge(like_http) } else { all };
        let own = openings.iter().enumerate().map(|(at, opening)| {
            let security = security(at);
            let is_as_usual = match accept {
                AnonymousFrom::All => security.allow_anonymous,
                AnonymousFrom::Loopback => security.allow_anonymous && opening.is_local() && !opening.is_proxied,
                AnonymousFrom::None => !security.allow_anonymous,
            };
            let users = is_alone.then(|| security.users(opening.asks_for_certificates()));
            let own = Own { allow_anonymous: security.allow_anonymous, anonymous: security.anonymous_rules(), users };
            (is_alone || opening.socket.is_some() || !is_as_usual).then_some(own)
        });
        let own: Vec<Option<Own>> = own.collect();
        let is_closed = securities.iter().any(|security| security.is_closed() || security.anonymous_line.is_some());
        let remark = match accept {
            AnonymousFrom::None if own.iter().flatten().any(|own| own.allow_anonymous) => {
                Some("they are let in by the listeners that ask for more than HTTP does")
            }
            AnonymousFrom::None if !is_closed && !document.sources.is_empty() => Some(
                "mosquitto 2 lets nobody in without a user name where a listener is given; 1.6 and older did: then \"all\"",
            ),
            _ => None,
        };
        Doors { http, accept, guests, remark, users, own }
    }

    pub(crate) fn write_anonymous(&self, text: &mut TomlText) {
        text.table("[broker.anonymous]");
        let accept = quoted(match self.accept {
            AnonymousFrom::All => "all",
            AnonymousFrom::Loopback => "loopback",
            AnonymousFrom::None => "none",
        });
        match self.remark {
            Some(remark) => text.key_with("accept", accept, remark),
            None => text.key("accept", accept),
        }
        if self.accept != AnonymousFrom::None {
            access::write_rules(&self.guests, text);
        }
    }

    /// Writes `[http]`, unless it is as usual.
    pub(crate) fn write_http(&self, listeners: &Listeners, text: &mut TomlText) {
        let address = SocketAddr::new(self.http, HTTP_PORT);
        let mut others = listeners.openings.iter().flat_map(|opening| &opening.addresses);
        let (address, why) = if others.any(|other| collide(*other, address)) {
            ("off".to_owned(), "the page would be on port 8080, which a listener has")
        } else if self.http == Ipv4Addr::UNSPECIFIED {
            (address.to_string(), "the listeners take IPv4 only; \"[::]:8080\" takes IPv6 too")
        } else if self.http.is_loopback() {
            let why = "no listener takes the whole network without TLS, so HTTP does not either; \"[::]:8080\" would";
            (address.to_string(), why)
        } else {
            return;
        };
        text.table("[http]");
        text.key_with("address", quoted(&address), why);
    }
}

/// The widest address at which HTTP is no more open than some listener.
fn http(openings: &[ListenerOpening]) -> IpAddr {
    let candidates = [IpAddr::from(Ipv6Addr::UNSPECIFIED), IpAddr::from(Ipv4Addr::UNSPECIFIED)];
    let fits = |ip: &IpAddr| openings.iter().any(|opening| is_like_http(opening, *ip));
    candidates.into_iter().find(fits).unwrap_or(Ipv4Addr::LOCALHOST.into())
}

/// Whether a listener is reachable from wherever HTTP is at this address, and asks for no more than HTTP does.
fn is_like_http(opening: &ListenerOpening, http: IpAddr) -> bool {
    let is_as_wide = || opening.tls.is_none() && opening.addresses.iter().any(|address| address.ip() == http);
    asks_for_no_more(opening) && (http.is_loopback() || is_as_wide())
}

/// Whether a listener asks a client on this host for no more than HTTP does. From there its address is reached, whatever it
/// is, and nobody listens on the way.
fn asks_for_no_more(opening: &ListenerOpening) -> bool {
    opening.socket.is_none() && !opening.is_proxied && !opening.requires_certificates()
}

/// The users of several listeners together. If several have the same name, the first counts; the listeners have their own.
fn merge(all: impl Iterator<Item = Vec<ImportedUser>>) -> Vec<ImportedUser> {
    let mut merged: Vec<ImportedUser> = Vec::new();
    for user in all.flatten() {
        if !merged.iter().any(|other| other.name == user.name) {
            merged.push(user);
        }
    }
    merged
}

/// Whether a listener takes the address of HTTP. `[::]` includes IPv4.
fn collide(a: SocketAddr, b: SocketAddr) -> bool {
    let takes = |a: IpAddr, b: IpAddr| match a {
        IpAddr::V6(all) if all.is_unspecified() => true,
        IpAddr::V4(all) if all.is_unspecified() => b.is_ipv4(),
        _ => a == b,
    };
    a.port() == b.port() && (takes(a.ip(), b.ip()) || takes(b.ip(), a.ip()))
}

//! Compares HTTP with the listeners: it has the same users and guests, but neither their certificates nor their addresses, so
//! it may let in whom every listener keeps out.

use std::net::IpAddr;

use super::document::Table;
use super::settings::Settings;
use crate::access::settings::{AnonymousFrom, Rights};
use crate::broker::settings::ListenerSettings;

/// Warns where HTTP is open from the network to those whom no listener lets in.
pub(super) fn check(root: &Table, settings: &Settings) {
    let Some(at) = settings.http.address.map(|address| address.ip().to_canonical()) else { return };
    if at.is_loopback() {
        return;
    }
    let (access, listeners) = (&settings.broker.access, &settings.broker.listeners);
    let address = |listener: &ListenerSettings| listener.address.tcp().map(|address| address.ip().to_canonical());
    let in_network = || listeners.iter().filter(|listener| address(listener).is_some_and(|ip| !ip.is_loopback()));
    let needs_certificate =
        |listener: &ListenerSettings| listener.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some());
    let warn = |what: &str| root.warning("http.address", what);

    let guests = &access.anonymous;
    let lets_guests_in = |listener: &&ListenerSettings| {
        let own = access.listeners.iter().find(|own| own.listener == listener.name());
        let here = own.map_or(guests, |own| &own.anonymous);
        let is_as_wide = here.rights == guests.rights || here.rights == Rights::default();
        let is_reached = |ip: IpAddr| ip.is_unspecified() || ip == at;
        here.accept == AnonymousFrom::All
            && is_as_wide
            && !needs_certificate(listener)
            && address(listener).is_some_and(is_reached)
    };
    if guests.accept == AnonymousFrom::All && !listeners.iter().any(|listener| lets_guests_in(&listener)) {
        warn(
            "clients without a user name come in by HTTP from where no listener lets them in; to keep them out, set this to \
             \"127.0.0.1:8080\" or \"off\", or broker.anonymous.accept to \"none\" and anonymous = \"all\" at listeners",
        );
    }
    if access.users.iter().all(|user| user.password_hash.is_none()) || in_network().next().is_none() {
        return;
    }
    if in_network().all(|listener| needs_certificate(listener) && !listener.use_identity) {
        warn(
            "by HTTP a password is enough, and every listener asks for a certificate besides; set this to \
             \"127.0.0.1:8080\" or \"off\" if a password must not be enough",
        );
    }
    let has_tls = settings.http.tls.is_some() || !settings.http.trusted_proxies.is_empty();
    if !has_tls && in_network().all(|listener| listener.tls.is_some()) {
        warn(
            "by HTTP passwords cross the network in the clear, and every listener has TLS; set http.tls, or this to \"off\"",
        );
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::{Environment, read};

    #[test]
    fn a_door_that_is_open_where_all_others_are_shut_is_noticed() {
        let hash = crate::access::hash::make("x").unwrap();
        let user = format!("[[broker.user]]\nname = \"a\"\npassword_hash = \"{hash}\"\n");
        let listener = |address: &str, more: &str| format!("[[broker.listener]]\naddress = \"{address}\"\n{more}\n");
        let tls = |more: &str| format!("tls = {{ cert = \"c\", key = \"k\"{more} }}");
        let (asks, both) = (tls(", client_ca = \"a\""), tls(", client_ca = \"a\", use_identity = false"));
        let all = "[broker.anonymous]\naccept = \"all\"\n";
        let http = |address: &str| format!("[http]\naddress = \"{address}\"\n");
        let guests = "clients without a user name";
        for (text, words) in [
            (all.into(), vec![]),
            (listener("[::]:8883", &asks), vec![]),
            (all.to_owned() + &listener("[::]:8883", &asks), vec![guests]),
            (all.to_owned() + &listener("[::]:8883", &asks) + &listener("[::]:1883", ""), vec![]),
            (all.to_owned() + &listener("[::]:8883", &asks) + &listener("127.0.0.1:1883", ""), vec![guests]),
            (all.to_owned() + &listener("[::]:8883", &asks) + &http("127.0.0.1:8080"), vec![]),
            (all.to_owned() + &listener("[::]:8883", &asks) + &http("off"), vec![]),
            (all.to_owned() + &listener("[::]:1883", "anonymous = \"none\""), vec![guests]),
            (all.to_owned() + &listener("[::]:1883", "anonymous = { publish = [] }"), vec![guests]),
            // open in one network only
            (all.to_owned() + &listener("192.0.2.1:1883", ""), vec![guests]),
            (all.to_owned() + &listener("192.0.2.1:1883", "") + &http("192.0.2.1:8080"), vec![]),
            (listener("[::]:1883", "anonymous = \"all\""), vec![]),
            // users
            (user.clone() + &listener("[::]:8883", &both), vec!["a certificate besides", "in the clear"]),
            (user.clone() + &listener("[::]:8883", &asks), vec!["in the clear"]),
            (user.clone() + &listener("[::]:8883", &tls("")) + &listener("127.0.0.1:1883", ""), vec!["in the clear"]),
            (user.clone() + &listener("[::]:8883", &tls("")) + &listener("[::]:1883", ""), vec![]),
            (user.clone() + &listener("127.0.0.1:1883", ""), vec![]),
            (user.clone() + &listener("[::]:8883", &tls("")) + "[http]\ntrusted_proxies = [\"192.0.2.7\"]\n", vec![]),
        ] {
            let loaded = read(&text, Path::new("/f.toml"), &Environment::default()).unwrap();
            let said: Vec<_> = loaded.warnings.iter().filter(|said| said.key == "http.address").collect();
            assert_eq!(said.len(), words.len(), "{text}{said:?}");
            said.iter().zip(words).for_each(|(said, word)| assert!(said.message.contains(word), "{text}{said}"));
        }
    }
}

//! Writes listeners as tables of our configuration.

use super::{Listeners, Tls};
use crate::import::mosquitto::access::{self, ImportedUser};
use crate::import::mosquitto::acl::AclRules;
use crate::import::mosquitto::document::{MosquittoDocument, Section};
use crate::import::text::{TomlText, list, quoted};

/// `tls = { ... }`.
pub(in crate::import::mosquitto) fn tls_table(tls: &Tls) -> String {
    let mut table = format!("{{ cert = {}, key = {}", quoted(&tls.cert), quoted(&tls.key));
    if let Some(ca) = &tls.client_ca {
        table.push_str(&format!(", client_ca = {}", quoted(ca)));
        if let Some(crl) = &tls.crl {
            table.push_str(&format!(", crl = {}", quoted(crl)));
        }
        if !tls.use_identity {
            table.push_str(", use_identity = false");
        }
    }
    table + " }"
}

/// The access settings of one listener that differ from those of the whole file.
#[derive(Clone, Debug)]
pub(in crate::import::mosquitto) struct Own {
    pub(crate) allow_anonymous: bool,
    pub(crate) anonymous: AclRules,
    /// The users that may sign in there; `None` means those of the whole file.
    pub(crate) users: Option<Vec<ImportedUser>>,
}

/// Writes the listeners. `own` has the access settings of each that differs.
pub(in crate::import::mosquitto) fn write(
    listeners: &Listeners,
    document: &MosquittoDocument,
    own: &[Option<Own>],
    text: &mut TomlText,
) {
    for (opening, own) in listeners.openings.iter().zip(own) {
        let section = opening.section.and_then(|index| document.listeners.get(index));
        let addresses = opening.addresses.iter().map(ToString::to_string).chain(opening.socket.clone());
        for (number, address) in addresses.enumerate() {
            text.table("[[broker.listener]]");
            text.key("address", quoted(&address));
            if opening.is_websocket {
                text.key("websocket", true);
            }
            if let Some(tls) = &opening.tls {
                text.key("tls", tls_table(tls));
            }
            if opening.is_proxied {
                text.key("proxy", "[\"127.0.0.1\", \"::1\"]");
            }
            if let Some(most) = section.and_then(max_connections).filter(|_| listeners.openings.len() > 1) {
                text.key("max_connections", most);
            }
            if let Some(own) = own {
                write_own(own, text);
            }
            if let Some(section) = section.filter(|_| number == 0) {
                text.remarks(section.everything());
            }
            if let Some(users) = own.as_ref().and_then(|own| own.users.as_ref()) {
                access::write_users("[[broker.listener.user]]", users, text);
            }
        }
    }
    if listeners.openings.is_empty() {
        text.table("[[broker.listener]]");
        text.key_with(
            "address",
            quoted("127.0.0.1:1883"),
            "none could be taken over; without any there would be one on [::]:1883",
        );
    }
    for (index, section) in document.listeners.iter().enumerate() {
        if !listeners.openings.iter().any(|opening| opening.section == Some(index)) {
            text.remarks(section.everything());
        }
    }
}

fn max_connections(section: &Section) -> Option<i64> {
    let line = section.all("max_connections").last()?;
    line.word().parse().ok().filter(|most| (1..=10_000_000).contains(most))
}

fn write_own(own: &Own, text: &mut TomlText) {
    let accept = if own.allow_anonymous { "all" } else { "none" };
    if own.allow_anonymous {
        let (publish, subscribe) = (list(&own.anonymous.publish), list(&own.anonymous.subscribe));
        let accept = quoted(accept);
        text.key("anonymous", format!("{{ accept = {accept}, publish = {publish}, subscribe = {subscribe} }}"));
    } else {
        text.key("anonymous", quoted(accept));
    }
    if own.users.as_ref().is_some_and(Vec::is_empty) {
        text.key("user", "[]");
    }
}

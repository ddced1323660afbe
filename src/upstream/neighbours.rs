//! Keeps upstreams that turn out to be one broker, or the gateway itself, from sending messages round for ever.
//!
//! The configuration refuses rules that would loop on MQTT 3.1.1 as far as addresses tell. That two names lead to one broker
//! may be known only once there is a connection. So each connection enters its peer here before CONNECT leaves, and is not
//! made if messages would loop between it and the gateway, or between it and another connection.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use parking_lot::Mutex;

use super::place::{OwnDoors, UpstreamPlace};
use super::settings::overlap::{looping, looping_here};
use super::settings::{SecretPlace, UpstreamAddress, UpstreamSettings, loops, loops_with_itself};
use super::wire::Version;

/// A connection of an upstream.
#[derive(Debug)]
struct Neighbour {
    place: UpstreamPlace,
    /// Only this version tells the gateway which messages are its own.
    is_v5: bool,
    /// Whether the peer is the gateway itself.
    is_own: bool,
    /// With the rules in force.
    settings: UpstreamSettings,
}

/// All connections of the upstreams of a gateway.
#[derive(Clone, Debug, Default)]
pub(crate) struct Neighbours {
    doors: Arc<OwnDoors>,
    present: Arc<Mutex<Vec<Neighbour>>>,
}

/// The entry of a connection, until this is dropped.
#[derive(Debug)]
pub(super) struct Presence {
    neighbours: Neighbours,
    name: String,
}

impl Neighbours {
    /// Nobody is connected yet. The gateway itself is at these doors.
    pub(crate) fn new(doors: OwnDoors) -> Neighbours {
        Neighbours { doors: Arc::new(doors), present: Arc::default() }
    }

    /// Enters a connection to a peer from a local address. The error tells which rules would loop.
    pub(super) fn enter(
        &self,
        settings: &UpstreamSettings,
        address: &UpstreamAddress,
        version: Version,
        (peer, local): (SocketAddr, IpAddr),
    ) -> Result<Presence, String> {
        let entering = Neighbour {
            place: UpstreamPlace::of_peer(peer, local),
            is_v5: version == Version::V5,
            is_own: self.doors.have(address, peer, local),
            settings: settings.clone(),
        };
        let mut present = self.present.lock();
        present.retain(|other| other.settings.name != settings.name);
        if let Some(why) = loop_of(&entering, settings, &present) {
            return Err(why);
        }
        present.push(entering);
        Ok(Presence { neighbours: self.clone(), name: settings.name.clone() })
    }
}

impl Presence {
    /// Takes new rules, and returns whether messages would loop by them.
    pub(super) fn would_loop(&self, settings: &UpstreamSettings) -> bool {
        let mut present = self.neighbours.present.lock();
        let Some(at) = present.iter().position(|other| other.settings.name == self.name) else { return false };
        let would_loop = loop_of(&present[at], settings, &present).is_some();
        present[at].settings = settings.clone();
        would_loop
    }
}

impl Drop for Presence {
    fn drop(&mut self) {
        self.neighbours.present.lock().retain(|other| other.settings.name != self.name);
    }
}

/// Why messages would loop by these rules on a connection, beside the others.
fn loop_of(entering: &Neighbour, settings: &UpstreamSettings, present: &[Neighbour]) -> Option<String> {
    let why = |(out, inbound): (&SecretPlace, &SecretPlace)| looping(out, inbound);
    if entering.is_own && !entering.is_v5 {
        let pairs = loops_with_itself(settings);
        if let Some((first, second)) = pairs.first() {
            return Some(format!("it is this gateway, and {}", looping_here(first, second)));
        }
    }
    let is_there = |other: &&Neighbour| {
        other.settings.name != settings.name && other.place == entering.place && !(other.is_v5 && entering.is_v5)
    };
    present.iter().filter(is_there).find_map(|other| {
        let pair = loops(settings, &other.settings).first().copied().map(why);
        let pair = pair.or_else(|| loops(&other.settings, settings).first().copied().map(why));
        pair.map(|rules| format!("it is the same broker as upstream {}, and {rules}", other.settings.name))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::Qos;
    use crate::upstream::settings::{OutQos, Rule};

    fn rule<Q>(filter: &str, qos: Q) -> Rule<Q> {
        Rule {
            topic_filter: filter.into(),
            local_prefix: String::new(),
            remote_prefix: String::new(),
            qos,
            retain: true,
            max_age: None,
            place: SecretPlace::new("f", 1),
        }
    }

    fn upstream(name: &str, out: &[&str], inbound: &[&str]) -> UpstreamSettings {
        let mut settings = UpstreamSettings::new(name, Vec::new(), "c");
        settings.out = out.iter().map(|filter| rule(filter, OutQos::Keep)).collect();
        settings.inbound = inbound.iter().map(|filter| rule(filter, Qos::AtLeastOnce)).collect();
        settings
    }

    /// Enters a connection to this peer, from an address of another host if the peer is one.
    fn enter(
        neighbours: &Neighbours,
        settings: &UpstreamSettings,
        peer: &str,
        version: Version,
    ) -> Result<Presence, String> {
        let peer: SocketAddr = peer.parse().unwrap();
        let local = if peer.ip().is_loopback() { peer.ip() } else { "192.0.2.9".parse().unwrap() };
        neighbours.enter(settings, &UpstreamAddress::parse("mqtt://broker").unwrap(), version, (peer, local))
    }

    #[test]
    fn rules_that_would_loop_at_one_broker_are_not_in_force_together_on_3_1_1() {
        use Version::{V5, V311};
        let (up, down, other) =
            (upstream("a", &["o/#"], &[]), upstream("b", &[], &["o/#"]), upstream("b", &[], &["p"]));
        let there = "192.0.2.1:1883";
        for (first, second, peer, versions, is_refused) in [
            (&up, &down, there, (V311, V311), true),
            (&down, &up, there, (V311, V311), true),
            (&up, &down, there, (V311, V5), true),
            (&up, &down, there, (V5, V311), true),
            (&up, &down, there, (V5, V5), false),
            (&up, &other, there, (V311, V311), false),
            (&up, &down, "192.0.2.1:1884", (V311, V311), false),
            (&up, &down, "192.0.2.2:1883", (V311, V311), false),
            (&up, &down, "[::ffff:192.0.2.1]:1883", (V311, V311), true),
        ] {
            let neighbours = Neighbours::default();
            let present = enter(&neighbours, first, there, versions.0).unwrap();
            let entered = enter(&neighbours, second, peer, versions.1);
            assert_eq!(entered.is_err(), is_refused, "{entered:?} {peer} {versions:?}");
            if let Err(why) = entered {
                let expected = format!("the same broker as upstream {}, and the rule at", first.name);
                assert!(why.contains(&expected), "{why}");
            }
            drop(present);
            enter(&neighbours, second, peer, versions.1).expect("the other has gone");
        }
    }

    #[test]
    fn new_rules_may_not_loop_either() {
        let neighbours = Neighbours::default();
        let there = "127.0.0.1:1883";
        let _up = enter(&neighbours, &upstream("a", &["o/#"], &[]), there, Version::V311).unwrap();
        let down = enter(&neighbours, &upstream("b", &[], &["p"]), "127.0.0.2:1883", Version::V311).unwrap();
        assert!(!down.would_loop(&upstream("b", &[], &["q"])));
        assert!(down.would_loop(&upstream("b", &[], &["o/1"])));
        // the same upstream on a new connection
        assert!(enter(&neighbours, &upstream("a", &["p"], &[]), there, Version::V311).is_ok());
    }

    #[test]
    fn the_gateway_itself_is_known_by_its_doors() {
        let doors = OwnDoors { plain: vec!["[::]:1883".parse().unwrap()], web_socket: Vec::new() };
        let neighbours = Neighbours::new(doors);
        let up = upstream("a", &["o/#"], &[]);
        let why = enter(&neighbours, &up, "127.0.1.1:1883", Version::V311).unwrap_err();
        assert!(why.contains("it is this gateway, and the rule at f:1 would loop"), "{why}");
        for (peer, version) in
            [("127.0.1.1:1883", Version::V5), ("127.0.1.1:1884", Version::V311), ("192.0.2.1:1883", Version::V311)]
        {
            assert!(enter(&neighbours, &up, peer, version).is_ok(), "{peer}");
        }
    }
}

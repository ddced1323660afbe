//! The addresses of a name that lead nowhere or to an upstream that does not work, such as a node of a cluster that is drained.

use std::collections::VecDeque;
use std::net::IpAddr;

use super::dial;
use crate::upstream::settings::UpstreamAddress;
use crate::upstream::wire::Broken;

/// The number of addresses of one name that may fail in one attempt, besides the last one.
const MOST_BROKEN: usize = 3;
/// The number of addresses that are remembered as failed.
const MOST_FAILED: usize = 64;

/// The addresses that have failed, also after they had accepted a connection. They are tried last, so that none is excluded for
/// ever, until a connection by the same name was good.
#[derive(Debug, Default)]
pub(super) struct FailedPeers(VecDeque<(String, IpAddr)>);

impl FailedPeers {
    /// Records that an address of this name has failed.
    pub(super) fn add(&mut self, name: &str, peer: IpAddr) {
        self.0.retain(|(known, failed)| known != name || *failed != peer);
        if self.0.len() >= MOST_FAILED {
            self.0.pop_front();
        }
        self.0.push_back((name.into(), peer));
    }

    /// The addresses of this name that have failed, beginning with the one that has not failed for the longest time.
    pub(super) fn of(&self, name: &str) -> Vec<IpAddr> {
        self.0.iter().filter(|(known, _)| known == name).map(|(_, peer)| *peer).collect()
    }

    pub(super) fn forget(&mut self, name: &str) {
        self.0.retain(|(known, _)| known != name);
    }
}

/// Whether another address of the same name may work although this one does not.
fn is_of_peer(broken: &Broken) -> bool {
    use Broken::{Closed, Failed, Garbled, Lasting, NotBegun, NotYetValid, OtherThan, Silent};
    let has_no_way = matches!(broken, NotBegun(..) | OtherThan(..));
    has_no_way || matches!(broken, Silent | Closed | Failed(_) | Lasting(_) | NotYetValid(_) | Garbled)
}

/// The addresses of a name that have failed in one attempt. The others are tried.
#[derive(Default)]
pub(super) struct BrokenPeers {
    pub(super) known: Vec<IpAddr>,
    /// What was wrong with the last one.
    last: Option<Broken>,
}

impl BrokenPeers {
    /// Records a failed attempt at an address, if one was reached. Returns the error to report if no other is to be tried.
    pub(super) async fn add(
        &mut self,
        address: &UpstreamAddress,
        broken: Broken,
        peer: Option<IpAddr>,
    ) -> Result<(), Broken> {
        // what was wrong with one that answered tells more than that the others cannot be reached
        let Some(peer) = peer else { return Err(self.last.take().unwrap_or(broken)) };
        if !is_of_peer(&broken) || self.known.contains(&peer) || self.known.len() >= MOST_BROKEN {
            return Err(broken);
        }
        self.known.push(peer);
        if !dial::has_others(&address.host, address.port, &self.known).await {
            return Err(broken);
        }
        self.last = Some(broken);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::dial::PeerOrder;
    use super::*;

    #[test]
    fn no_number_of_broken_addresses_keeps_a_name_from_a_good_one() {
        let all: Vec<SocketAddr> = (1..=5).map(|last| SocketAddr::from(([192, 0, 2, last], 1883))).collect();
        let (mut failed, mut tried) = (FailedPeers::default(), Vec::new());
        failed.add("another", all[4].ip());
        for _ in 0..2 {
            let mut broken = Vec::new();
            for _ in 0..=MOST_BROKEN {
                let last = failed.of("name");
                let next = dial::ordered(all.iter().copied(), PeerOrder { except: &broken, last: &last })[0].ip();
                tried.push(next.to_string());
                failed.add("name", next);
                broken.push(next);
            }
        }
        let expected = [1, 2, 3, 4, 5, 1, 2, 3].map(|last| format!("192.0.2.{last}"));
        assert_eq!(tried, expected, "those that have failed come last");
        failed.forget("name");
        assert_eq!((failed.of("name").len(), failed.of("another").len()), (0, 1));
    }
}

//! One broker that serves all inputs of a target, like a real one that serves many clients.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, OnceLock};

use pigateway::broker::Broker;
use pigateway::broker::connection::Peer;
use pigateway::broker::core::Core;
use pigateway::broker::settings::BrokerSettings;
use pigateway::health::PulseTaker;
use pigateway::journal::Journal;
use pigateway::time::SystemClock;
use tokio::runtime::{Builder, Runtime};
use tokio_util::sync::CancellationToken;

pub(super) struct House {
    pub runtime: Runtime,
    pub core: Arc<Core>,
}

pub(super) const LARGEST: usize = 256 * 1024;

pub(super) fn house() -> &'static House {
    static HOUSE: OnceLock<House> = OnceLock::new();
    HOUSE.get_or_init(|| {
        // one thread does not wait for another, which is several times as fast, and the same input takes the same way again
        let runtime = match Builder::new_current_thread().enable_all().build() {
            Ok(runtime) => runtime,
            Err(error) => panic!("{error}"),
        };
        let settings = BrokerSettings { listeners: Vec::new(), max_sessions: 16, ..BrokerSettings::default() };
        let cancel = CancellationToken::new();
        let opened = Broker::open(settings, Journal::default(), Arc::new(SystemClock), cancel.clone());
        let Broker { core, dispatcher, .. } = match opened {
            Ok(broker) => broker,
            Err(error) => panic!("{error}"),
        };
        let (_, pulse) = PulseTaker::new();
        runtime.spawn(dispatcher.run(cancel, || Ok(()), pulse));
        runtime.spawn(core.clone().sweep());
        House { runtime, core }
    })
}

pub(super) fn peer() -> Peer {
    Peer::at(IpAddr::V4(Ipv4Addr::LOCALHOST))
}

//! One broker that serves all inputs of a target, like a real one that serves many clients.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use pigateway::broker::Broker;
use pigateway::broker::connection::Peer;
use pigateway::broker::core::Core;
use pigateway::broker::settings::BrokerSettings;
use pigateway::health::PulseTaker;
use pigateway::journal::Journal;
use pigateway::time::SystemClock;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub(super) struct House {
    pub runtime: Runtime,
    pub core: Arc<Core>,
    /// Delivers messages.
    dispatching: JoinHandle<()>,
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
        let dispatching = dispatcher.run(cancel, || Ok(()), pulse);
        let dispatching = runtime.spawn(async move { _ = dispatching.await });
        runtime.spawn(core.clone().sweep());
        House { runtime, core, dispatching }
    })
}

impl House {
    /// To be called after each input. Clients wait for the allowance of writes that all guests share, so without this a
    /// target would soon do nothing else. The clock goes on as far as it takes to get all of it back.
    pub(super) async fn has_served(&self) {
        static SERVED: AtomicUsize = AtomicUsize::new(0);
        assert!(!self.dispatching.is_finished(), "nobody delivers any more");
        if SERVED.fetch_add(1, Ordering::Relaxed).is_multiple_of(16) {
            tokio::time::pause();
            tokio::time::advance(Duration::from_secs(600)).await;
            tokio::time::resume();
        }
    }
}

pub(super) fn peer() -> Peer {
    Peer::at(IpAddr::V4(Ipv4Addr::LOCALHOST))
}

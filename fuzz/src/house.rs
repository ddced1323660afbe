//! One broker that serves all inputs of a target, like a real one that serves many clients.

use std::net::{IpAddr, Ipv4Addr};
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use pigateway::broker::Broker;
use pigateway::broker::connection::Peer;
use pigateway::broker::core::Core;
use pigateway::broker::settings::BrokerSettings;
use pigateway::health::PulseTaker;
use pigateway::journal::Journal;
use pigateway::journal::settings::JournalSettings;
use pigateway::time::SystemClock;
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::disk::Disk;

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
        // a storage that copies a whole segment with each sync would take a large part of the time
        let kept = JournalSettings { max_size: 8 << 20, ..JournalSettings::default() };
        let Ok(journal) = Journal::open(Arc::new(Disk::default()), kept, Arc::new(SystemClock)) else {
            panic!("an empty journal opens")
        };
        let opened = Broker::open(settings, journal, Arc::new(SystemClock), cancel.clone());
        let Broker { core, dispatcher, .. } = match opened {
            Ok(broker) => broker,
            Err(error) => panic!("{error}"),
        };
        let (_, pulse) = PulseTaker::new();
        let probe = core.ingress.clone();
        let dispatching = dispatcher.run(cancel, move || probe.probe(), pulse);
        let dispatching = runtime.spawn(async move { _ = dispatching.await });
        runtime.spawn(core.clone().sweep());
        House { runtime, core, dispatching }
    })
}

impl House {
    /// Serves an input. Whatever it waits for longer than the threads of the house need is over at once, because the clock
    /// then goes on: a client whose connection has ended is noticed by some tasks only when they have something to send.
    pub(super) async fn serves<T>(&self, input: impl Future<Output = T>) -> T {
        static SERVED: AtomicUsize = AtomicUsize::new(0);
        let mut input = pin!(input);
        let served = loop {
            match timeout(Duration::from_millis(2), &mut input).await {
                Ok(served) => break served,
                Err(_) => skip().await,
            }
        };
        assert!(!self.dispatching.is_finished(), "nobody delivers any more");
        // clients wait for the allowance of writes that all guests share, and this gives all of it back
        if SERVED.fetch_add(1, Ordering::Relaxed).is_multiple_of(16) {
            skip().await;
        }
        served
    }
}

/// Lets the clock go on as far as the longest wait takes, in one step: nothing counts as hanging meanwhile.
async fn skip() {
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(600)).await;
    tokio::time::resume();
}

pub(super) fn peer() -> Peer {
    Peer::at(IpAddr::V4(Ipv4Addr::LOCALHOST))
}

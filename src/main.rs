//! temp
use std::sync::Arc;
use pigateway::{broker::{Broker, sys, settings::*}, journal::Journal, time::SystemClock};
use tokio_util::sync::CancellationToken;
fn main() {
    let workers = std::env::var("W").ok().and_then(|w| w.parse().ok()).unwrap_or(2);
    let rt = if workers == 0 { tokio::runtime::Builder::new_current_thread().enable_all().build() } else { tokio::runtime::Builder::new_multi_thread().worker_threads(workers).enable_all().build() }.unwrap();
    rt.block_on(async move {
        let port: u16 = std::env::args().nth(1).unwrap().parse().unwrap();
        let mut s = BrokerSettings::default();
        s.max_connections = 5000;
        s.listeners = vec![ListenerSettings { address: format!("[::]:{port}").parse().unwrap(), tls: None }];
        let cancel = CancellationToken::new();
        let b = Broker::open(s, Journal::default(), Arc::new(SystemClock), cancel.clone()).unwrap();
        let core = b.core.clone();
        let probe = core.ingress.clone();
        let d = tokio::spawn(b.dispatcher.run(cancel.clone(), move || probe.probe(), || ()));
        for l in b.listeners { tokio::spawn(l.run(core.clone(), b.connections.clone())); }
        tokio::spawn(core.clone().sweep());
        tokio::spawn(sys::run(core.clone()));
        eprintln!("{:?}", d.await);
    });
}

//! Creates the upstreams with their journal consumers.

use std::sync::Arc;

use tokio::sync::watch;

use super::orphans;
use super::pulse::Rooms;
use crate::broker::core::Core;
use crate::config::Settings;
use crate::health::{Health, Pulse};
use crate::journal::Limits;
use crate::status::UpstreamShown;
use crate::supervise::Supervisor;
use crate::time::SharedClock;
use crate::upstream::Upstream;
use crate::upstream::announce::announce;
use crate::upstream::client::RemoteClient;
use crate::upstream::neighbours::Neighbours;
use crate::upstream::settings::UpstreamSettings;

/// Upstreams that do not connect yet. The journal keeps messages for them from now on.
pub(super) struct WaitingUpstreams(Vec<(Upstream<RemoteClient>, Pulse)>);

/// Creates the upstreams. Returns the senders of their rules, their states, and the upstreams to start.
pub(super) fn open(
    settings: &Settings,
    core: &Arc<Core>,
    clock: &SharedClock,
    health: &Health,
    rooms: &mut Rooms,
) -> (Vec<watch::Sender<Arc<UpstreamSettings>>>, Vec<UpstreamShown>, WaitingUpstreams) {
    let journal = core.ingress.journal();
    let removed = orphans::keep(settings, journal);
    let limits = Limits {
        messages: usize::MAX,
        // the journal limits all of them together
        bytes: usize::MAX,
        when_full: settings.journal.when_full,
    };
    let kept = (limits, settings.order);
    let max_packet = settings.broker.max_packet_size;
    let (mut all_rules, mut shown, mut waiting) = (Vec::new(), Vec::new(), Vec::new());
    let neighbours = Neighbours::new(settings.own_doors());
    for upstream in &settings.upstreams {
        let (rules, changes) = watch::channel(Arc::new(upstream.clone()));
        let opened = Upstream::new(changes, journal, kept, core.ingress.clone(), max_packet, clock.clone());
        let opened = opened.report_to(health.clone()).beside(neighbours.clone());
        shown.push(opened.shown());
        waiting.push((opened, rooms.watch(format!("upstream {}", upstream.name))));
        all_rules.push(rules);
    }
    shown.extend(removed);
    (all_rules, shown, WaitingUpstreams(waiting))
}

impl WaitingUpstreams {
    /// Starts a task for each upstream, which connects and forwards.
    pub(super) fn start(self, core: &Arc<Core>, clock: &SharedClock, supervisor: &Supervisor) {
        for (upstream, pulse) in self.0 {
            let shown = upstream.shown();
            let name = shown.now().name;
            let announced = announce(shown, core.ingress.clone(), clock.clone(), supervisor.token());
            supervisor.spawn_endless(format!("state of upstream {name}"), announced);
            supervisor.spawn(format!("upstream {name}"), upstream.run(pulse, supervisor.token()));
        }
    }
}

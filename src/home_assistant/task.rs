//! The task that runs the announcer: receives Home Assistant's messages and publishes.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::select_all;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use super::announcer::{Announcer, AnnouncerAction};
use super::device::{self, AnnouncedGateway, Device};
use super::settings::{HomeAssistantSettings, PREFIX, state_topic, status_topic};
use super::state::{GatewayState, StateNews};
use super::store::Store;
use crate::exchange::delivery::Queued;
use crate::exchange::inbox::{Inbox, InboxLimits};
use crate::exchange::ingress::{Ingress, IngressError};
use crate::exchange::subscribers::{Subscriber, SubscriptionOptions};
use crate::message::{Draft, Origin, Qos};
use crate::sensors::payload::wall_time;
use crate::sensors::settings::SensorSettings;
use crate::status::{GatewayStatus, UpstreamShown};
use crate::time::beat;

/// The least time between two updates of counters.
const EVERY: Duration = Duration::from_secs(60);
/// The limits of messages that wait while the task is busy. Births and deletions are rare.
const INBOX: InboxLimits = InboxLimits { messages: 4096, bytes: 4 << 20 };
const AT_ONCE: usize = 256;
const OPTIONS: SubscriptionOptions =
    SubscriptionOptions { qos: Qos::AtMostOnce, no_local: true, retain_as_published: true, id: None };

/// Announces the gateway and its sensors, or removes what an earlier run has announced.
pub(crate) struct HomeAssistant {
    settings: HomeAssistantSettings,
    gateway: AnnouncedGateway,
    sensors: watch::Receiver<Arc<[SensorSettings]>>,
    status: GatewayStatus,
    ingress: Ingress,
    announcer: Announcer,
    store: Store,
    subscriber: Arc<Subscriber>,
    started_boot_ms: u64,
    /// The last published state: the part that is published at once, the whole text, and the time.
    said: Option<(StateNews, String, Instant)>,
}

impl HomeAssistant {
    /// Publishes what must be retained before any client connects. Returns `None` if there is nothing to announce and
    /// nothing to remove.
    pub(crate) async fn start(
        settings: &HomeAssistantSettings,
        gateway: AnnouncedGateway,
        sensors: watch::Receiver<Arc<[SensorSettings]>>,
        status: GatewayStatus,
        ingress: Ingress,
        data_dir: &Path,
    ) -> Option<HomeAssistant> {
        let mut store = Store::new(data_dir);
        let memory = store.read().await;
        if !settings.enabled && memory.has_none_known() {
            return None;
        }
        let inbox = Inbox::new("Home Assistant", INBOX);
        let subscriber = Arc::new(Subscriber { inbox, origin: Origin::announcer(), is_durable: false });
        let started_boot_ms = ingress.clock().boot_ms();
        let mut this = HomeAssistant {
            settings: settings.clone(),
            gateway,
            sensors,
            status,
            ingress,
            announcer: Announcer::new(memory),
            store,
            subscriber,
            started_boot_ms,
            said: None,
        };
        for filter in this.filters() {
            this.ingress.subscribe(&filter, &this.subscriber, OPTIONS, |_| None);
        }
        // the router reports its own failure
        let _ = this.first_words().await;
        Some(this)
    }

    async fn first_words(&mut self) -> Result<(), IngressError> {
        if self.settings.enabled {
            // after a crash the retained message still says "online"
            self.say_status("offline").await?;
            self.say_state(true).await?;
        }
        self.announce().await
    }

    /// Runs until `cancel`, and then publishes that the gateway is offline.
    pub(crate) async fn run(mut self, cancel: CancellationToken) {
        if self.settings.enabled {
            info!("announced to Home Assistant below {}/device", self.settings.prefix());
            if self.say_status("online").await.is_err() {
                return cancel.cancelled().await;
            }
        }
        // the dispatcher reports the reason
        let _ = self.listen(&cancel).await;
        cancel.cancelled().await;
        if self.store.again().is_some() {
            self.store.write(self.announcer.memory()).await;
        }
        if self.settings.enabled {
            let _ = self.say_status("offline").await;
        }
        for filter in self.filters() {
            self.ingress.unsubscribe(&filter, &self.subscriber);
        }
        self.subscriber.inbox.close();
    }

    async fn listen(&mut self, cancel: &CancellationToken) -> Result<(), IngressError> {
        let mut health = self.status.health.changes();
        let mut upstreams = self.status.upstreams.clone();
        let subscriber = self.subscriber.clone();
        let mut batch = VecDeque::new();
        while self.settings.enabled || !self.announcer.is_done() {
            let told = self.said.as_ref().map_or_else(Instant::now, |(_, _, at)| *at);
            let deadline = self.deadline();
            let again = self.store.again();
            tokio::select! {
                () = cancel.cancelled() => return Ok(()),
                () = subscriber.inbox.filled() => {
                    while subscriber.inbox.take(AT_ONCE, &mut batch) > 0 || !batch.is_empty() {
                        self.hear(&mut batch).await?;
                    }
                }
                changed = self.sensors.changed(), if self.settings.enabled => match changed {
                    Ok(()) => self.announce().await?,
                    Err(_) => return Ok(()), // the gateway shuts down
                },
                _ = health.changed(), if self.settings.enabled => self.say_state(false).await?,
                () = any_changed(&mut upstreams), if self.settings.enabled => self.say_state(false).await?,
                () = sleep_until(beat::at_or_after(told + EVERY)), if self.settings.enabled => self.say_state(true).await?,
                () = sleep_until(again.unwrap_or(told)), if again.is_some() => self.store.write(self.announcer.memory()).await,
                () = sleep_until(deadline.unwrap_or(told)), if deadline.is_some() => {
                    let actions = self.announcer.time(self.now());
                    self.perform(actions).await?;
                }
            }
        }
        info!("what was announced to Home Assistant is removed");
        Ok(())
    }

    fn now(&self) -> u64 {
        self.ingress.clock().boot_ms()
    }

    fn deadline(&self) -> Option<Instant> {
        let due = self.announcer.deadline_ms()?;
        Some(Instant::now() + Duration::from_millis(due.saturating_sub(self.now())))
    }

    /// The topic filters of births and of deletions.
    fn filters(&self) -> Vec<String> {
        let prefix = self.settings.prefix();
        let mut filters = vec![format!("{PREFIX}/status"), format!("{prefix}/device/+/config")];
        if prefix != PREFIX {
            filters.push(format!("{prefix}/status"));
        }
        filters
    }

    fn devices(&mut self) -> Vec<Device> {
        let sensors = self.sensors.borrow_and_update().clone();
        if !self.settings.enabled {
            return Vec::new();
        }
        let prefix = self.settings.prefix();
        let sensors = sensors.iter().filter_map(|sensor| device::sensor(prefix, &self.gateway.id, sensor));
        std::iter::once(device::gateway(prefix, &self.gateway)).chain(sensors).collect()
    }

    async fn announce(&mut self) -> Result<(), IngressError> {
        let devices = self.devices();
        let actions = self.announcer.announce(devices, self.now());
        self.perform(actions).await
    }

    async fn hear(&mut self, batch: &mut VecDeque<Queued>) -> Result<(), IngressError> {
        for queued in batch.drain(..) {
            let message = queued.message.view();
            let (topic, payload) = (message.topic(), message.payload());
            let actions = if !topic.ends_with("/status") {
                if !payload.is_empty() {
                    continue;
                }
                let actions = self.announcer.cleared(topic);
                if !actions.is_empty() {
                    info!(topic, "deleted in Home Assistant: not announced until its configuration changes");
                }
                actions
            } else if payload == b"online" {
                debug!("Home Assistant is there");
                self.announcer.birth(self.now())
            } else {
                if payload == b"offline" {
                    self.announcer.offline();
                }
                continue;
            };
            self.perform(actions).await?;
        }
        Ok(())
    }

    async fn perform(&mut self, actions: Vec<AnnouncerAction>) -> Result<(), IngressError> {
        for action in actions {
            match action {
                AnnouncerAction::Save => self.store.write(self.announcer.memory()).await,
                AnnouncerAction::Publish { topic, payload } => {
                    self.publish(&topic, &payload, Qos::AtLeastOnce).await?;
                }
            }
        }
        Ok(())
    }

    async fn say_status(&self, status: &str) -> Result<(), IngressError> {
        self.publish(&status_topic(&self.gateway.id), status.as_bytes(), Qos::AtLeastOnce).await
    }

    /// Publishes the state if it has changed. With `all`, changed counters count too.
    async fn say_state(&mut self, all: bool) -> Result<(), IngressError> {
        let clock = self.ingress.clock().clone();
        let oldest = |upstream: &UpstreamShown| {
            let snapshot = upstream.now();
            let oldest = snapshot.oldest_boot_ms.and_then(|oldest| wall_time(clock.as_ref(), oldest));
            (snapshot, oldest)
        };
        let upstreams: Vec<_> = self.status.upstreams.iter().map(oldest).collect();
        let faulty = self.status.health.faulty();
        let state = GatewayState {
            faulty: &faulty,
            started: wall_time(clock.as_ref(), self.started_boot_ms),
            clients: self.status.clients.counts().connected,
            journal_used_bytes: self.ingress.journal().status().used_bytes,
            upstreams: &upstreams,
        };
        let (news, text) = (state.news(), state.to_json().to_string());
        let is_news = |(known, said, _): &(_, String, _)| *known != news || (all && *said != text);
        if self.said.as_ref().is_none_or(is_news) {
            self.publish(&state_topic(&self.gateway.id), text.as_bytes(), Qos::AtMostOnce).await?;
        } else if !all {
            return Ok(());
        }
        self.said = Some((news, text, Instant::now()));
        Ok(())
    }

    async fn publish(&self, topic: &str, payload: &[u8], qos: Qos) -> Result<(), IngressError> {
        let mut draft =
            Draft { qos, retain: true, boot_ms: self.now(), origin: Origin::announcer(), ..Draft::new(topic, payload) };
        match self.ingress.publish(&draft).await {
            // a full session or a full journal of one upstream must not keep the message from the others
            Err(IngressError::Full(_) | IngressError::TooLarge) => {
                draft.qos = Qos::AtMostOnce;
                self.ingress.publish(&draft).await.map(drop)
            }
            other => other.map(drop),
        }
    }
}

/// Waits until one of the upstreams changes; for ever if there are none.
async fn any_changed(upstreams: &mut [UpstreamShown]) {
    if upstreams.is_empty() {
        return std::future::pending().await;
    }
    select_all(upstreams.iter_mut().map(|upstream| Box::pin(upstream.changed()))).await;
}

//! The task that runs the announcer: watches the ports and talks to Avahi.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use super::announcer::{AnnouncerEvent, MdnsAction, MdnsAnnouncer};
use super::avahi::{Avahi, AvahiError, AvahiEvent, Told};
use super::service::{Candidate, Service, name_of, services};
use super::settings::MdnsSettings;
use crate::health::Health;
use crate::status::{Announced, AnnouncedService};
use crate::time::beat;

/// The first and the longest pause before the system bus is tried again. A bus without Avahi reports when Avahi starts.
const PAUSE: [Duration; 2] = [Duration::from_secs(5), Duration::from_secs(300)];

/// Avahi is not looked for before this time after the start: when a Pi boots all others need its processor, and nobody
/// misses an announcement for so short a time.
const FIRST: Duration = Duration::from_secs(2);

/// Why nothing is announced until then.
const TOO_EARLY: &str = "Avahi is looked for two seconds after the start";

/// Why nothing is announced for the moment that Avahi takes to ask the network whether names are free.
const TOLD: &str = "Avahi has been told, and asks the network";

/// Announces the open ports.
pub(crate) struct Mdns {
    id: String,
    settings: watch::Receiver<MdnsSettings>,
    candidates: Arc<[Candidate]>,
    /// The ports that were open at the last look, and their services.
    known: Option<(Vec<bool>, Vec<Service>)>,
    health: Health,
    changes: watch::Receiver<u64>,
    announcer: MdnsAnnouncer,
    /// Avahi is not looked for before.
    begin: Instant,
    shown: watch::Sender<Announced>,
    /// The text that was last logged.
    said: String,
    is_renaming_said: bool,
}

/// Why the connection to the bus has ended.
enum Ended {
    Cancelled,
    NothingToSay,
    Failed(AvahiError),
}

impl Mdns {
    /// Announces those of these ports that are open; a closed port is listed in `health`. The receiver shows what is
    /// announced.
    pub(crate) fn new(
        gateway_id: &str,
        settings: watch::Receiver<MdnsSettings>,
        candidates: Vec<Candidate>,
        health: Health,
    ) -> (Mdns, watch::Receiver<Announced>) {
        let (shown, receiver) = watch::channel(Announced::default());
        let (changes, announcer) = (health.changes(), MdnsAnnouncer::new(name_of(gateway_id)));
        (
            Mdns {
                id: gateway_id.into(),
                settings,
                candidates: candidates.into(),
                known: None,
                health,
                changes,
                announcer,
                begin: Instant::now() + FIRST,
                shown,
                said: String::new(),
                is_renaming_said: false,
            },
            receiver,
        )
    }

    /// Runs until `cancel`, and then withdraws all announcements.
    pub(crate) async fn run(mut self, cancel: CancellationToken) {
        let mut pause = PAUSE[0];
        if self.settings.borrow().enabled && Instant::now() < self.begin {
            self.show(TOO_EARLY);
            tokio::select! {
                () = cancel.cancelled() => return self.show("the gateway stops"),
                () = sleep_until(self.begin) => {}
            }
        }
        loop {
            let wanted = self.wanted().await;
            // without a service to announce there is no connection to the bus
            let ended = if wanted.is_empty() { Ended::NothingToSay } else { self.talk(&cancel, &mut pause).await };
            match ended {
                Ended::Cancelled => return self.show("the gateway stops"),
                Ended::NothingToSay => {
                    let is_enabled = self.settings.borrow().enabled;
                    self.show(if is_enabled { "no open port that others could use" } else { "[mdns] enabled = false" });
                    tokio::select! {
                        () = cancel.cancelled() => return,
                        () = self.wants_other_than(&[]) => {}
                    }
                }
                Ended::Failed(error) => {
                    debug!(%error, "mDNS: tried again in {pause:?}");
                    self.show(&error.to_string());
                    let failed_with = self.wanted().await;
                    tokio::select! {
                        () = cancel.cancelled() => return,
                        () = self.wants_other_than(&failed_with) => {}
                        () = beat::sleep_at_least(pause) => {}
                    }
                    pause = (pause * 2).min(PAUSE[1]);
                }
            }
        }
    }

    /// The services to announce at present. The system is asked for interfaces only if other ports are open than the last
    /// time, because this is called for every change of the gateway's health. Safe to cancel.
    async fn wanted(&mut self) -> Vec<Service> {
        if !self.settings.borrow().enabled {
            return Vec::new();
        }
        let open: Vec<bool> = self.candidates.iter().map(|port| !self.health.is_faulty(&port.part)).collect();
        match &self.known {
            Some((known, services)) if *known == open => services.clone(),
            _ => {
                let (candidates, are_open) = (self.candidates.clone(), open.clone());
                let asking = tokio::task::spawn_blocking(move || services(&candidates, &are_open));
                // the function does not panic, and when the runtime ends the result is not needed
                let services = asking.await.unwrap_or_default();
                self.known = Some((open, services.clone()));
                services
            }
        }
    }

    /// Waits until other services must be announced. Safe to cancel.
    async fn wants_other_than(&mut self, known: &[Service]) {
        while self.wanted().await == known {
            tokio::select! {
                // the senders outlive this task
                Ok(()) = self.settings.changed() => {}
                Ok(()) = self.changes.changed() => {}
                else => std::future::pending().await,
            }
        }
    }

    /// Announces as long as there are services to announce and an Avahi to tell.
    async fn talk(&mut self, cancel: &CancellationToken, pause: &mut Duration) -> Ended {
        self.announcer.handle(AnnouncerEvent::Gone);
        // the interfaces may have changed
        self.known = None;
        let avahi = tokio::select! {
            () = cancel.cancelled() => return Ended::Cancelled,
            avahi = Avahi::connect() => avahi,
        };
        let mut avahi = match avahi {
            Ok(avahi) => avahi,
            Err(error) => return Ended::Failed(error),
        };
        let ended = tokio::select! {
            () = cancel.cancelled() => Ended::Cancelled,
            ended = self.talk_with(&mut avahi, pause) => match ended {
                Ok(()) => Ended::NothingToSay,
                Err(error) => Ended::Failed(error),
            },
        };
        avahi.close().await;
        self.announcer.handle(AnnouncerEvent::Gone);
        ended
    }

    async fn talk_with(&mut self, avahi: &mut Avahi, pause: &mut Duration) -> Result<(), AvahiError> {
        let mut event = Some(avahi.find().await?);
        loop {
            let wanted = self.wanted().await;
            if wanted.is_empty() {
                return Ok(());
            }
            self.tell(avahi, AnnouncerEvent::Wanted(wanted.clone())).await?;
            match event.take() {
                // not cancelled by changes of ports, which would leave the greeting incomplete
                Some(AvahiEvent::Came(daemon)) => {
                    self.announcer.handle(AnnouncerEvent::Gone);
                    event = Some(avahi.greet(daemon).await?);
                    continue;
                }
                Some(AvahiEvent::Gone) => self.tell(avahi, AnnouncerEvent::Gone).await?,
                Some(AvahiEvent::Running(is_running)) => self.tell(avahi, AnnouncerEvent::Running(is_running)).await?,
                Some(AvahiEvent::Collision) => self.tell(avahi, AnnouncerEvent::Collision).await?,
                Some(AvahiEvent::Established) => {
                    *pause = PAUSE[0];
                    self.tell(avahi, AnnouncerEvent::Established).await?;
                }
                None => {}
            }
            self.show(match avahi.is_there() {
                true => TOLD,
                false => "Avahi does not run here",
            });
            tokio::select! {
                said = avahi.next() => event = Some(said?),
                () = self.wants_other_than(&wanted) => {}
            }
        }
    }

    /// Processes an event and performs the resulting action.
    async fn tell(&mut self, avahi: &mut Avahi, event: AnnouncerEvent) -> Result<(), AvahiError> {
        let mut action = self.announcer.handle(event);
        while let Some(next) = action {
            action = match next {
                MdnsAction::Announce(name, services) => match avahi.announce(&name, &services, &self.id).await? {
                    Told::Taken => None,
                    Told::Collision => self.announcer.handle(AnnouncerEvent::Collision),
                },
                MdnsAction::Propose(name) => {
                    let proposed = avahi.alternative(&name).await?;
                    // logged only the first time, so that a host which takes one name after the other does not fill the log
                    match std::mem::replace(&mut self.is_renaming_said, true) {
                        false => info!("mDNS: the name {name:?} is taken, {proposed:?} is tried"),
                        true => debug!("mDNS: the name {name:?} is taken, {proposed:?} is tried"),
                    }
                    self.announcer.handle(AnnouncerEvent::Proposed(proposed))
                }
                MdnsAction::GiveUp => return Err(AvahiError::NoName),
            };
        }
        Ok(())
    }

    /// Shows other rooms what is announced, or why nothing is.
    fn show(&mut self, otherwise: &str) {
        let name = self.announcer.name();
        let service = |service: &Service| AnnouncedService {
            name: service.name(name),
            kind: service.kind.service_type(),
            port: service.port,
        };
        let services: Vec<_> = self.announcer.established().iter().map(service).collect();
        let note = services.is_empty().then(|| otherwise.to_owned());
        let announced = Announced { services, note };
        if *self.shown.borrow() != announced {
            self.say(&announced);
            self.shown.send_replace(announced);
        }
    }

    /// Logs changes since the last line, but not attempts in between.
    fn say(&mut self, now: &Announced) {
        let line = match (now.services.first(), &now.note) {
            (Some(first), _) => {
                let kinds: Vec<String> =
                    now.services.iter().map(|service| format!("{} {}", service.kind, service.port)).collect();
                format!("announced by mDNS as {:?}: {}", first.name, kinds.join(", "))
            }
            (None, Some(note)) if note != TOLD => format!("not announced by mDNS: {note}"),
            (None, _) => return,
        };
        if line != self.said {
            info!("{line}");
            self.said = line;
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::poll;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_switched_off_is_not_said_to_be_too_early() {
        for (enabled, expected) in [(false, "[mdns] enabled = false"), (true, TOO_EARLY)] {
            let (_settings, receiver) = watch::channel(MdnsSettings { enabled });
            let (mdns, shown) = Mdns::new("loft", receiver, Vec::new(), Health::default());
            let mut running = std::pin::pin!(mdns.run(CancellationToken::new()));
            assert!(poll!(&mut running).is_pending());
            assert_eq!(shown.borrow().note.as_deref(), Some(expected));
        }
    }
}

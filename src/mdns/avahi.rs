//! The needed part of Avahi's D-Bus interface.
//!
//! Calls go to the unique bus name of the running daemon and not to the well-known name. A call to the well-known name would
//! start a daemon that somebody has stopped, and could reach a new daemon that does not know the old one's objects.

use std::time::Duration;

use futures_util::StreamExt;
use zbus::message::Type;
use zbus::{Connection, MatchRule, Message, MessageStream, OwnedObjectPath};

use super::service::{Family, Service};

const BUS: &str = "org.freedesktop.DBus";
const AVAHI: &str = "org.freedesktop.Avahi";
/// The first version of the interface, which every Avahi has, is sufficient.
const SERVER: &str = "org.freedesktop.Avahi.Server";
const GROUP: &str = "org.freedesktop.Avahi.EntryGroup";
const COLLISION: &str = "org.freedesktop.Avahi.CollisionError";

/// The states of the server and of a group, by Avahi's numbers.
const SERVER_RUNNING: i32 = 2;
const GROUP_ESTABLISHED: i32 = 2;
const GROUP_COLLISION: i32 = 3;
const GROUP_FAILURE: i32 = 4;

/// Stands for all interfaces and for both kinds of addresses.
const ANY: i32 = -1;
/// The longest wait for an answer. A working Avahi answers at once.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why the announcement failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum AvahiError {
    #[error("no system bus (D-Bus): {0}")]
    NoBus(zbus::Error),
    #[error("the system bus (D-Bus) does not answer")]
    Silent,
    #[error("Avahi: {0}")]
    Call(#[from] zbus::Error),
    #[error("the system bus (D-Bus) has ended")]
    BusEnded,
    #[error("Avahi cannot announce: {0}")]
    Failed(String),
    #[error("every name is taken")]
    NoName,
}

/// The events of Avahi that matter for announcements.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum AvahiEvent {
    /// A daemon has appeared, with this unique name. [`Avahi::greet`] must follow.
    Came(String),
    /// Whether the daemon accepts announcements.
    Running(bool),
    Gone,
    Established,
    Collision,
}

/// The result of an announcement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    Taken,
    /// Another program on this host has announced a service of this name.
    Collision,
}

pub(super) struct Avahi {
    bus: Connection,
    /// Receives changes of the owner of Avahi's name.
    owners: MessageStream,
    daemon: Option<Daemon>,
}

/// A running Avahi daemon.
struct Daemon {
    name: String,
    signals: MessageStream,
    /// The group with all our services, if there are any. A signal of another group concerns an older announcement.
    group: Option<OwnedObjectPath>,
}

impl Avahi {
    /// Connects to the system bus. [`Avahi::find`] must follow.
    pub(super) async fn connect() -> Result<Avahi, AvahiError> {
        let bus = zbus::connection::Builder::system().method_timeout(PATIENCE).build();
        // a socket whose owner does not read would make this wait for ever
        let bus = tokio::time::timeout(PATIENCE, bus).await.map_err(|_| AvahiError::Silent)?;
        let bus = bus.map_err(AvahiError::NoBus)?;
        let rule = MatchRule::builder()
            .msg_type(Type::Signal)
            .sender(BUS)
            .interface(BUS)
            .member("NameOwnerChanged")
            .add_arg(AVAHI)
            .build()?;
        let owners = MessageStream::for_match_rule(rule, &bus, None).await?;
        Ok(Avahi { bus, owners, daemon: None })
    }

    /// Looks for a running Avahi. Daemons that start later are reported as events.
    pub(super) async fn find(&mut self) -> Result<AvahiEvent, AvahiError> {
        let asked = self.bus.call_method(Some(BUS), "/org/freedesktop/DBus", Some(BUS), "NameHasOwner", &AVAHI);
        if !asked.await?.body().deserialize::<bool>()? {
            return Ok(AvahiEvent::Gone);
        }
        let asked = self.bus.call_method(Some(BUS), "/org/freedesktop/DBus", Some(BUS), "GetNameOwner", &AVAHI);
        let owner: String = asked.await?.body().deserialize()?;
        self.greet(owner).await
    }

    /// Whether a daemon is known.
    pub(super) fn is_there(&self) -> bool {
        self.daemon.is_some()
    }

    /// Starts to use a daemon.
    pub(super) async fn greet(&mut self, name: String) -> Result<AvahiEvent, AvahiError> {
        let rule = MatchRule::builder().msg_type(Type::Signal).sender(name.as_str()).member("StateChanged").build()?;
        // subscribed before the first call, so that no signal is missed
        let signals = MessageStream::for_match_rule(rule, &self.bus, None).await?;
        let state = self.bus.call_method(Some(name.as_str()), "/", Some(SERVER), "GetState", &()).await?;
        let is_running = state.body().deserialize::<i32>()? == SERVER_RUNNING;
        self.daemon = Some(Daemon { name, signals, group: None });
        Ok(AvahiEvent::Running(is_running))
    }

    /// The next event. Safe to cancel.
    pub(super) async fn next(&mut self) -> Result<AvahiEvent, AvahiError> {
        loop {
            let signals = self.daemon.as_mut().map(|daemon| &mut daemon.signals);
            let said = async {
                match signals {
                    Some(signals) => signals.next().await,
                    None => std::future::pending().await,
                }
            };
            let (message, is_about_owner) = tokio::select! {
                // in the order of the bus: signals of a daemon that has ended are obsolete
                biased;
                message = self.owners.next() => (message, true),
                message = said => (message, false),
            };
            let message = message.ok_or(AvahiError::BusEnded)??;
            if is_about_owner {
                let (_, before, owner): (String, String, String) = message.body().deserialize()?;
                if self.daemon.as_ref().is_some_and(|daemon| daemon.name == owner || daemon.name != before) {
                    continue; // the daemon was running already when it was looked for
                }
                self.daemon = None;
                return Ok(if owner.is_empty() { AvahiEvent::Gone } else { AvahiEvent::Came(owner) });
            }
            if let Some(event) = self.meaning(&message)? {
                return Ok(event);
            }
        }
    }

    fn meaning(&self, message: &Message) -> Result<Option<AvahiEvent>, AvahiError> {
        let header = message.header();
        let interface = header.interface().map(|name| name.as_str());
        let (state, error): (i32, String) = message.body().deserialize()?;
        if interface == Some(SERVER) {
            return Ok(Some(AvahiEvent::Running(state == SERVER_RUNNING)));
        }
        let group = self.daemon.as_ref().and_then(|daemon| daemon.group.as_deref());
        if interface != Some(GROUP) || group.is_none() || header.path() != group {
            return Ok(None);
        }
        match state {
            GROUP_ESTABLISHED => Ok(Some(AvahiEvent::Established)),
            GROUP_COLLISION => Ok(Some(AvahiEvent::Collision)),
            GROUP_FAILURE => Err(AvahiError::Failed(error)),
            _ => Ok(None),
        }
    }

    /// Announces these services instead of the previous ones. It uses a new group, so that signals on their way can be
    /// recognised as old.
    pub(super) async fn announce(&mut self, name: &str, services: &[Service], id: &str) -> Result<Told, AvahiError> {
        // without a daemon, the next event reports a new one
        let Some(daemon) = &mut self.daemon else { return Ok(Told::Taken) };
        let old = daemon.group.take();
        let daemon_name = daemon.name.clone();
        if let Some(old) = old {
            // frees the old names before they are announced again
            self.of_group(&daemon_name, &old, "Free", &()).await?;
        }
        let group = self.bus.call_method(Some(daemon_name.as_str()), "/", Some(SERVER), "EntryGroupNew", &()).await?;
        let group: OwnedObjectPath = group.body().deserialize()?;
        if let Some(daemon) = &mut self.daemon {
            daemon.group = Some(group.clone());
        }
        for service in services {
            let interface = service.interface.and_then(|index| i32::try_from(index).ok()).unwrap_or(ANY);
            let protocol = match service.family {
                Some(Family::V4) => 0,
                Some(Family::V6) => 1,
                None => ANY,
            };
            let kind = service.kind.service_type();
            // services of this host, in its domain
            let (flags, domain, host) = (0_u32, "", "");
            let (name, txt) = (service.name(name), service.kind.txt(id));
            let about = (interface, protocol, flags, name.as_str(), kind, domain, host, service.port, txt);
            match self.of_group(&daemon_name, &group, "AddService", &about).await {
                Ok(()) => {}
                Err(zbus::Error::MethodError(error, ..)) if error.as_str() == COLLISION => return Ok(Told::Collision),
                Err(error) => return Err(error.into()),
            }
        }
        self.of_group(&daemon_name, &group, "Commit", &()).await?;
        Ok(Told::Taken)
    }

    /// Asks Avahi for an alternative to this name.
    pub(super) async fn alternative(&self, name: &str) -> Result<String, AvahiError> {
        let Some(daemon) = &self.daemon else { return Ok(name.to_owned()) };
        let asked =
            self.bus.call_method(Some(daemon.name.as_str()), "/", Some(SERVER), "GetAlternativeServiceName", &name);
        Ok(asked.await?.body().deserialize()?)
    }

    async fn of_group<B>(
        &self,
        daemon: &str,
        group: &OwnedObjectPath,
        method: &str,
        body: &B,
    ) -> Result<(), zbus::Error>
    where
        B: serde::Serialize + zbus::DynamicType,
    {
        let asked = self.bus.call_method(Some(daemon), group, Some(GROUP), method, body);
        asked.await.map(drop)
    }

    pub(super) async fn close(self) {
        // if the bus has ended, the announcements have too
        let _ = self.bus.close().await;
    }
}

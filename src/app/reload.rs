//! SIGHUP: applies a changed configuration while the gateway runs.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::watch;
use tokio::time::sleep_until;
use tracing::{error, info, warn};

use super::former::FormerUsers;
use super::users::{Users, UsersChanged, judge_again};
use super::{identity, summary};
use crate::access::made::UserLists;
use crate::broker::core::Core;
use crate::config::reload::Reload;
use crate::config::{self, Settings};
use crate::mdns::settings::MdnsSettings;
use crate::sensors::settings::SensorSettings;
use crate::service::logging::Logging;
use crate::service::notify;
use crate::status::GatewayStatus;
use crate::upstream::settings::UpstreamSettings;

/// The parts that can be changed, with their present state.
pub(crate) struct Reloadable {
    settings: Settings,
    path: Option<PathBuf>,
    logging: Logging,
    core: Arc<Core>,
    changes: Changes,
    status: GatewayStatus,
    users: Arc<Users>,
    lists: Arc<UserLists>,
    former: FormerUsers,
}

/// The channels by which the rooms learn of changes.
pub(crate) struct Changes {
    pub(crate) sensors: watch::Sender<Arc<[SensorSettings]>>,
    /// The settings of the upstreams, in the order of the configuration.
    pub(crate) upstreams: Vec<watch::Sender<Arc<UpstreamSettings>>>,
    /// The settings of the mDNS announcements.
    pub(crate) mdns: watch::Sender<MdnsSettings>,
    /// Changes when the ports must read their files again.
    pub(crate) ports: watch::Sender<u64>,
    /// The users that were added by HTTP.
    pub(crate) users: Arc<Users>,
}

/// What may take long, so that others must not wait for it.
pub(crate) enum Work {
    /// Read the configuration again.
    Reload,
    /// Apply a change of the users that were added by HTTP.
    Users(UsersChanged),
    /// Try again to read or write the names of former users.
    Names,
}

impl Reloadable {
    pub(crate) fn new(
        settings: Settings,
        path: Option<&Path>,
        logging: Logging,
        core: Arc<Core>,
        changes: Changes,
        status: GatewayStatus,
        former: FormerUsers,
    ) -> Reloadable {
        let (users, path) = (changes.users.clone(), path.map(Into::into));
        let lists = users.lists();
        Reloadable { settings, path, logging, core, changes, status, users, lists, former }
    }

    /// The state of the gateway in one line.
    pub(crate) fn status_line(&self) -> String {
        let upstreams: Vec<_> = self.status.upstreams.iter().map(|upstream| upstream.now().state).collect();
        let mut line =
            summary::status(&self.settings, &self.status.sensors.borrow(), &self.status.health.faulty(), &upstreams);
        if let Some(cost) = &self.status.lost_at_power_cut {
            line += if cost.is_certain { "; a power cut costs data" } else { "; a power cut may cost data" };
        }
        line
    }

    pub(crate) async fn perform(&mut self, work: Work) {
        match work {
            Work::Reload => self.reload().await,
            Work::Users(UsersChanged { removed, acts }) => {
                self.apply_users(removed.as_deref()).await;
                // the requester may have gone
                let _ = acts.send(());
            }
            Work::Names => self.former.try_again(&self.settings.broker.access, &self.core).await,
        }
    }

    /// Reads the file again and applies what has changed. A file with problems changes nothing.
    async fn reload(&mut self) {
        let Some(path) = self.path.clone() else {
            info!("nothing to reload: the gateway runs without a configuration file");
            return;
        };
        notify::reloading();
        // loading reads secrets and certificates too, so it must not block a runtime worker
        match tokio::task::spawn_blocking(move || config::load_again(&path)).await {
            Ok(Ok(loaded)) => {
                for warning in &loaded.warnings {
                    warn!("{warning}");
                }
                let mut new = loaded.settings;
                identity::apply(&mut new, &self.settings.gateway.data_dir);
                self.users.read_again(&mut new).await;
                self.apply(&new, true).await;
                self.changes.ports.send_modify(|asked| *asked += 1);
                info!("configuration reloaded");
            }
            Ok(Err(problems)) => {
                for line in problems.to_string().lines() {
                    error!("{line}");
                }
                error!("configuration not reloaded: the one in force stays");
            }
            Err(panicked) => error!(%panicked, "configuration not reloaded"),
        }
        notify::ready(&self.status_line());
    }

    /// Applies a change of the users that were added by HTTP. `removed` is the user that was removed, if any.
    pub(crate) async fn apply_users(&mut self, removed: Option<&str>) {
        let mut new = self.settings.clone();
        new.broker.access.users = self.users.lists().in_force();
        self.apply(&new, false).await;
        // a listener or the configuration may have a user of the same name
        if let Some(name) =
            removed.filter(|name| self.settings.broker.access.all_users().all(|user| user.name != *name))
        {
            self.core.end_sessions_of(name).await;
        }
    }

    /// Waits until [`Work::Names`] is due, if ever. Safe to cancel.
    pub(crate) async fn names_again(&self) {
        match self.former.again() {
            Some(at) => sleep_until(at).await,
            None => std::future::pending().await,
        }
    }

    /// Tries a last time to write the names of former users.
    pub(crate) async fn finish_names(&mut self) {
        self.former.finish().await;
    }

    /// Applies settings. `asks_again` tells that upstreams ask again for what they were refused.
    async fn apply(&mut self, new: &Settings, asks_again: bool) {
        let mut plan = Reload::plan(&self.settings, new);
        let lists = self.users.lists();
        judge_again(&mut plan.settings.broker.access, &self.lists.made, &lists.made);
        self.lists = lists;
        self.former.update(&plan.settings.broker.access, &self.core).await;
        if plan.log
            && let Err(error) = self.logging.set_level(&plan.settings.log.level)
        {
            error!(%error, "log level not changed");
        }
        if plan.settings.broker != self.settings.broker {
            self.core.reload(plan.settings.broker.clone());
        }
        if plan.settings.sensors != self.settings.sensors {
            self.changes.sensors.send_replace(plan.settings.sensors.clone().into());
        }
        if plan.settings.mdns != self.settings.mdns {
            self.changes.mdns.send_replace(plan.settings.mdns.clone());
        }
        for (upstream, changes) in plan.settings.upstreams.iter().zip(&self.changes.upstreams) {
            changes.send_if_modified(|known| {
                let differs = **known != *upstream;
                if differs {
                    *known = Arc::new(upstream.clone());
                }
                // also one that is the same asks again for what was refused
                differs || asks_again
            });
        }
        for (what, names) in [
            ("users added", &plan.users_added),
            ("users revoked", &plan.users_revoked),
            ("users with other rules", &plan.users_access),
            ("sensors started", &plan.sensors_started),
            ("sensors stopped", &plan.sensors_stopped),
            ("sensors with other settings", &plan.sensors_changed),
            ("upstreams with other rules", &plan.rules),
        ] {
            if !names.is_empty() {
                info!("{what}: {}", names.join(", "));
            }
        }
        if !plan.restart.is_empty() {
            warn!("a restart is needed to change {}", plan.restart.join(", "));
        }
        self.settings = plan.settings;
    }
}

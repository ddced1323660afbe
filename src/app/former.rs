//! Keeps the list of former users over restarts, and ends what they have left when their names are given to other users.

use tokio::time::Instant;

use crate::access::former::Former;
use crate::access::settings::AccessSettings;
use crate::broker::core::Core;
use crate::config::Settings;
use crate::health::{Fault, Health};
use crate::kept_file::KeptFile;
use crate::secret::remedy_for_private;

/// The name of the file in the data directory.
const NAME: &str = "user-names";
/// The size in bytes above which the file is ignored, because the gateway does not write such a file.
const LARGEST: u64 = 16 << 20;
const COST: &str = "after a restart, who is given the name of a former user may find its sessions";

/// The former users and the file that keeps them.
pub(crate) struct FormerUsers {
    former: Former,
    file: KeptFile,
    health: Health,
}

impl FormerUsers {
    /// Reads the file and compares it with the present users.
    pub(crate) async fn open(settings: &Settings, core: &Core, health: Health) -> FormerUsers {
        let file = KeptFile::new(settings.gateway.data_dir.join(NAME), LARGEST, COST);
        let mut users = FormerUsers { former: Former::default(), file, health };
        users.update(&settings.broker.access, core).await;
        users
    }

    /// Records the users that are about to be in force; nobody new is let in before this returns. A user that no longer
    /// exists and still has sessions is remembered, even if an administrator has removed it and its sessions are about to
    /// end, because the power may fail before they have ended. The next update forgets it.
    pub(crate) async fn update(&mut self, settings: &AccessSettings, core: &Core) {
        self.read().await;
        let have_sessions = core.registry.users();
        for name in self.former.update(settings.all_users(), |name| have_sessions.contains(name)) {
            core.end_sessions_of(&name).await;
        }
        self.write().await;
    }

    async fn write(&mut self) {
        let text = self.former.to_text();
        self.file.write(move || text).await;
    }

    /// Reads the file if that has not been possible before.
    async fn read(&mut self) {
        match self.file.read().await {
            Ok(text) => {
                if let Some(text) = text {
                    self.former.learn(Former::read(&text));
                }
                self.health.clear(NAME);
            }
            Err(error) => {
                let problem = format!(
                    "{} cannot be read ({error}): who is given the name of a former user may find its sessions",
                    self.file.path().display()
                );
                self.health.raise(NAME, &Fault::new(problem, remedy_for_private(&error)));
            }
        }
    }

    /// When [`FormerUsers::try_again`] is due, because the file could not be read or written.
    pub(crate) fn again(&self) -> Option<Instant> {
        self.file.again()
    }

    /// Tries again to read or to write the file. Does not wait for a slow disk.
    pub(crate) async fn try_again(&mut self, settings: &AccessSettings, core: &Core) {
        if !self.file.is_read() {
            return self.update(settings, core).await;
        }
        self.file.go_on(self.former.to_text()).await;
    }

    /// Tries a last time to write what is not on disk.
    pub(crate) async fn finish(&mut self) {
        if self.file.again().is_some() {
            self.write().await;
        }
    }
}

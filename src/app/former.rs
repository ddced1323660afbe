//! Keeps over restarts which users there were, and ends what former users have left once their names are given to others.

use std::fs;
use std::path::{Path, PathBuf};

use tracing::warn;

use crate::access::former::Former;
use crate::access::settings::AccessSettings;
use crate::broker::core::Core;
use crate::config::Settings;
use crate::secret::replace_private;

/// The file's name in the data directory.
const NAME: &str = "user-names";
/// A larger file is none of ours.
const LARGEST: u64 = 16 << 20;

/// Users that there were, with the file that says so.
pub struct FormerUsers {
    path: PathBuf,
    former: Former,
    /// What the file says.
    written: String,
}

impl FormerUsers {
    /// Reads the file, and compares it with the users that there are at the start. Blocks for a moment.
    pub async fn open(settings: &Settings, core: &Core) -> FormerUsers {
        let mut users = FormerUsers::read(&settings.gateway.data_dir);
        users.update(&settings.broker.access, None, core).await;
        users
    }

    fn read(data_dir: &Path) -> FormerUsers {
        let path = data_dir.join(NAME);
        let is_ours = fs::symlink_metadata(&path).is_ok_and(|file| file.is_file() && file.len() <= LARGEST);
        let written = if is_ours { fs::read_to_string(&path).unwrap_or_default() } else { String::new() };
        FormerUsers { path, former: Former::read(&written), written }
    }

    /// These are about to be the users, and nobody new is let in before this returns. One may have been removed by a person who
    /// meant it: of that one nothing is remembered.
    pub async fn update(&mut self, settings: &AccessSettings, removed: Option<&str>, core: &Core) {
        let have_sessions = core.registry.users();
        let has_left = |name: &str| have_sessions.contains(name) && removed != Some(name);
        for name in self.former.update(settings.all_users(), has_left) {
            core.end_sessions_of(&name).await;
        }
        let text = self.former.to_text();
        if text == self.written {
            return;
        }
        let (path, content) = (self.path.clone(), text.clone());
        let written = tokio::task::spawn_blocking(move || replace_private(&path, content.as_bytes())).await;
        match written {
            Ok(Ok(())) => self.written = text,
            Ok(Err(error)) => warn!(
                %error,
                "the names of users cannot be written: after a restart, who is given the name of a former user may find its sessions"
            ),
            Err(panicked) => warn!(%panicked, "the names of users are not written"),
        }
    }
}

//! What is learned from sign-ins and kept over restarts, each in a small file: the addresses of users, so that these clients
//! are served first after a power cut, and the argon2id hashes that have replaced mosquitto's hashes.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::former::FormerUsers;
use crate::access::Access;
use crate::access::familiar::Familiar;
use crate::access::replaced::Replaced;
use crate::access::settings::AccessSettings;
use crate::broker::core::Core;
use crate::config::Settings;
use crate::health::Health;
use crate::kept_file::KeptFile;
use crate::secret::remedy_for_private;
use crate::supervise::Supervisor;

/// Something that is kept in a file.
pub(crate) trait Remembered {
    /// The name of the file in the data directory.
    const NAME: &str;
    /// The size in bytes above which the file is ignored, because the gateway does not write such a file.
    const LARGEST: u64;
    /// What it costs if the file cannot be read.
    const UNREAD: &str;
    /// What it costs if the file cannot be written.
    const UNWRITTEN: &str;
    /// What is new is collected for this time, so that a busy morning costs the card one write.
    const PAUSE: Duration;

    fn of(access: &Access) -> &Self;
    /// Adds what is in the file.
    fn learn(&self, text: &str);
    fn to_text(&self) -> String;
    fn changed(&self) -> watch::Receiver<u64>;
    /// Forgets what belongs to none of these users.
    fn retain(&self, settings: &AccessSettings);
    /// Reports that what is new is on disk.
    fn report(&self);
}

impl Remembered for Familiar {
    const NAME: &str = "familiar";
    const LARGEST: u64 = 16 << 20;
    const UNREAD: &str = "nobody goes first";
    const UNWRITTEN: &str = "after a restart nobody goes first";
    const PAUSE: Duration = Duration::from_secs(60);

    fn of(access: &Access) -> &Familiar {
        &access.passwords.familiar
    }

    fn learn(&self, text: &str) {
        self.read(text);
    }

    fn to_text(&self) -> String {
        self.to_text()
    }

    fn changed(&self) -> watch::Receiver<u64> {
        self.changed()
    }

    fn retain(&self, settings: &AccessSettings) {
        self.retain(|name| settings.all_users().any(|user| user.name == name));
    }

    fn report(&self) {}
}

impl Remembered for Replaced {
    const NAME: &str = "password-hashes";
    const LARGEST: u64 = 4 << 20;
    const UNREAD: &str = "mosquitto's hashes hold";
    const UNWRITTEN: &str = "after a restart mosquitto's hashes hold again";
    const PAUSE: Duration = Duration::ZERO;

    fn of(access: &Access) -> &Replaced {
        &access.passwords.replaced
    }

    fn learn(&self, text: &str) {
        self.read(text);
    }

    fn to_text(&self) -> String {
        self.to_text()
    }

    fn changed(&self) -> watch::Receiver<u64> {
        self.changed()
    }

    fn retain(&self, settings: &AccessSettings) {
        self.retain(settings.hashes());
    }

    fn report(&self) {
        if !self.to_text().is_empty() {
            info!(
                "passwords are checked against argon2id in place of mosquitto's hashes; `pigateway user` makes such a hash \
                 for the configuration"
            );
        }
    }
}

/// Reads all that is remembered of users, and keeps it on disk from now on. Returns those who are no users
/// any more.
pub(super) async fn start(
    settings: &Settings,
    core: &Arc<Core>,
    all_are_known: bool,
    health: &Health,
    supervisor: &Supervisor,
) -> FormerUsers {
    let (dir, now) = (&settings.gateway.data_dir, &settings.broker.access);
    let file = open::<Familiar>(dir, &core.access, now, all_are_known).await;
    let former = FormerUsers::open(settings, core, health.clone()).await;
    let keeping = keep::<Familiar>(file, core.access.clone(), supervisor.token());
    supervisor.spawn_endless("addresses of users", keeping);
    let file = open::<Replaced>(dir, &core.access, now, all_are_known).await;
    let keeping = keep::<Replaced>(file, core.access.clone(), supervisor.token());
    supervisor.spawn_endless("password hashes", keeping);
    former
}

/// Reads the file. If all users are known, forgets what belongs to none of them.
async fn open<K: Remembered>(
    data_dir: &Path,
    access: &Access,
    settings: &AccessSettings,
    all_are_known: bool,
) -> KeptFile {
    let mut file = KeptFile::new(data_dir.join(K::NAME), K::LARGEST, K::UNWRITTEN);
    match file.read().await {
        Ok(text) => {
            K::of(access).learn(&text.unwrap_or_default());
            if all_are_known {
                K::of(access).retain(settings);
            }
        }
        Err(error) => {
            let (path, remedy) = (file.path().display(), remedy_for_private(&error));
            warn!(%error, "{path} cannot be read: {}; {remedy}", K::UNREAD);
        }
    }
    file
}

/// Writes changes until the gateway shuts down. A file that could not be read is read before it is replaced.
async fn keep<K: Remembered>(mut file: KeptFile, access: Arc<Access>, cancel: CancellationToken) {
    let mut changed = K::of(&access).changed();
    // what was forgotten at the start must be written too
    let mut is_news = true;
    loop {
        let again = file.again();
        if !is_news {
            tokio::select! {
                () = cancel.cancelled() => {}
                _ = changed.changed() => is_news = true,
                () = sleep_until(again.unwrap_or_else(Instant::now)), if again.is_some() => {}
            }
        }
        if is_news {
            tokio::select! {
                () = cancel.cancelled() => {}
                () = sleep(K::PAUSE) => {}
            }
        } else if cancel.is_cancelled() && again.is_none() {
            return;
        }
        let is_last = cancel.is_cancelled();
        is_news = false;
        changed.mark_unchanged();
        if let Ok(Some(text)) = file.read().await {
            K::of(&access).learn(&text);
        }
        let made = access.clone();
        if file.write(move || K::of(&made).to_text()).await {
            K::of(&access).report();
        }
        if is_last {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::access::hash;
    use crate::access::settings::{Rights, UserSettings};

    fn access() -> Arc<Access> {
        Arc::new(Access::new(&AccessSettings::default()))
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_written_is_read_and_nobody_elses_business() {
        let dir = tempfile::tempdir().unwrap();
        let (name, rights, client_ids) = ("ada".to_owned(), Rights::default(), Vec::new());
        let ada = UserSettings { name, password_hash: None, rights, client_ids, is_admin: false };
        let settings = AccessSettings { users: vec![ada], ..AccessSettings::default() };
        let first = access();
        let file = open::<Familiar>(dir.path(), &first, &settings, true).await;
        first.passwords.familiar.add("ada", [192, 0, 2, 1].into());
        let cancel = CancellationToken::new();
        cancel.cancel();
        keep::<Familiar>(file, first, cancel).await;
        let knows = async |settings: &AccessSettings, all_are_known| {
            let again = access();
            open::<Familiar>(dir.path(), &again, settings, all_are_known).await;
            again.passwords.familiar.knows("ada", [192, 0, 2, 1].into())
        };
        assert!(knows(&settings, true).await);
        // former users are forgotten, unless the list of users is incomplete
        let nobody = AccessSettings::default();
        assert!(!knows(&nobody, true).await && knows(&nobody, false).await);
        let mode = fs::metadata(dir.path().join(Familiar::NAME)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    /// Makes `change` while the directory of the file cannot be used, puts `old` into the file and returns what is in it when
    /// it is another text.
    async fn after_trouble<K: Remembered + 'static>(change: impl FnOnce(&Access), old: &str) -> String {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        // something that is no directory: nothing in it can be read or written
        fs::write(&data, "").unwrap();
        let access = access();
        let file = open::<K>(&data, &access, &AccessSettings::default(), true).await;
        assert!(!file.is_read());
        let cancel = CancellationToken::new();
        let keeping = tokio::spawn(keep::<K>(file, access.clone(), cancel.clone()));
        sleep(K::PAUSE).await;
        change(&access);
        sleep(K::PAUSE * 3).await;
        fs::remove_file(&data).unwrap();
        fs::create_dir(&data).unwrap();
        fs::write(data.join(K::NAME), old).unwrap();
        let there = || fs::read_to_string(data.join(K::NAME)).unwrap();
        let late = Instant::now() + Duration::from_secs(600);
        while there() == old && Instant::now() < late {
            sleep(Duration::from_secs(1)).await;
        }
        cancel.cancel();
        keeping.await.unwrap();
        there()
    }

    #[tokio::test(start_paused = true)]
    async fn what_could_not_be_read_or_written_is_later() {
        let add = |access: &Access| access.passwords.familiar.add("ada", [192, 0, 2, 1].into());
        let there = after_trouble::<Familiar>(add, "ada\t192.0.2.9\nbob\t192.0.2.2\n").await;
        assert_eq!(there, "ada\t192.0.2.9\t192.0.2.1\nbob\t192.0.2.2\n");
        let made = hash::make("x").unwrap();
        let old = format!("00\t{made}\n");
        let there = after_trouble::<Replaced>(|access| access.passwords.replaced.set("$7$new", &made), &old).await;
        assert!(there.starts_with(&old) && there.lines().count() == 2, "{there}");
    }
}

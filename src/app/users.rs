//! Users that are added by HTTP. The gateway keeps them in a file of its own, in addition to those of the configuration.
//!
//! The file is authoritative: it is read before each change, so that edits by a person are neither lost nor overlooked, and
//! a change is in force only when the new file is on disk.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, mpsc, oneshot, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::access::hash;
use crate::access::made::{ChangeRefused, MOST_MADE, UserChange, UserDesk, UserDraft, UserLists, UserRequest};
use crate::access::settings::{AccessSettings, Rights, UserSettings};
use crate::config::{
    ConfigProblems, LARGEST_USERS_FILE, MadeUsers, Settings, load_made_users, made_users_path, made_users_text,
    read_made_users,
};
use crate::health::{Fault, Health};
use crate::secret::replace_private;

/// The name of the faulty part while the file cannot be read.
const PART: &str = "users made by HTTP";

/// Tells the task that applies settings that users have changed.
pub(crate) struct UsersChanged {
    /// The user that was removed for good, if any.
    pub(crate) removed: Option<String>,
    /// Answered when the new users are in force.
    pub(crate) acts: oneshot::Sender<()>,
}

/// Applies changes that are on disk when the gateway shuts down, before their requesters are answered. No new change is
/// begun. If this takes too long, the changes are in force from the next start on.
pub(crate) async fn apply_last(
    changes: &mut mpsc::Receiver<UsersChanged>,
    within: Duration,
    mut apply: impl AsyncFnMut(Option<&str>),
) {
    let applied = async {
        while let Some(UsersChanged { removed, acts }) = changes.recv().await {
            apply(removed.as_deref()).await;
            let _ = acts.send(());
        }
    };
    if timeout(within, applied).await.is_err() {
        warn!("a change of users that is on disk acts from the next start on");
    }
    changes.close();
    while changes.try_recv().is_ok() {}
}

/// Reads and writes `users.toml`, and makes one change after the other.
pub(crate) struct Users {
    data_dir: PathBuf,
    lists: watch::Sender<Arc<UserLists>>,
    /// Held during each read or write of the file.
    turn: Mutex<()>,
    health: Health,
}

impl Users {
    /// Reads the file and adds its users to the settings. Blocks for a moment.
    pub(crate) fn open(settings: &mut Settings, health: Health) -> Arc<Users> {
        let data_dir = settings.gateway.data_dir.clone();
        let users = Users { data_dir, lists: watch::Sender::default(), turn: Mutex::default(), health };
        users.put(settings, load_made_users(&users.data_dir));
        Arc::new(users)
    }

    /// Reads the file again and adds its users to new settings. If the file is damaged, the users stay as they are.
    pub(crate) async fn read_again(&self, settings: &mut Settings) {
        let _turn = self.turn.lock().await;
        let data_dir = self.data_dir.clone();
        match tokio::task::spawn_blocking(move || load_made_users(&data_dir)).await {
            Ok(read) => self.put(settings, read),
            // a fault of the gateway must not disconnect any user
            Err(_) => self.take(settings, self.lists.borrow().made.clone()),
        }
    }

    fn put(&self, settings: &mut Settings, read: Result<MadeUsers, ConfigProblems>) {
        let made = match read {
            Ok(made) => {
                self.health.clear(PART);
                for warning in made.all_warnings(&settings.broker.access.users, &self.data_dir) {
                    warn!("{warning}");
                }
                made.settings()
            }
            Err(problems) => {
                self.health.raise(PART, &self.broken(&problems));
                self.lists.borrow().made.clone()
            }
        };
        self.take(settings, made);
    }

    fn take(&self, settings: &mut Settings, made: Vec<UserSettings>) {
        let configured = std::mem::take(&mut settings.broker.access.users);
        let lists = UserLists { configured, made };
        settings.broker.access.users = lists.in_force();
        self.lists.send_replace(Arc::new(lists));
    }

    fn broken(&self, problems: &ConfigProblems) -> Fault {
        let lines: Vec<String> = problems.problems.iter().map(ToString::to_string).collect();
        let path = made_users_path(&self.data_dir);
        let remedy = format!(
            "mend {} or move it away, then reload; until then it is left alone, and nobody whose user is new in it comes in",
            path.display()
        );
        Fault::new(lines.join("; "), remedy)
    }

    pub(crate) fn lists(&self) -> Arc<UserLists> {
        self.lists.borrow().clone()
    }

    /// Whether the file could be read. Otherwise there may be users that are not known.
    pub(crate) fn are_all_known(&self) -> bool {
        !self.health.is_faulty(PART)
    }

    /// Returns the desk at which changes are requested, and the task that makes them until the gateway shuts down.
    pub(crate) fn serve(
        self: &Arc<Self>,
        changed: mpsc::Sender<UsersChanged>,
        cancel: CancellationToken,
    ) -> (UserDesk, impl Future<Output = ()> + Send + 'static) {
        let (desk, mut requests) = UserDesk::new(self.lists.subscribe());
        let users = self.clone();
        let serving = async move {
            loop {
                let UserRequest { change, by, reply } = tokio::select! {
                    () = cancel.cancelled() => {
                        // requests that still wait are told that nothing has changed
                        requests.close();
                        while let Ok(UserRequest { reply, .. }) = requests.try_recv() {
                            let _ = reply.send(Err(ChangeRefused::Busy));
                        }
                        return;
                    }
                    request = requests.recv() => match request {
                        Some(request) => request,
                        // without HTTP there are no requests
                        None => return cancel.cancelled().await,
                    },
                };
                let name = change.name().to_owned();
                let done = users.change(change, &changed).await;
                match &done {
                    Ok(Some(_)) => info!(user = name, by, "user made or changed by HTTP"),
                    Ok(None) => info!(user = name, by, "user removed by HTTP"),
                    Err(why) => info!(user = name, by, "user not changed: {why}"),
                }
                // the requester may have gone
                let _ = reply.send(done);
            }
        };
        (desk, serving)
    }

    async fn change(
        &self,
        change: UserChange,
        changed: &mpsc::Sender<UsersChanged>,
    ) -> Result<Option<UserSettings>, ChangeRefused> {
        let turn = self.turn.lock().await;
        let (data_dir, configured) = (self.data_dir.clone(), self.lists().configured.clone());
        let removed = matches!(change, UserChange::Remove(_)).then(|| change.name().to_owned());
        let writing = tokio::task::spawn_blocking(move || write(&data_dir, configured, &change));
        let written = writing.await.unwrap_or(Err(Failure::Refused(ChangeRefused::Uncertain)));
        let (lists, user) = written.map_err(|failure| match failure {
            Failure::Refused(why) => why,
            Failure::Broken(problems) => {
                let fault = self.broken(&problems);
                self.health.raise(PART, &fault);
                ChangeRefused::Broken(fault.problem)
            }
        })?;
        self.health.clear(PART);
        self.lists.send_replace(Arc::new(lists));
        drop(turn);
        let (acts, acting) = oneshot::channel();
        // if the gateway is shutting down, the change is on disk and in force from the next start on
        if changed.send(UsersChanged { removed, acts }).await.is_ok() {
            let _ = acting.await;
        }
        Ok(user)
    }
}

enum Failure {
    Refused(ChangeRefused),
    /// The file is not valid.
    Broken(ConfigProblems),
}

impl From<ChangeRefused> for Failure {
    fn from(why: ChangeRefused) -> Failure {
        Failure::Refused(why)
    }
}

/// Makes a change in the file. Returns all users after it, and the user that it concerns. Blocks.
fn write(
    data_dir: &Path,
    configured: Vec<UserSettings>,
    change: &UserChange,
) -> Result<(UserLists, Option<UserSettings>), Failure> {
    let made = load_made_users(data_dir).map_err(Failure::Broken)?.settings();
    let mut lists = UserLists { configured, made };
    let user = apply(&mut lists, change)?;
    let text = made_users_text(&lists.made);
    // a file that does not read back as written would lock out all its users at the next start
    let is_read = read_made_users(&text, "").is_ok_and(|read| read.settings() == lists.made);
    if text.len() as u64 > LARGEST_USERS_FILE || !is_read {
        return Err(ChangeRefused::TooLarge.into());
    }
    replace_private(&made_users_path(data_dir), text.as_bytes())
        .map_err(|error| ChangeRefused::Unwritten(error.to_string()))?;
    Ok((lists, user))
}

fn apply(lists: &mut UserLists, change: &UserChange) -> Result<Option<UserSettings>, ChangeRefused> {
    let name = change.name();
    let is_configured = lists.is_configured(name);
    let at = lists.made.iter().position(|user| user.name == name);
    match (change, at) {
        (UserChange::Add(..) | UserChange::Change(..), _) if is_configured => Err(ChangeRefused::Configured),
        (UserChange::Add(..), Some(_)) => Err(ChangeRefused::Exists),
        (UserChange::Add(..), None) if lists.made.len() >= MOST_MADE => Err(ChangeRefused::TooMany),
        (UserChange::Add(_, draft), None) => {
            let (name, rights) = (name.to_owned(), Rights::default());
            let new = UserSettings { name, password_hash: None, rights, client_ids: Vec::new(), is_admin: false };
            let new = drafted(new, draft)?;
            if new.password_hash.is_none() {
                return Err(ChangeRefused::NoPassword);
            }
            lists.made.push(new.clone());
            Ok(Some(new))
        }
        (UserChange::Change(_, draft), Some(at)) => {
            lists.made[at] = drafted(lists.made[at].clone(), draft)?;
            Ok(Some(lists.made[at].clone()))
        }
        (UserChange::Remove(_), Some(at)) => {
            lists.made.remove(at);
            Ok(None)
        }
        (UserChange::Remove(_), None) if is_configured => Err(ChangeRefused::Configured),
        (UserChange::Change(..) | UserChange::Remove(_), None) => Err(ChangeRefused::Unknown),
    }
}

/// The user with the values of the draft.
fn drafted(mut user: UserSettings, draft: &UserDraft) -> Result<UserSettings, ChangeRefused> {
    if let Some(password) = &draft.password {
        let made = hash::make(password.expose()).map_err(|error| ChangeRefused::Unwritten(error.to_string()))?;
        user.password_hash = Some(made);
    }
    user.rights.publish = draft.publish.clone().unwrap_or(user.rights.publish);
    user.rights.subscribe = draft.subscribe.clone().unwrap_or(user.rights.subscribe);
    user.client_ids = draft.client_ids.clone().unwrap_or(user.client_ids);
    Ok(user)
}

/// Corrects listeners that are gone from the configuration and keep their users until the restart: users that were added by
/// HTTP keep only their present rights there.
pub(crate) fn judge_again(access: &mut AccessSettings, before: &[UserSettings], now: &[UserSettings]) {
    let was_made = |user: &UserSettings| before.contains(user) && !now.contains(user);
    for users in access.listeners.iter_mut().filter_map(|listener| listener.users.as_mut()) {
        users.retain_mut(|user| {
            if !was_made(user) {
                return true;
            }
            let new = now.iter().find(|other| other.name == user.name);
            new.map(|new| *user = new.clone()).is_some()
        });
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::access::settings::{AccessRule, AnonymousSettings, ListenerAccess};
    use crate::config::Environment;
    use crate::secret::Secret;

    fn settings(dir: &Path, text: &str) -> Settings {
        let mut settings = crate::config::read(text, Path::new("t.toml"), &Environment::default()).unwrap().settings;
        settings.gateway.data_dir = dir.into();
        settings
    }

    fn draft(password: &str) -> UserDraft {
        UserDraft { password: Some(Secret::new(password)), ..UserDraft::default() }
    }

    /// Users with a task that applies changes.
    fn serve(dir: &Path, text: &str) -> (Arc<Users>, UserDesk, Health) {
        let health = Health::default();
        let users = Users::open(&mut settings(dir, text), health.clone());
        let (sender, mut changed) = mpsc::channel::<UsersChanged>(1);
        let (desk, serving) = users.serve(sender, CancellationToken::new());
        tokio::spawn(serving);
        tokio::spawn(async move {
            while let Some(UsersChanged { acts, .. }) = changed.recv().await {
                let _ = acts.send(());
            }
        });
        (users, desk, health)
    }

    #[tokio::test]
    async fn users_are_made_changed_and_removed_and_survive() {
        let dir = tempfile::tempdir().unwrap();
        let (_, desk, _) = serve(dir.path(), "[[broker.user]]\nname = \"hand\"\nadmin = true\n");
        let name = "esp \"ü\"/# 🙂";
        let made = desk.change(UserChange::Add(name.into(), draft("hunter2")), "hand").await.unwrap().unwrap();
        assert!(made.password_hash.as_deref().unwrap().starts_with("$argon2id$") && !made.is_admin);
        let path = made_users_path(dir.path());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert!(!fs::read_to_string(&path).unwrap().contains("hunter2"));
        let rules = |rule: &str| Some(vec![AccessRule::parse(rule).unwrap()]);
        let change = UserDraft { publish: rules("a/#"), ..UserDraft::default() };
        let changed = desk.change(UserChange::Change(name.into(), change), "hand").await.unwrap().unwrap();
        assert_eq!((&changed.password_hash, changed.rights.publish.len()), (&made.password_hash, 1));
        let long =
            UserDraft { client_ids: Some(vec!["x".repeat(LARGEST_USERS_FILE as usize)]), ..UserDraft::default() };
        for (change, why) in [
            (UserChange::Change(name.into(), long), ChangeRefused::TooLarge),
            (UserChange::Add(name.into(), draft("x")), ChangeRefused::Exists),
            (UserChange::Add("new".into(), UserDraft::default()), ChangeRefused::NoPassword),
            (UserChange::Add("hand".into(), draft("x")), ChangeRefused::Configured),
            (UserChange::Change("hand".into(), draft("x")), ChangeRefused::Configured),
            (UserChange::Remove("hand".into()), ChangeRefused::Configured),
            (UserChange::Change("nobody".into(), draft("x")), ChangeRefused::Unknown),
            (UserChange::Remove("nobody".into()), ChangeRefused::Unknown),
        ] {
            assert_eq!(desk.change(change, "hand").await, Err(why));
        }
        // the next start, with a configuration that has a user of the same name
        let mut again = settings(dir.path(), "");
        Users::open(&mut again, Health::default());
        assert_eq!(again.broker.access.users, [changed]);
        let text = format!("[[broker.user]]\nname = {}\npublish = []\n", toml::Value::String(name.into()));
        let mut again = settings(dir.path(), &text);
        let users = Users::open(&mut again, Health::default());
        assert_eq!((again.broker.access.users.len(), again.broker.access.users[0].rights.publish.len()), (1, 0));
        assert_eq!(users.lists().made.len(), 1, "it is kept");
        assert_eq!(desk.change(UserChange::Remove(name.into()), "hand").await, Ok(None));
        assert_eq!(load_made_users(dir.path()).unwrap(), MadeUsers::default());
    }

    #[tokio::test]
    async fn what_is_on_disk_when_the_gateway_goes_down_acts_before_it_is_answered() {
        let dir = tempfile::tempdir().unwrap();
        let users = Users::open(&mut settings(dir.path(), ""), Health::default());
        let ((sender, mut changed), cancel) = (mpsc::channel::<UsersChanged>(1), CancellationToken::new());
        let (desk, serving) = users.serve(sender, cancel.clone());
        let serving = tokio::spawn(serving);
        let ask = |change: UserChange| {
            let desk = desk.clone();
            tokio::spawn(async move { desk.change(change, "hand").await })
        };
        let asked = ask(UserChange::Add("a".into(), draft("x")));
        changed.recv().await.unwrap().acts.send(()).unwrap();
        assert_eq!(asked.await.unwrap().unwrap().unwrap().name, "a");
        // the change is written, and waits to be applied
        let mut asked = ask(UserChange::Remove("a".into()));
        while changed.is_empty() {
            tokio::task::yield_now().await;
        }
        cancel.cancel();
        let mut applied = Vec::new();
        apply_last(&mut changed, Duration::from_secs(60), async |removed| {
            assert!(!asked.is_finished());
            applied.push(removed.map(str::to_owned));
        })
        .await;
        assert_eq!(applied, [Some("a".to_owned())]);
        assert_eq!((&mut asked).await.unwrap(), Ok(None));
        assert_eq!(load_made_users(dir.path()).unwrap(), MadeUsers::default());
        // a change that was not begun has not happened
        serving.await.unwrap();
        assert_eq!(desk.change(UserChange::Add("b".into(), draft("x")), "hand").await, Err(ChangeRefused::Busy));
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_that_cannot_be_applied_in_time_holds_up_no_end() {
        let (sender, mut changed) = mpsc::channel::<UsersChanged>(1);
        let (acts, acting) = oneshot::channel();
        sender.send(UsersChanged { removed: None, acts }).await.unwrap();
        apply_last(&mut changed, Duration::from_secs(1), async |_| std::future::pending().await).await;
        assert!(acting.await.is_err() && sender.is_closed());
    }

    #[tokio::test]
    async fn a_broken_file_is_said_left_alone_and_mended() {
        let dir = tempfile::tempdir().unwrap();
        let path = made_users_path(dir.path());
        let (users, desk, health) = serve(dir.path(), "");
        desk.change(UserChange::Add("a".into(), draft("x")), "hand").await.unwrap();
        let good = fs::read_to_string(&path).unwrap();
        let broken = format!("{good}\n[[user]]\nname = \"b\"\nsubscribe = [\"x/#/y\"]\n");
        fs::write(&path, &broken).unwrap();
        let refused = desk.change(UserChange::Remove("a".into()), "hand").await.unwrap_err().to_string();
        assert!(refused.contains("users.toml:12:14: user.subscribe: found \"x/#/y\""), "{refused}");
        assert!(health.is_faulty(PART) && fs::read_to_string(&path).unwrap() == broken);
        let mut again = settings(dir.path(), "");
        users.read_again(&mut again).await;
        assert_eq!(again.broker.access.users.len(), 1, "who came in still does");
        // at the next start none of the file's users is in force, and that is reported
        let (health, mut next) = (Health::default(), settings(dir.path(), ""));
        Users::open(&mut next, health.clone());
        assert!(next.broker.access.users.is_empty() && health.is_faulty(PART));
        // edits by a person are not lost
        fs::write(&path, broken.replace("x/#/y", "x/#")).unwrap();
        desk.change(UserChange::Add("c".into(), draft("x")), "hand").await.unwrap();
        let names: Vec<String> = users.lists().made.iter().map(|user| user.name.clone()).collect();
        assert_eq!(names, ["a", "b", "c"]);
    }

    #[test]
    fn a_listener_that_waits_for_the_restart_forgets_who_was_removed() {
        let user = |name: &str, hash: &str| UserSettings {
            name: name.into(),
            password_hash: Some(hash.into()),
            rights: Rights::default(),
            client_ids: Vec::new(),
            is_admin: false,
        };
        let (a, b, own) = (user("a", "1"), user("b", "2"), user("a", "of the configuration"));
        let listener = |users: &[UserSettings]| ListenerAccess {
            listener: "l".into(),
            anonymous: AnonymousSettings::default(),
            users: Some(users.to_vec()),
        };
        let mut access = AccessSettings {
            listeners: vec![listener(&[a.clone(), b.clone()]), listener(std::slice::from_ref(&own))],
            ..AccessSettings::default()
        };
        judge_again(&mut access, &[a, b.clone()], &[user("b", "3")]);
        assert_eq!(access.listeners, [listener(&[user("b", "3")]), listener(&[own])]);
    }
}

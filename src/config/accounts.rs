//! Reads users and the settings of anonymous clients, in whatever table they are.

use super::document::{Table, Unique, Value, assign};
use crate::access::settings::{
    AccessRule, AnonymousFrom, AnonymousSettings, MAX_HASH_MEMORY, MAX_HASH_WORK, Rights, UserSettings, beyond_basic,
    is_client_id_pattern, is_usable_hash, is_user_name,
};
use crate::broker::settings::ListenerSettings;

/// Reads the settings of clients without a user name. Missing keys keep the values of `usual`.
pub(super) fn read_anonymous(table: &Table, usual: &AnonymousSettings) -> AnonymousSettings {
    let mut settings = AnonymousSettings { rights: rights(table, usual.rights.clone()), ..usual.clone() };
    let from = [("none", AnonymousFrom::None), ("loopback", AnonymousFrom::Loopback), ("all", AnonymousFrom::All)];
    assign(&mut settings.accept, table.get("accept").and_then(|value| value.choice(&from)));
    settings
}

fn rights(table: &Table, mut rights: Rights) -> Rights {
    assign(&mut rights.publish, table.get("publish").map(|value| rules(&value)));
    assign(&mut rights.subscribe, table.get("subscribe").map(|value| rules(&value)));
    rights
}

fn rules(value: &Value) -> Vec<AccessRule> {
    let valid = "a list of topic filters, such as [\"loft/#\", \"!loft/private/#\"]";
    let rule = |item: &Value| {
        let text = item.text(valid)?;
        AccessRule::parse(text).map_err(|error| item.wrong(format!("a topic filter; this {error}"))).ok()
    };
    value.items(valid).iter().filter_map(rule).collect()
}

/// The place of a user's table, which decides what keys it may have.
pub(super) enum Where<'a> {
    /// In `[[broker.user]]`.
    File,
    /// Below a listener. Missing keys are taken from the user of the same name in this list.
    Listener(&'a [UserSettings]),
    /// In the gateway's own file of users that were added by HTTP.
    Made,
}

/// The users in the tables below `owner`.
pub(super) fn users_of(owner: &Table, listeners: &[ListenerSettings], place: &Where<'_>) -> Vec<UserSettings> {
    let asks_for_certificates = listeners.iter().any(ListenerSettings::asks_for_certificates);
    let name_form = "a text of 1 to 1024 bytes without control characters";
    let usual = if let Where::Listener(usual) = place { usual } else { &[][..] };
    let mut names = Unique::new("user");
    let mut users = Vec::new();
    for table in owner.tables("user") {
        let name = table.required("name", name_form).and_then(|value| {
            let name = value.parsed(name_form, |text| is_user_name(text).then(|| text.to_owned()))?;
            // a user of a listener is not one of HTTP
            if !matches!(place, Where::Listener(_)) {
                beyond_basic(&name).into_iter().for_each(|why| value.warning(why));
            }
            names.check(&value, name)
        });
        let known = usual.iter().find(|user| name.as_ref().is_some_and(|name| *name == user.name));
        let hash = table.get("password_hash");
        if hash.is_none() && known.is_none_or(|user| user.password_hash.is_none()) && !asks_for_certificates {
            let message = match place {
                // this file has no listeners, so it is not known here whether one asks for certificates
                Where::Made => "there is none: this user can only come with a client certificate",
                _ => "there is none and no listener asks for client certificates: this user cannot connect",
            };
            table.warning("password_hash", message);
        }
        let password_hash = match hash {
            Some(value) => password_hash(&value),
            None => known.and_then(|user| user.password_hash.clone()),
        };
        let rights = rights(&table, known.map(|user| user.rights.clone()).unwrap_or_default());
        let mut client_ids = known.map(|user| user.client_ids.clone()).unwrap_or_default();
        assign(&mut client_ids, table.get("client_ids").map(|value| patterns(&value)));
        let is_admin = is_admin(&table, place);
        users.extend(name.map(|name| UserSettings { name, password_hash, rights, client_ids, is_admin }));
        table.finish();
    }
    users
}

/// Whether the user is an administrator, which only the configuration can say.
fn is_admin(table: &Table, place: &Where<'_>) -> bool {
    if let Where::Listener(_) = place {
        return false;
    }
    let Some(value) = table.get("admin") else { return false };
    let is_admin = value.switch().unwrap_or(false);
    if is_admin && matches!(place, Where::Made) {
        value.problem("found true; valid: only a [[broker.user]] of the configuration can administer the gateway");
    }
    is_admin
}

fn patterns(value: &Value) -> Vec<String> {
    let valid = "a list of client ids, in which %u stands for the user and * for anything, such as [\"%u-*\"]";
    let pattern = |text: &str| is_client_id_pattern(text).then(|| text.to_owned());
    value.items(valid).iter().filter_map(|item| item.parsed(valid, pattern)).collect()
}

/// Reads a hash. An error message does not repeat the value, because it may be a password.
fn password_hash(value: &Value) -> Option<String> {
    let text = value.as_text().unwrap_or_default();
    if !is_usable_hash(text) {
        value.problem(format!(
            "not an argon2id hash with m up to {MAX_HASH_MEMORY} and m times t up to {MAX_HASH_WORK}; valid: one that \
             `pigateway user NAME` prints, or one of mosquitto's ($7$..., $6$...)"
        ));
        return None;
    }
    Some(text.to_owned())
}

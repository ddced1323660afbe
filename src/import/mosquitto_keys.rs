//! The settings of mosquitto.conf(5) from 1.4 to 2.1: where each applies, what a repetition means, and what becomes of those
//! that can be decided by their name alone.

use crate::import::line::SettingLine;

/// The section to which a setting applies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    Global,
    /// The listener above it, or the default listener.
    Listener,
    /// The whole broker, or with `per_listener_settings` the listener above it.
    Security,
    /// The bridge above it.
    Bridge,
    /// It begins a listener or a bridge, or includes files.
    Structure,
}

/// What it means if a setting is repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Repeated {
    /// mosquitto does not start.
    Refused,
    /// The last line counts.
    Last,
    /// All lines count.
    All,
}

/// What becomes of a setting whose name decides it.
#[derive(Clone, Copy, Debug)]
pub(super) enum Simple {
    /// The code for its section reads it.
    Read,
    /// It is not needed here, for this reason.
    NotNeeded(&'static str),
    /// There is no equivalent, for this reason.
    NotTaken(&'static str),
    /// With this value it makes no difference; with any other value there is no equivalent.
    Only(&'static str, &'static str),
}

/// One of mosquitto's settings.
#[derive(Clone, Copy, Debug)]
pub(super) struct Key {
    pub(crate) name: &'static str,
    pub(crate) scope: Scope,
    pub(crate) repeated: Repeated,
    pub(crate) simple: Simple,
}

use Repeated::{All, Last, Refused};
use Scope::{Bridge, Global, Listener, Security, Structure};
use Simple::{NotNeeded, NotTaken, Only, Read};

/// Old names of settings, and the present names.
const ALIASES: [(&str, &str); 9] = [
    ("addresses", "address"),
    ("clientid", "remote_clientid"),
    ("username", "remote_username"),
    ("password", "remote_password"),
    ("maximum_qos", "max_qos"),
    ("retained_persistence", "persistence"),
    ("auth_plugin", "plugin"),
    ("listener_allow_anonymous", "allow_anonymous"),
    ("listener_auto_id_prefix", "auto_id_prefix"),
];

const fn key(name: &'static str, scope: Scope, repeated: Repeated, simple: Simple) -> Key {
    Key { name, scope, repeated, simple }
}

const DURABLE: &str =
    "sessions and retained messages are always kept on disk (gateway.data_dir); mosquitto.db is not read";
const RUSTLS: &str = "the TLS library has only suites that are strong today";
const ENGINE: &str = "keys are read from files only";
const PLUGIN: &str = "plugins of mosquitto do not run here: users and rules stand under [[broker.user]]";
const JOURNALD: &str = "systemd's journal has the time and the severity of each line";
const WEBSOCKET: &str = "MQTT over WebSocket has limits of its own";
const BACKOFF: &str = "an upstream is tried again after a pause that grows";

const KEYS: &[Key] = &[
    key("listener", Structure, All, Read),
    key("connection", Structure, All, Read),
    key("include_dir", Structure, All, Read),
    key("per_listener_settings", Structure, Last, Read),
    // access
    key("allow_anonymous", Security, Last, Read),
    key("password_file", Security, Refused, Read),
    key("acl_file", Security, Refused, Read),
    key("psk_file", Security, Refused, NotTaken("TLS with pre-shared keys is not spoken: use certificates")),
    key("allow_zero_length_clientid", Security, Last, Only("true", "clients without an id are given one")),
    key("auto_id_prefix", Security, Refused, NotNeeded("ids that are given to clients begin with auto-")),
    key("plugin", Security, All, NotTaken(PLUGIN)),
    key("plugin_load", Security, All, NotTaken(PLUGIN)),
    key("plugin_use", Security, All, NotTaken(PLUGIN)),
    key("global_plugin", Global, All, NotTaken(PLUGIN)),
    key("auth_plugin_deny_special_chars", Security, Last, NotNeeded("names with + # or / never widen a rule")),
    key("clientid_prefixes", Global, Refused, Read),
    key(
        "check_retain_source",
        Global,
        Last,
        Only("false", "who published a retained message is not asked again later"),
    ),
    key("enable_control_api", Global, Last, NotNeeded("there is no $CONTROL")),
    // limits
    key("max_inflight_messages", Global, Last, Read),
    key("max_inflight_bytes", Global, Last, Only("0", "messages under way are counted, not measured")),
    key("max_queued_messages", Global, Last, Read),
    key("max_queued_bytes", Global, Last, Read),
    key("max_packet_size", Global, Last, Read),
    key("message_size_limit", Global, Last, Read),
    key("persistent_client_expiration", Global, Last, Read),
    key("retain_available", Global, Last, Read),
    key("global_max_connections", Global, Last, Read),
    key("global_max_clients", Global, Last, Read),
    key("max_keepalive", Global, Last, Read),
    key("memory_limit", Global, Last, NotNeeded("memory is bounded by [broker], and by the unit's MemoryMax")),
    key("packet_buffer_size", Global, Last, NotNeeded("buffers grow and shrink with what is received")),
    key("queue_qos0_messages", Global, Last, Only("false", "QoS 0 is not kept for clients that are away")),
    key(
        "upgrade_outgoing_qos",
        Global,
        Last,
        Only("false", "a message is delivered with the QoS that it was published with"),
    ),
    key(
        "retain_expiry_interval",
        Global,
        Last,
        NotTaken("retained messages expire only where their publisher says so"),
    ),
    key(
        "allow_duplicate_messages",
        Global,
        Last,
        Only("false", "a client gets a message once, also if several of its subscriptions select it"),
    ),
    key("set_tcp_nodelay", Global, Last, NotNeeded("small packets never wait here")),
    key("sys_interval", Global, Last, NotNeeded("$SYS is published at an interval of its own")),
    key("retry_interval", Global, Last, NotNeeded("messages are sent again when a client comes back, as MQTT says")),
    key("store_clean_interval", Global, Last, NotNeeded("nothing has to be cleaned")),
    key("connection_messages", Global, Last, Only("true", "connections are always logged")),
    // on disk
    key("persistence", Global, Last, NotNeeded(DURABLE)),
    key("persistence_file", Global, Refused, NotNeeded(DURABLE)),
    key("persistence_location", Global, Refused, NotNeeded(DURABLE)),
    key("autosave_interval", Global, Last, NotNeeded("what is acknowledged is on disk at once")),
    key("autosave_on_changes", Global, Last, NotNeeded("what is acknowledged is on disk at once")),
    // log and process
    key("log_type", Global, All, Read),
    key("log_dest", Global, All, Read),
    key("log_facility", Global, Last, NotNeeded(JOURNALD)),
    key("log_timestamp", Global, Last, NotNeeded(JOURNALD)),
    key("log_timestamp_format", Global, Refused, NotNeeded(JOURNALD)),
    key("websockets_log_level", Global, Last, NotNeeded(WEBSOCKET)),
    key("quic_log_level", Global, Last, NotNeeded("QUIC is not spoken")),
    key("pid_file", Global, Refused, NotNeeded("systemd knows the process")),
    key("user", Global, Last, NotNeeded("the unit says which user the gateway runs as")),
    // listeners
    key("port", Listener, Last, Read),
    key("bind_address", Listener, Refused, Read),
    key("bind_interface", Listener, Refused, Read),
    key("socket_domain", Listener, Last, Read),
    key("protocol", Listener, Last, Read),
    key("max_connections", Listener, Last, Read),
    key("mount_point", Listener, Refused, Read),
    key("max_qos", Listener, Last, Only("2", "QoS 2 is always allowed")),
    key("max_topic_alias", Listener, Last, NotNeeded("how many topic aliases there are is negotiated")),
    key("max_topic_alias_broker", Listener, Last, NotNeeded("how many topic aliases there are is negotiated")),
    key("use_username_as_clientid", Listener, Last, Only("false", "a client keeps the id that it gives")),
    key("accept_protocol_versions", Listener, Last, NotNeeded("every listener speaks MQTT 3.1, 3.1.1 and 5")),
    key("http_dir", Listener, Refused, NotTaken("files are not served; the gateway has a page of its own")),
    key("websockets_origin", Listener, All, Read),
    key("websockets_headers_size", Global, Last, NotNeeded(WEBSOCKET)),
    key("enable_proxy_protocol", Listener, Last, Read),
    key(
        "proxy_protocol_v2_require_tls",
        Listener,
        Last,
        Only("false", "what a proxy says of its own TLS is not asked"),
    ),
    // their TLS
    key("certfile", Listener, Refused, Read),
    key("keyfile", Listener, Refused, Read),
    key("cafile", Listener, Refused, Read),
    key("capath", Listener, Refused, Read),
    key("crlfile", Listener, Refused, Read),
    key("require_certificate", Listener, Last, Read),
    key("use_identity_as_username", Listener, Last, Read),
    key("use_subject_as_username", Listener, Last, Read),
    key("psk_hint", Listener, Refused, Read),
    key("tls_version", Listener, Refused, Read),
    key("ciphers", Listener, Refused, NotNeeded(RUSTLS)),
    key("ciphers_tls1.3", Listener, Refused, NotNeeded(RUSTLS)),
    key("dhparamfile", Listener, Refused, NotNeeded("keys are agreed on by elliptic curves")),
    key("tls_engine", Listener, Refused, NotTaken(ENGINE)),
    key("tls_engine_kpass_sha1", Listener, Refused, NotTaken(ENGINE)),
    key("tls_keyform", Listener, Refused, Only("pem", ENGINE)),
    key("disable_client_cert_date_checks", Listener, Last, Only("false", "certificates that have expired are refused")),
    // bridges
    key("address", Bridge, Refused, Read),
    key("topic", Bridge, All, Read),
    key("remote_clientid", Bridge, Refused, Read),
    key("remote_username", Bridge, Refused, Read),
    key("remote_password", Bridge, Refused, Read),
    key("cleansession", Bridge, Last, Read),
    key("keepalive_interval", Bridge, Last, Read),
    key("bridge_protocol_version", Bridge, Last, Read),
    key("bridge_session_expiry_interval", Bridge, Last, Read),
    key("notifications", Bridge, Last, Read),
    key("notifications_local_only", Bridge, Last, Read),
    key("notification_topic", Bridge, Refused, Read),
    key("round_robin", Bridge, Last, Read),
    key("start_type", Bridge, Last, Read),
    key("restart_timeout", Bridge, Last, Read),
    key("bridge_cafile", Bridge, Refused, Read),
    key("bridge_capath", Bridge, Refused, Read),
    key("bridge_tls_use_os_certs", Bridge, Last, Read),
    key("bridge_certfile", Bridge, Refused, Read),
    key("bridge_keyfile", Bridge, Refused, Read),
    key("bridge_alpn", Bridge, Refused, Read),
    key("bridge_insecure", Bridge, Last, Read),
    key("bridge_tls_version", Bridge, Refused, Read),
    key("bridge_identity", Bridge, Refused, Read),
    key("bridge_psk", Bridge, Refused, Read),
    key("bridge_outgoing_retain", Bridge, Last, Read),
    key("local_cleansession", Bridge, Last, Read),
    key("idle_timeout", Bridge, Last, NotNeeded("an upstream stays connected")),
    key("threshold", Bridge, Last, NotNeeded("an upstream stays connected")),
    key("local_clientid", Bridge, Refused, NotNeeded("rules of an upstream need no client id here")),
    key("local_username", Bridge, Refused, NotNeeded("rules of an upstream need no user here")),
    key("local_password", Bridge, Refused, NotNeeded("rules of an upstream need no user here")),
    key("try_private", Bridge, Last, NotNeeded("with MQTT 5 an upstream sends nothing back")),
    key("bridge_attempt_unsubscribe", Bridge, Last, NotNeeded("only what the rules name is subscribed to")),
    key("bridge_max_packet_size", Bridge, Last, Only("0", "an MQTT 5 upstream says how large its packets may be")),
    key("bridge_max_topic_alias", Bridge, Last, NotNeeded("topic aliases are negotiated")),
    key("bridge_receive_maximum", Bridge, Last, NotNeeded("how much is under way is negotiated")),
    key("bridge_reload_type", Bridge, Last, NotNeeded("a reload changes rules at once and names what needs a restart")),
    key("bridge_tcp_keepalive", Bridge, Last, NotNeeded("the keep alive of MQTT notices a dead line")),
    key("bridge_tcp_user_timeout", Bridge, Last, NotNeeded("the keep alive of MQTT notices a dead line")),
    key(
        "bridge_bind_address",
        Bridge,
        Refused,
        NotTaken("the system's routes say which address an upstream is reached from"),
    ),
    key("bridge_require_ocsp", Bridge, Last, Only("false", "the upstream's certificate is checked without OCSP")),
    key("bridge_ciphers", Bridge, Refused, NotNeeded(RUSTLS)),
    key("bridge_ciphers_tls1.3", Bridge, Refused, NotNeeded(RUSTLS)),
];

/// Why nothing is lost without `restart_timeout`.
pub(super) const RETRY: &str = BACKOFF;

/// The setting with this name, which may be an old one.
pub(super) fn find(written: &str) -> Option<Key> {
    let name = ALIASES.iter().find(|(old, _)| *old == written).map_or(written, |(_, new)| new);
    if written.starts_with("auth_opt_") || written.starts_with("plugin_opt_") {
        return Some(key("plugin_opt_", Security, All, NotTaken(PLUGIN)));
    }
    KEYS.iter().find(|key| key.name == name).copied()
}

/// Whether a setting is about access, so that `per_listener_settings` applies it to each listener.
pub(super) fn is_about_access(key: &str) -> bool {
    find(key).is_some_and(|key| key.scope == Scope::Security)
}

/// Sets the fate of a setting whose name decides it.
pub(super) fn decide(line: &SettingLine, simple: Simple) {
    match simple {
        Read => {}
        NotNeeded(why) => line.not_needed(why),
        NotTaken(why) => line.not_taken(why),
        Only(value, why) => {
            let same = line.word() == value || matches!((line.word(), value), ("1", "true") | ("0", "false"));
            if same { line.not_needed("it is so here") } else { line.not_taken(why) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_setting_stands_twice_and_every_alias_leads_to_one() {
        for (at, key) in KEYS.iter().enumerate() {
            assert!(!KEYS[..at].iter().any(|other| other.name == key.name), "{}", key.name);
        }
        for (old, new) in ALIASES {
            assert_eq!(find(old).unwrap().name, new);
        }
        assert!(find("no_such_thing").is_none());
    }
}

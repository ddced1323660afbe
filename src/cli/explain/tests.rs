use std::path::Path;

use super::*;
use crate::config::Environment;

const TEXT: &str = r##"
[broker.anonymous]
accept = "all"
publish = []

[[broker.user]]
name = "esp"
password_hash = "$7$101$X+vfWTSUfGwxZqZA$0X68176mCA7P0/iVT5aJ0nJWnUQr8KI+3NzuWUArBX1tuqxqnf95WYUKt/nLkSCK58xYfTcAq9yDf/Xx+jIffg=="
publish = [
    "dev/%c/#",
    "loft/#",
]
subscribe = ["loft/#", "!loft/private/#"]

[[sensor]]
name = "pir"
pin = 17
topic = "loft/motion1"

[[upstream]]
name = "home"
addresses = ["mqtt://192.0.2.7"]
[[upstream.out]]
topic_filter = "loft/#"
remote_prefix = "sites/"
[[upstream.in]]
topic_filter = "lamp"
local_prefix = "loft/"
remote_prefix = "commands/"
"##;

fn explained(topic: &str, user: Option<&str>, client: Option<&str>) -> String {
    explained_of(TEXT, topic, user, client)
}

fn explained_of(text: &str, topic: &str, user: Option<&str>, client: Option<&str>) -> String {
    let loaded = config::read(text, Path::new("t.toml"), &Environment::default()).unwrap();
    let args = ExplainArgs {
        topic: topic.into(),
        user: user.map(Into::into),
        client: client.map(Into::into),
        config: "t.toml".into(),
    };
    let lines = RuleLines::of(text);
    let made_in = HashMap::new();
    Explained { settings: &loaded.settings, lines: &lines, file: "t.toml", made_in: &made_in, args: &args }.text()
}

#[test]
fn rules_of_users_who_were_made_stand_in_their_file() {
    let mut loaded = config::read(TEXT, Path::new("t.toml"), &Environment::default()).unwrap();
    let mut made = loaded.settings.broker.access.users[0].clone();
    made.name = "made".into();
    loaded.settings.broker.access.users.push(made);
    let (topic, user, config) = ("loft/a".into(), Some("made".into()), "t.toml".into());
    let args = ExplainArgs { topic, user, client: None, config };
    let (lines, made_in) = (RuleLines::of(TEXT), HashMap::from([("made".to_owned(), 3)]));
    let explained =
        Explained { settings: &loaded.settings, lines: &lines, file: "t.toml", made_in: &made_in, args: &args };
    let text = explained.text();
    assert!(text.contains("yes, by \"loft/#\" (") && text.contains("users.toml, the user at line 3)"), "{text}");
}

#[test]
fn who_may_and_by_which_line() {
    let text = explained("loft/motion1", None, None);
    for part in [
        "sensor \"pir\" (pin 17) publishes the state here, retained",
        "esp                      yes, by \"loft/#\" (t.toml:11)",
        "clients without a user name no publish rule selects it",
        "esp                      yes, by \"loft/#\" (t.toml:13)",
        "clients without a user name yes, by \"#\" (the default)",
        "for the upstream \"home\"",
        "up to \"home\" (mqtt://192.0.2.7:1883) as \"sites/loft/motion1\" with QoS 1, by the rule at t.toml:23",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
    let text = explained("loft/private/x", Some("esp"), None);
    assert!(
        text.contains("no, \"!loft/private/#\" (t.toml:13) denies it") && !text.contains("without a user"),
        "{text}"
    );
    let text = explained("loft/lamp", Some("esp"), None);
    assert!(text.contains("down from \"home\" (mqtt://192.0.2.7:1883), where it is \"commands/lamp\""), "{text}");
}

#[test]
fn client_ids_and_the_brokers_own_topics() {
    assert!(explained("dev/a/x", Some("esp"), None).contains("depends on the client id, by \"dev/%c/#\" (t.toml:10)"));
    assert!(explained("dev/a/x", Some("esp"), Some("a")).contains("yes, by \"dev/%c/#\""));
    assert!(explained("dev/a/x", Some("esp"), Some("b")).contains("no publish rule selects it"));
    let text = explained("$SYS/broker/uptime", Some(""), None);
    assert!(text.contains("the broker's own") && text.contains("makes it up") && !text.contains("esp"), "{text}");
}

#[test]
fn topics_that_begin_with_a_dollar_sign_are_like_others_where_a_rule_names_them() {
    let text = TEXT.replace("publish = []", "publish = [\"$foo/#\", \"$share/#\"]");
    let foo = explained_of(&text, "$foo/x", Some(""), None);
    assert!(foo.contains("yes, by \"$foo/#\"") && foo.contains("as the retained message"), "{foo}");
    let text = explained_of(&text, "$share/g/x", Some(""), None);
    assert!(text.contains("the broker's own") && text.contains("nobody publishes it"), "{text}");
    assert!(explained("$foo/x", Some(""), None).contains("no publish rule selects it"));
}

#[test]
fn what_the_gateway_says_of_itself_is_its_own_and_goes_up_by_a_rule_that_names_it() {
    let head = "[gateway]\nid = \"loft\"\n[home_assistant]\nenabled = true\n";
    let everything = TEXT.replace("topic_filter = \"loft/#\"", "topic_filter = \"#\"").replace("publish = []", "");
    let named = |filter: &str| {
        format!("{head}{everything}[[upstream.out]]\ntopic_filter = \"{filter}\"\nremote_prefix = \"named/\"\n")
    };
    let (own, other) = (["pigateway/loft/status", "pigateway/loft/state"], ["loft/a", "pigateway/attic/status"]);
    let devices = ["homeassistant/device/pigateway_loft/config", "homeassistant/device/pigateway_loft_pir/config"];
    let everything_alone = format!("{head}{everything}");
    for topic in own.iter().chain(&devices) {
        let text = explained_of(&everything_alone, topic, Some(""), None);
        assert!(text.contains("itself publishes it") && text.contains("not up to \"home\""), "{text}");
        assert!(!text.contains("until it has acknowledged"), "{text}");
        assert_eq!(text.contains("no, only the gateway itself publishes it"), own.contains(topic), "{text}");
        let first = topic.split('/').next().unwrap();
        let text = explained_of(&named(&format!("{first}/#")), topic, Some(""), None);
        let up = format!("up to \"home\" (mqtt://192.0.2.7:1883) as \"sites/{topic}\"");
        assert!(text.contains(&up) && text.contains("until it has acknowledged"), "{text}");
    }
    for topic in other {
        let text = explained_of(&everything_alone, topic, Some(""), None);
        assert!(
            text.contains("yes, by \"#\"") && text.contains("up to \"home\"") && !text.contains("itself"),
            "{text}"
        );
    }
    let off = explained_of(&everything, own[0], Some(""), None);
    assert!(off.contains("yes, by") && off.contains("up to \"home\"") && !off.contains("itself"), "{off}");
}

#[test]
fn listeners_with_users_and_guests_of_their_own() {
    let text = r##"
[[broker.listener]]
address = "127.0.0.1:1883"
[[broker.listener]]
address = "[::]:1884"
anonymous = "none"
[[broker.listener.user]]
name = "esp"
password_hash = "$7$101$X+vfWTSUfGwxZqZA$0X68176mCA7P0/iVT5aJ0nJWnUQr8KI+3NzuWUArBX1tuqxqnf95WYUKt/nLkSCK58xYfTcAq9yDf/Xx+jIffg=="
publish = ["esp/#"]
"##;
    let loaded = config::read(text, Path::new("t.toml"), &Environment::default()).unwrap();
    let args = ExplainArgs { topic: "esp/1".into(), user: None, client: None, config: "t.toml".into() };
    let lines = RuleLines::of(text);
    let text =
        Explained { settings: &loaded.settings, lines: &lines, file: "t.toml", made_in: &HashMap::new(), args: &args }
            .text();
    for part in [
        "    clients without a user name, from this host yes, by \"#\" (the default)\n    at the listener [::]:1884, and nobody else:\n",
        "    esp                      yes, by \"esp/#\" (t.toml:10)\n",
    ] {
        assert!(text.contains(part), "{part}\n{text}");
    }
}

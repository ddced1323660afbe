//! Publish and subscribe rules.

use super::{PASSWORD, user};
use crate::support::packet::{Properties, V5, V31, V311};
use crate::support::{Client, Connect, Gateway, contents};

const RULES: &str = "publish = [\"loft/#\", \"!loft/private/#\", \"users/%u/#\", \"clients/%c/#\"]\n\
                     subscribe = [\"loft/#\", \"!loft/private/#\", \"users/%u/#\", \"clients/%c/#\"]";

fn open(gateway: &Gateway, version: u8, name: &str, id: &str) -> Client {
    Connect::version(version, id).login(name, PASSWORD).open(gateway.port)
}

fn gateway() -> Gateway {
    Gateway::with(&(user("esp", RULES) + &user("admin", "")))
}

#[test]
fn what_may_not_be_published_goes_nowhere() {
    let gateway = gateway();
    let mut admin = open(&gateway, V5, "admin", "admin");
    admin.subscribe("#", 2);
    for (version, refusal) in [(V31, 0), (V311, 0), (V5, 0x87)] {
        let mut client = open(&gateway, version, "esp", "one");
        for topic in ["other", "loft/private/a", "users/admin/a", "users", "clients/two/a", "$SYS/a", "lof"] {
            for qos in 0..=2 {
                let expected = if qos == 0 { 0 } else { refusal };
                assert_eq!(client.publish(topic, "no", qos, true), expected, "{topic} at QoS {qos}");
            }
        }
        for topic in ["loft/a", "loft", "users/esp/a", "clients/one/a"] {
            assert_eq!(client.publish(topic, "yes", 1, false), 0, "{topic}");
        }
        let topics: Vec<String> = admin.drain().into_iter().map(|message| message.topic).collect();
        let topics: Vec<&str> =
            topics.iter().map(String::as_str).filter(|topic| !topic.starts_with("fence/")).collect();
        assert_eq!(topics, ["loft/a", "loft", "users/esp/a", "clients/one/a"]);
    }
}

#[test]
fn what_may_not_be_subscribed_is_refused() {
    let gateway = gateway();
    // MQTT 3.1 cannot refuse a subscription, so the answer is positive [3.9 of 3.1], and nothing is delivered
    for (version, refusal) in [(V31, None), (V311, Some(0x80)), (V5, Some(0x87))] {
        let mut client = open(&gateway, version, "esp", "one");
        let filters = ["other", "loft/private/#", "loft/private/a", "users/admin/#", "$SYS/#", "clients/two/+"];
        let wanted: Vec<(&str, u8)> = filters.iter().map(|filter| (*filter, 1)).collect();
        assert_eq!(client.subscribe_all(&wanted, &Properties::new()), [refusal.unwrap_or(1); 6]);
        let wanted = [("loft/#", 1), ("other", 0), ("users/esp/#", 2), ("clients/one/x", 0), ("loft/+/a", 1)];
        assert_eq!(client.subscribe_all(&wanted, &Properties::new()), [1, refusal.unwrap_or(0), 2, 0, 1]);
    }
    let mut client = open(&gateway, V5, "esp", "one");
    assert_eq!(client.subscribe("$share/g/loft/#", 1), 1);
    assert_eq!(client.subscribe("$share/g/other", 1), 0x87, "a group is no way around");
}

#[test]
fn what_is_denied_is_left_out_of_what_is_delivered() {
    let gateway = gateway();
    let mut admin = open(&gateway, V5, "admin", "admin");
    admin.publish("loft/private/kept", "secret", 1, true);
    admin.publish("loft/kept", "open", 1, true);
    for connect in [Connect::v5("one"), Connect::v5("one").persistent(), Connect::new("one").persistent()] {
        let connect = connect.login("esp", PASSWORD);
        let mut client = connect.open(gateway.port);
        client.subscribe("#", 1);
        admin.publish("loft/private/live", "secret", 1, false);
        admin.publish("elsewhere", "secret", 1, false);
        admin.publish("loft/live", "open", 1, false);
        let received = [client.receive(), client.receive()];
        assert_eq!(contents(&received), [("loft/kept", "open".into()), ("loft/live", "open".into())]);
        client.ping();
        client.disconnect();
        for topic in ["loft/private/later", "elsewhere", "loft/later"] {
            admin.publish(topic, "x", 1, false);
        }
        let (mut client, connack) = connect.open_with(gateway.port);
        admin.publish("loft/last", "x", 1, false);
        if connack.present {
            assert_eq!(client.receive().topic, "loft/later");
            assert_eq!(client.receive().topic, "loft/last");
        }
        client.disconnect();
    }
}

#[test]
fn client_ids_and_names_cannot_widen_a_rule() {
    let gateway = gateway();
    for id in ["+", "#", "a/b", "one/#", "+/x", "two/../one", "/"] {
        let mut client = open(&gateway, V5, "esp", id);
        for filter in ["clients/#", "clients/one/#", "clients/+/x", "clients/a/b/x", "clients/+/+", "clients/%c/x"] {
            assert_eq!(client.subscribe(filter, 0), 0x87, "{filter} with client id {id:?}");
        }
        for topic in ["clients/one/x", "clients/a/b/x", "clients//x", "clients/%c/x"] {
            assert_eq!(client.publish(topic, "", 1, false), 0x87, "{topic} with client id {id:?}");
        }
        assert_eq!(client.publish("loft/a", "", 1, false), 0, "other rules hold");
    }
}

#[test]
fn a_will_needs_permission_too() {
    let gateway = gateway();
    let mut admin = open(&gateway, V5, "admin", "admin");
    admin.subscribe("#", 1);
    for topic in ["loft/private/will", "loft/will"] {
        Connect::new("one").login("esp", PASSWORD).will(topic, "gone", 1, false).open(gateway.port).vanish();
    }
    assert_eq!(admin.receive().topic, "loft/will");
    gateway.wait_for_line("last will not published");
}

#[test]
fn the_log_says_which_rules_deny_what_to_whom() {
    let gateway = Gateway::with(&(user("esp", RULES) + "[broker.anonymous]\nsubscribe = [\"loft/#\"]"));
    let mut esp = open(&gateway, V311, "esp", "one");
    for _ in 0..3 {
        esp.publish("other", "", 1, false);
    }
    esp.publish("another", "", 1, false);
    assert_eq!(Connect::v5("nameless").open(gateway.port).subscribe("attic/#", 1), 0x87);
    let lines = gateway.wait_for_lines("do not allow it", 3);
    assert!(lines.len() == 3, "{lines:#?}");
    for part in ["`publish` rules of its user", "user=\"esp\"", "client_id=\"one\"", "topic=\"other\""] {
        assert!(lines[0].contains(part), "{part} in {lines:#?}");
    }
    assert!(lines[2].contains("`subscribe` rules of [broker.anonymous]") && lines[2].contains("attic/#"), "{lines:#?}");
}

#[test]
fn whoever_joins_a_group_without_the_right_takes_nothing_from_it() {
    let guests = "[broker.anonymous]\npublish = [\"fence/#\"]\nsubscribe = [\"public/#\", \"fence/#\"]";
    let gateway = Gateway::with(&(user("ada", "") + guests));
    for is_persistent in [false, true] {
        let filter = format!("$share/{is_persistent}/+/jobs");
        let ada = |id: &str| Connect::new(id).login("ada", PASSWORD).clean(!is_persistent);
        let mut worker = ada("worker").open(gateway.port);
        let mut guest = Connect::new("guest").clean(!is_persistent).open(gateway.port);
        assert_eq!((worker.subscribe(&filter, 1), guest.subscribe(&filter, 1)), (1, 1));
        let mut publisher = ada("publisher").open(gateway.port);
        let numbers: Vec<String> = (0..15).map(|number| number.to_string()).collect();
        let mut publish =
            || numbers.iter().for_each(|number| assert_eq!(publisher.publish("loft/jobs", number, 1, false), 0));
        let of_jobs = |client: &mut Client| {
            let of_jobs = client.drain().into_iter().filter(|message| message.topic == "loft/jobs");
            of_jobs.map(|message| message.text()).collect::<Vec<String>>()
        };
        publish();
        // nothing marks their end, because a message to the worker alone may overtake those of the group
        assert!(numbers.iter().all(|number| worker.receive().text() == *number));
        if is_persistent {
            worker.disconnect();
            publish();
            assert_eq!(of_jobs(&mut guest), [""; 0]);
            let mut worker = ada("worker").open(gateway.port);
            let mut received: Vec<String> = numbers.iter().map(|_| worker.receive().text()).collect();
            received.sort_by_key(|number| number.parse::<u8>().unwrap());
            assert_eq!(received, numbers, "they have waited for the user");
            // and over a restart, after which nobody has connected yet
            worker.disconnect();
            guest.disconnect();
        }
    }
    let gateway = gateway.end().restart();
    let mut guest = Connect::new("guest").clean(false).open(gateway.port);
    let mut publisher = Connect::new("publisher").login("ada", PASSWORD).open(gateway.port);
    publisher.publish("loft/jobs", "later", 1, false);
    guest.drain();
    let mut worker = Connect::new("worker").login("ada", PASSWORD).clean(false).open(gateway.port);
    assert_eq!(worker.receive().text(), "later");
}

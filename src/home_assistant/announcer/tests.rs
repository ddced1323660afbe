use super::*;

fn device(name: &str, fingerprint: &str, parts: &[&str]) -> Device {
    let parts: Map<String, Value> =
        parts.iter().map(|part| ((*part).into(), json!({"p": "sensor", "x": part}))).collect();
    let payload = json!({"dev": name, "cmps": parts});
    let Value::Object(payload) = payload else { panic!() };
    Device { topic: name.into(), fingerprint: fingerprint.into(), payload }
}

/// The published messages: topic and components, with `-` after those of which only the platform is left; `gone` means
/// empty.
fn told(actions: Vec<AnnouncerAction>) -> Vec<String> {
    let shown = |action| match action {
        AnnouncerAction::Save => None,
        AnnouncerAction::Publish { topic, payload } if payload.is_empty() => Some(format!("{topic} gone")),
        AnnouncerAction::Publish { topic, payload } => {
            let payload: Value = serde_json::from_slice(&payload).unwrap();
            let parts = payload["cmps"].as_object().unwrap().iter();
            let parts = parts.map(|(name, part)| format!("{name}{}", if part.get("x").is_none() { "-" } else { "" }));
            Some(format!("{topic} {}", parts.collect::<Vec<_>>().join(",")))
        }
    };
    actions.into_iter().filter_map(shown).collect()
}

/// Restarts the announcer through the file.
fn restarted(announcer: &Announcer) -> Announcer {
    let text = serde_json::to_string(announcer.memory()).unwrap();
    Announcer::new(serde_json::from_str(&text).unwrap())
}

#[test]
fn what_is_there_is_announced_once_and_again_at_every_birth() {
    let mut announcer = Announcer::default();
    let devices = || vec![device("a", "1", &["x"]), device("b", "1", &["x"])];
    let actions = announcer.announce(devices(), 0);
    assert_eq!(actions[0], AnnouncerAction::Save, "what may have to be removed is known before it is told");
    assert_eq!(told(actions), ["a x", "b x"]);
    assert_eq!(announcer.announce(devices(), 1), []);
    assert_eq!(told(announcer.birth(2)), ["a x", "b x"]);
    let mut again = restarted(&announcer);
    assert_eq!(told(again.announce(devices(), 3)), ["a x", "b x"], "nothing is on the card");
}

#[test]
fn births_are_answered_at_a_bounded_rate() {
    let mut announcer = Announcer::default();
    announcer.announce(vec![device("a", "1", &["x"])], 0);
    assert_eq!(told(announcer.birth(1_000)), ["a x"]);
    for now in 1_001..2_000 {
        assert_eq!(announcer.birth(now), []);
    }
    assert_eq!(announcer.deadline_ms(), Some(11_000));
    assert_eq!(announcer.time(10_999), []);
    assert_eq!(told(announcer.time(11_000)), ["a x"], "the last of them is answered too");
    assert_eq!(announcer.deadline_ms(), None);
    announcer.birth(11_001);
    announcer.offline();
    assert_eq!(announcer.deadline_ms(), None, "nobody is there to be answered");
}

#[test]
fn a_device_goes_at_once_where_home_assistant_is_there() {
    let mut announcer = Announcer::default();
    announcer.announce(vec![device("a", "1", &["x"]), device("b", "1", &["x"])], 0);
    announcer.birth(1_000);
    assert_eq!(told(announcer.announce(vec![device("b", "1", &["x"])], 20_000)), ["a gone"]);
    assert!(!announcer.is_done());
    assert_eq!(announcer.deadline_ms(), Some(20_000 + HEARD_MS));
    assert_eq!(announcer.time(20_000 + HEARD_MS), [AnnouncerAction::Save], "it has heard it");
    assert_eq!(told(announcer.birth(500_000)), ["b x"]);
}

#[test]
fn a_device_that_goes_while_home_assistant_is_away_stays_until_it_comes() {
    let mut announcer = Announcer::default();
    announcer.announce(vec![device("a", "1", &["x"])], 0);
    assert_eq!(told(announcer.announce(vec![], 1)), [""; 0], "its configuration stays");
    // a restart in between changes nothing
    let mut announcer = restarted(&announcer);
    assert_eq!(told(announcer.announce(vec![], 2)), ["a x"]);
    let mut announcer = restarted(&announcer);
    assert_eq!(told(announcer.announce(vec![], 3)), ["a x"]);
    assert_eq!(told(announcer.birth(4)), ["a x", "a gone"]);
    // Home Assistant has crashed again, before it could process the message
    announcer.offline();
    assert_eq!(told(announcer.birth(50_000)), ["a x", "a gone"]);
    assert_eq!(announcer.time(50_000 + HEARD_MS), [AnnouncerAction::Save]);
    assert!(announcer.is_done() && announcer.memory().is_empty());
}

#[test]
fn a_component_that_goes_leaves_its_platform_for_a_while() {
    let mut announcer = Announcer::default();
    announcer.announce(vec![device("a", "1", &["x", "y", "z"])], 0);
    // while Home Assistant is absent, the announcement stays as it was
    assert_eq!(told(announcer.announce(vec![device("a", "2", &["x"])], 1)), [""; 0]);
    let mut announcer = restarted(&announcer);
    assert_eq!(told(announcer.announce(vec![device("a", "2", &["x"])], 2)), ["a x,y,z"]);
    assert_eq!(told(announcer.birth(3)), ["a x,y,z", "a x,y-,z-"]);
    assert_eq!(announcer.announce(vec![device("a", "2", &["x"])], 4), [], "a reload that changes nothing");
    assert_eq!(told(announcer.time(3 + HEARD_MS)), ["a x"]);
    // while Home Assistant is there, it is told at once, also of a component that comes back
    assert_eq!(told(announcer.announce(vec![device("a", "3", &["y"])], 200_000)), ["a x,y", "a x-,y"]);
    assert_eq!(told(announcer.announce(vec![device("a", "4", &["x", "y"])], 200_001)), ["a x,y"]);
    assert_eq!(announcer.deadline_ms(), None);
}

#[test]
fn a_device_that_comes_back_is_not_removed() {
    let mut announcer = Announcer::default();
    announcer.announce(vec![device("a", "1", &["x"])], 0);
    announcer.announce(vec![], 1);
    assert_eq!(announcer.announce(vec![device("a", "1", &["x"])], 2), [AnnouncerAction::Save]);
    assert_eq!(told(announcer.birth(3)), ["a x"]);
    assert_eq!(told(announcer.announce(vec![], 4)), ["a gone"]);
    assert_eq!(told(announcer.announce(vec![device("a", "1", &["x"])], 5)), ["a x"]);
    assert_eq!(announcer.time(1_000_000), []);
}

#[test]
fn what_a_person_has_deleted_stays_away_until_its_configuration_changes() {
    let mut announcer = Announcer::default();
    let both = || vec![device("a", "1", &["x"]), device("b", "1", &["x"])];
    announcer.announce(both(), 0);
    let cleared = announcer.cleared("a");
    assert_eq!(cleared[0], AnnouncerAction::Save);
    assert_eq!(told(cleared), ["a gone"], "it may have been announced again in the meantime");
    assert_eq!(announcer.cleared("a"), [], "once per entity is how Home Assistant says it");
    assert_eq!(announcer.cleared("nobody's"), []);
    assert_eq!(told(announcer.birth(1)), ["b x"]);
    assert_eq!(announcer.announce(both(), 2), [], "a reload for another reason");
    let mut announcer = restarted(&announcer);
    assert_eq!(told(announcer.announce(both(), 3)), ["b x"]);
    assert_eq!(told(announcer.announce(vec![device("a", "2", &["x"]), device("b", "1", &["x"])], 4)), ["a x"]);
    // a device that was removed from the configuration in between counts as a new one
    announcer.cleared("b");
    announcer.announce(vec![device("a", "2", &["x"])], 5);
    assert_eq!(told(announcer.announce(vec![device("b", "1", &["x"])], 6)), ["b x"]);
}

#[test]
fn what_a_person_has_deleted_stays_away_when_the_announcement_is_switched_off_and_on() {
    let mut announcer = Announcer::default();
    let both = || vec![device("a", "1", &["x"]), device("b", "1", &["x"])];
    announcer.announce(both(), 0);
    announcer.cleared("a");
    let mut announcer = restarted(&announcer);
    announcer.announce(vec![], 1);
    assert_eq!(told(announcer.birth(2)), ["b x", "b gone"]);
    announcer.time(2 + HEARD_MS);
    assert!(announcer.is_done());
    let mut announcer = restarted(&announcer);
    assert_eq!(told(announcer.announce(both(), 3 + HEARD_MS)), ["b x"]);
}

#[test]
fn what_home_assistant_clears_because_it_was_removed_is_told_again_after_a_crash() {
    let mut announcer = Announcer::default();
    announcer.announce(vec![device("a", "1", &["x"])], 0);
    announcer.birth(1);
    assert_eq!(told(announcer.announce(vec![], 2)), ["a gone"]);
    assert_eq!(announcer.cleared("a"), []);
    // Home Assistant had not stored that the device is gone
    announcer.offline();
    assert_eq!(told(announcer.birth(50_000)), ["a x", "a gone"]);
    assert_eq!(announcer.announce(vec![device("a", "1", &["x"])], 50_001).len(), 2, "and it is nobody's decision");
}

#[test]
fn removals_are_bounded_where_home_assistant_never_comes() {
    let mut announcer = Announcer::default();
    for number in 0..2 * MOST_REMOVED {
        announcer.announce(vec![device(&format!("{number:05}"), "1", &["x"])], 0);
    }
    assert_eq!(announcer.memory().known.len(), MOST_REMOVED + 1);
}

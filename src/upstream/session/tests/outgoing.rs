use std::time::Duration;

use super::*;

#[test]
fn the_retained_message_of_its_topic_goes_up_whatever_its_age() {
    // the retain flag, whether it is the newest, whether the rule and the upstream keep the flag, and whether it goes up
    let cases = [
        (true, true, true, true, true),
        (false, true, true, true, false),
        (true, false, true, true, false),
        (true, true, false, true, false),
        (true, true, true, false, false),
    ];
    for (retain, is_current, rule_keeps, upstream_keeps, goes_up) in cases {
        for payload in [b"1".as_slice(), b""] {
            let mut bench = Bench::new(|settings| {
                settings.out[0].max_age = Some(Duration::from_secs(3));
                settings.out[0].retain = rule_keeps;
            });
            let draft = Draft { retain, ..draft("t", payload) };
            bench.append(&draft);
            bench.connect(Link { retain_available: upstream_keeps, ..V5 });
            let delivery = bench.reader.try_next().unwrap();
            let now = delivery.message.view().boot_ms() + 3_001;
            let actions = bench.session.delivery((Lane::First, Role::Live), delivery, is_current, now);
            bench.perform(actions);
            assert_eq!((bench.sent.len(), bench.ledger().expired), (usize::from(goes_up), u64::from(!goes_up)));
            let is_restored = bench.session.retained(&Message::new(&draft), |_| false, now).is_some();
            assert_eq!(is_restored, retain && rule_keeps && upstream_keeps, "in a pass");
        }
    }
}

//! What an upstream's session keeps of earlier rules.

use std::sync::{Arc, Mutex};

use crate::played::{Played, Say};
use crate::support::packet::packet;
use crate::support::wait_until;
use crate::{publish, start, upstream};

#[test]
fn subscriptions_that_no_rule_asks_for_any_more_are_given_up_after_a_restart() {
    for protocol in [4, 5] {
        let (given_up, told) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(Vec::new())));
        let (heard_of, said) = (given_up.clone(), told.clone());
        let played = Played::new(move |heard| {
            if let Some(filters) = heard.given_up() {
                heard_of.lock().unwrap().extend(filters);
            }
            if heard.is_connect() {
                said.lock().unwrap().push(heard.connection);
                // the session is present from the second connection on
                let none: &[u8] = if heard.version == 5 { &[0] } else { &[] };
                return Say::Instead(packet(0x20, &[&[u8::from(heard.connection > 0), 0], none]));
            }
            Say::Usual
        });
        let rules = |filters: &[&str]| {
            let rules = filters.iter().map(|filter| format!("[[upstream.in]]\ntopic_filter = \"{filter}\"\n"));
            upstream(played.port, &format!("protocol = {protocol}")) + &rules.collect::<String>()
        };
        let (gateway, _) = start(&rules(&["old/#", "kept/#"]));
        wait_until("both are asked for", || played.log().filters.len() == 2);
        let gateway = gateway.end().setup().config(&rules(&["kept/#", "new/#"])).start();
        let line = gateway.wait_for_line("unsubscribed upstream");
        assert!(line.contains("old/#"), "{line}");
        // and then it is known that the session does not have it
        let gateway = gateway.end().setup().config(&rules(&["kept/#", "new/#"])).start();
        publish(&gateway, "a", &["1"], false);
        played.wait_for(&["1"]);
        assert_eq!(*given_up.lock().unwrap(), ["old/#"]);
        assert!(told.lock().unwrap().len() >= 3);
    }
}

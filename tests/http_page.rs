//! The page in a browser.

#![allow(clippy::unwrap_used)]

mod support;

use std::time::{Duration, Instant};

use serde_json::{Value, json};
use support::broker::Setup;
use support::browser::Browser;
use support::http::{get, request};
use support::wait_until;

const CONFIG: &str = "[[sensor]]\nname = \"loft-motion\"\npin = 17\ntopic = \"loft/motion1\"\nwarm_up = \"0 s\"\nhold = \"500 ms\"\n\
                      simulate = [\"2 s off\", \"2 s on\"]\n\
                      [[upstream]]\nname = \"home\"\naddresses = [\"mqtt://127.0.0.1:1\"]\n[[upstream.out]]\ntopic_filter = \"#\"\n";
const STATE: &str = "document.querySelector('#sensor-list .state')?.textContent";

#[test]
fn the_page_shows_what_happens_and_survives_a_restart() {
    let (setup, http) = Setup::default().config(CONFIG).http();
    let gateway = setup.start();
    let browser = Browser::start(1200, 1600, &[]);
    browser.open(&format!("http://localhost:{http}/"));
    browser.wait_for("document.getElementById('link').textContent.startsWith('online')");
    assert_eq!(browser.run("return document.getElementById('name').textContent"), "test");
    motion_appears_within_a_second(&browser, http);
    messages_appear(&browser, http);
    browser.wait_for("document.getElementById('upstreams').textContent.includes('backlog')");
    assert_eq!(browser.complaints(), [] as [String; 0]);

    let gateway = gateway.kill();
    browser.wait_for("document.getElementById('link').textContent.startsWith('offline')");
    let _gateway = gateway.restart();
    browser.wait_for("document.getElementById('link').textContent.startsWith('online')");
    request(http, "PUT", "/api/v1/topics/after/restart", &[], b"here again");
    browser.wait_for("document.getElementById('messages').textContent.includes('here again')");
    // the only complaint is that the gateway could not be reached, by whatever the page asked for at that moment
    let others: Vec<String> = browser
        .complaints()
        .into_iter()
        .filter(|line| !line.contains("/api/v1/") || !line.contains("net::ERR_"))
        .collect();
    assert_eq!(others, [] as [String; 0]);
}

fn motion_appears_within_a_second(browser: &Browser, http: u16) {
    for (state, word) in [("on", "Motion"), ("off", "No motion"), ("on", "Motion")] {
        wait_until("the sensor", || get(http, "/api/v1/sensors/loft-motion").json()["state"] == state);
        let begin = Instant::now();
        browser.wait_for(&format!("{STATE} === '{word}'"));
        // a page that polls would be later, but a browser on a busy machine may be slow
        assert!(begin.elapsed() < Duration::from_secs(4), "{:?}", begin.elapsed());
    }
    browser.wait_for("document.querySelectorAll('svg.day rect.on').length > 0");
}

fn messages_appear(browser: &Browser, http: u16) {
    request(
        http,
        "PUT",
        "/api/v1/topics/kitchen/%3Cb%3E?retain=true",
        &[],
        br#"{"temperature":21.5,"note":"<img src=x>"}"#,
    );
    browser.wait_for("document.getElementById('messages').textContent.includes('kitchen/<b>')");
    assert_eq!(
        browser.run("return document.querySelectorAll('#messages img, #messages b').length"),
        0,
        "text stays text"
    );
    browser.run("[...document.querySelectorAll('details')].find((d) => d.textContent.includes('kitchen')).open = true");
    browser.wait_for(
        "[...document.querySelectorAll('pre')].some((pre) => pre.textContent.includes('{\\n  \"temperature\": 21.5'))",
    );
    // filter and publish by keyboard only
    browser.run("document.getElementById('filter').select()");
    browser.keys("kitchen/#\u{e007}");
    browser.wait_for("!document.getElementById('messages').textContent.includes('loft/motion1')");
    browser.run("document.getElementById('publish-topic').focus()");
    browser.keys("kitchen/lamp\u{e004}on\u{e004}\u{e004}\u{e00d}\u{e004}\u{e00d}");
    browser.wait_for("document.getElementById('publish-result').textContent.startsWith('published on kitchen/lamp')");
    let lamp = get(http, "/api/v1/topics/kitchen/lamp");
    assert_eq!((lamp.text().as_str(), lamp.header("pigateway-retained")), ("on", Some("true")));
    browser.wait_for("document.getElementById('messages').textContent.includes('kitchen/lamp')");
    // the page reports what a user may not do
    browser.run(
        "document.getElementById('publish-topic').value = '$SYS/x'; document.getElementById('publish').requestSubmit()",
    );
    browser.wait_for("document.getElementById('publish-result').textContent.includes('may not publish')");
    // the browser logs the refusal too
    let refused: Vec<String> = browser.complaints();
    assert!(refused.len() == 1 && refused[0].contains("403"), "{refused:?}");
    browser.run("document.getElementById('filter').value = '#'; document.getElementById('filter').dispatchEvent(new Event('input'))");
    browser.wait_for("document.getElementById('messages').textContent.includes('loft/motion1')");
}

#[test]
fn topics_are_found_folded_drawn_and_deleted() {
    let (setup, http) = Setup::default().config(CONFIG).http();
    let _gateway = setup.start();
    for (topic, payload) in [
        ("zigbee2mqtt/Kitchen lamp", r#"{"state":"ON","power":4.5,"color":{"x":0.3}}"#),
        ("zigbee2mqtt/Kitchen lamp/availability", r#"{"state":"online"}"#),
        ("zigbee2mqtt/hall/door", r#"{"contact":true}"#),
        ("garden/temperature", "21.5"),
    ] {
        let topic = topic.replace(' ', "%20");
        request(http, "PUT", &format!("/api/v1/topics/{topic}?retain=true"), &[], payload.as_bytes());
    }
    let found = get(http, "/api/v1/topics?contains=KITCHEN").json();
    assert_eq!(found["messages"].as_array().unwrap().len(), 2, "{found}");
    let browser = Browser::start(1000, 1200, &[]);
    browser.open(&format!("http://localhost:{http}/"));
    browser.wait_for("document.getElementById('messages').textContent.includes('garden/temperature')");
    // search for any part of a topic
    browser.run("document.getElementById('filter').select()");
    browser.keys("kitchen\u{e007}");
    browser.wait_for("document.getElementById('messages').children.length === 2");
    browser.run("document.getElementById('filter').select()");
    browser.keys("#\u{e007}");
    browser.wait_for("document.getElementById('messages').textContent.includes('garden/temperature')");
    // a chart of numbers, one for each field of an object
    let row = "[...document.querySelectorAll('#messages details')].find((d) => d.textContent.includes('Kitchen lamp'))";
    browser.run(&format!("{row}.open = true"));
    let lamp = "/api/v1/topics/zigbee2mqtt/Kitchen%20lamp?retain=true";
    request(http, "PUT", lamp, &[], br#"{"state":"ON","power":9.5,"color":{"x":0.4}}"#);
    browser.wait_for(&format!("[...{row}.querySelectorAll('option')].map((o) => o.value).join() === 'power,color.x'"));
    let label = format!("{row}.querySelector('svg.chart').getAttribute('aria-label')");
    browser.wait_for(&format!("{label}.includes('power: 2 values from 4.5 to 9.5')"));
    browser.run(&format!(
        "const select = {row}.querySelector('select'); select.value = 'color.x'; select.dispatchEvent(new Event('change'))"
    ));
    browser.wait_for(&format!("{label}.includes('color.x: 2 values from 0.3 to 0.4')"));
    // a tree that folds
    browser.run("document.getElementById('as-tree').click()");
    let branch = |name: &str| {
        format!(
            "[...document.querySelectorAll('details.branch')].find((d) => d.querySelector('summary').textContent === '{name}')"
        )
    };
    browser.wait_for(&branch("zigbee2mqtt (3)"));
    browser.wait_for(&format!("!{}.open", branch("zigbee2mqtt (3)")));
    assert_eq!(browser.run(&format!("return Boolean({})", branch("Kitchen lamp (1)"))), true);
    // one retained message is deleted, after a question
    browser.run("window.asked = []; window.confirm = (text) => { asked.push(text); return asked.length > 1; }");
    let door = "document.querySelector('[aria-label=\"Delete the retained message of zigbee2mqtt/hall/door\"]')";
    browser.run(&format!("{door}.click()"));
    assert_eq!(get(http, "/api/v1/topics/zigbee2mqtt/hall/door").status, 200, "the answer was no");
    browser.run(&format!("{door}.click()"));
    browser.wait_for(&branch("zigbee2mqtt (2)"));
    assert_eq!(get(http, "/api/v1/topics/zigbee2mqtt/hall/door").status, 404);
    // the history of a sensor, enlarged, and as a list
    browser.run(
        "const zoom = document.querySelector('.sensor select'); zoom.value = '1'; zoom.dispatchEvent(new Event('change')); \
         document.querySelector('.sensor details').open = true",
    );
    browser.wait_for("document.querySelector('svg.day').getAttribute('aria-label').includes('last 1 hour')");
    browser.wait_for("document.querySelector('.sensor ul').textContent.includes('Motion')");
    // the description of the upstream in words
    browser.wait_for("document.getElementById('upstreams').textContent.includes('# goes up')");
    browser.wait_for(
        "/Of \\d+ messages for it, 0 have arrived, \\d+ wait/.test(document.getElementById('upstreams').textContent)",
    );
    assert_eq!(browser.complaints(), [] as [String; 0]);
}

#[test]
fn everything_has_a_name_for_those_who_do_not_see_it() {
    let (setup, http) = Setup::default().config(CONFIG).http();
    let _gateway = setup.start();
    let browser = Browser::start(390, 844, &["--force-dark-mode"]);
    browser.open(&format!("http://localhost:{http}/"));
    browser.wait_for("document.querySelector('svg.day') && document.querySelector('details')");
    assert_eq!(browser.run("return matchMedia('(prefers-color-scheme: dark)').matches"), true);
    let width = browser.run("return document.documentElement.scrollWidth - innerWidth");
    assert!(width.as_i64().unwrap() <= 0, "nothing to scroll sideways on a phone");
    let controls =
        ["button", "textbox", "combobox", "checkbox", "link", "image", "img", "form", "region", "article", "table"];
    let mut seen = Vec::new();
    for node in browser.accessibility() {
        let text = |key: &str| node[key]["value"].as_str().unwrap_or_default().to_owned();
        let (role, name) = (text("role"), text("name"));
        if node["ignored"] == json!(true) || !controls.contains(&role.as_str()) {
            continue;
        }
        assert!(!name.is_empty(), "a {role} without a name: {node}");
        seen.push((role, name));
    }
    let has = |role: &str, name: &str| seen.iter().any(|(r, n)| r == role && n.contains(name));
    assert!(has("textbox", "topic filter") && has("textbox", "Payload") && has("checkbox", "Retain"), "{seen:?}");
    assert!(has("button", "Publish") && has("region", "Sensors") && has("article", "loft-motion"), "{seen:?}");
    assert!(seen.iter().any(|(_, name)| name.contains("last 24 hours")), "{seen:?}");
    // the keyboard reaches every control, from the top
    let mut reached = Vec::new();
    browser.run("document.activeElement.blur()");
    for _ in 0..12 {
        browser.keys("\u{e004}");
        reached.push(browser.run("return document.activeElement.id || document.activeElement.tagName"));
    }
    for id in ["publish-topic", "publish-payload", "publish-qos", "publish-retain", "publish-clear", "filter"] {
        assert!(reached.contains(&Value::from(id)), "{id} in {reached:?}");
    }
    assert_eq!(browser.complaints(), [] as [String; 0]);
}

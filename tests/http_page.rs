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
    browser.wait_for("document.getElementById('link').textContent === 'online'");
    assert_eq!(browser.run("return document.getElementById('name').textContent"), "test");
    motion_appears_within_a_second(&browser, http);
    messages_appear(&browser, http);
    browser.wait_for("document.getElementById('upstreams').textContent.includes('backlog')");
    assert_eq!(browser.complaints(), [] as [String; 0]);

    let gateway = gateway.kill();
    browser.wait_for("document.getElementById('link').textContent.startsWith('offline')");
    let _gateway = gateway.restart();
    browser.wait_for("document.getElementById('link').textContent === 'online'");
    request(http, "PUT", "/api/v1/topics/after/restart", &[], b"here again");
    browser.wait_for("document.getElementById('messages').textContent.includes('here again')");
    // that it could not be reached is the only thing to complain about
    let others: Vec<String> = browser
        .complaints()
        .into_iter()
        .filter(|line| !line.contains("/api/v1/stream") || !line.contains("net::ERR_"))
        .collect();
    assert_eq!(others, [] as [String; 0]);
}

fn motion_appears_within_a_second(browser: &Browser, http: u16) {
    for (state, word) in [("on", "Motion"), ("off", "No motion"), ("on", "Motion")] {
        wait_until("the sensor", || get(http, "/api/v1/sensors/loft-motion").json()["state"] == state);
        let begin = Instant::now();
        browser.wait_for(&format!("{STATE} === '{word}'"));
        // a page that asked now and then would be later; a browser beside a load may take its time
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
    // filter and publish by keyboard alone
    browser.run("document.getElementById('filter').select()");
    browser.keys("kitchen/#\u{e007}");
    browser.wait_for("!document.getElementById('messages').textContent.includes('loft/motion1')");
    browser.run("document.getElementById('publish-topic').focus()");
    browser.keys("kitchen/lamp\u{e004}on\u{e004}\u{e004}\u{e00d}\u{e004}\u{e00d}");
    browser.wait_for("document.getElementById('publish-result').textContent.startsWith('published on kitchen/lamp')");
    let lamp = get(http, "/api/v1/topics/kitchen/lamp");
    assert_eq!((lamp.text().as_str(), lamp.header("pigateway-retained")), ("on", Some("true")));
    browser.wait_for("document.getElementById('messages').textContent.includes('kitchen/lamp')");
    // what a user may not do is said
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
    assert!(has("textbox", "Topic filter") && has("textbox", "Payload") && has("checkbox", "Retain"), "{seen:?}");
    assert!(has("button", "Publish") && has("region", "Sensors") && has("article", "loft-motion"), "{seen:?}");
    assert!(seen.iter().any(|(_, name)| name.contains("last 24 hours")), "{seen:?}");
    // the keyboard reaches all of it, from the top
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

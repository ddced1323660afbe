//! The page on a phone, and the page of one sensor.

#![allow(clippy::unwrap_used)]

mod support;

use pigateway::sensors::diagnosis::PinEdges;
use pigateway::status::EdgeFigures;
use serde_json::json;
use support::broker::Setup;
use support::browser::Browser;
use support::client::Connect;
use support::http::{get, request};
use support::{quick_hash, wait_until};

const IS_ONLINE: &str = "document.getElementById('link').textContent.startsWith('online')";

/// The words that are broken between two letters or digits. Names in fields of one line are cut off instead, and texts that
/// are too long for their box can be scrolled there.
const BROKEN: &str = r"
const broken = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
const range = document.createRange(), tops = (node, from, to) => {
  range.setStart(node, from); range.setEnd(node, to);
  return [...range.getClientRects()].filter((r) => r.width).map((r) => Math.round(r.top));
};
while (walker.nextNode()) {
  const node = walker.currentNode;
  if (/^(SCRIPT|STYLE|OPTION)$/.test(node.parentNode.nodeName)) continue;
  for (const match of node.data.matchAll(/[\p{L}\p{N}]{2,}/gu)) {
    const lines = new Set(tops(node, match.index, match.index + match[0].length));
    if (lines.size > 1) broken.push(match[0]);
  }
}
return broken;";

const LONG: &str = "averylongnamethatgoesonandonwithoutanyspaceinitwhatsoeverandthensome";

#[track_caller]
fn fits(browser: &Browser, what: &str) {
    let width = browser.run("return [innerWidth, document.documentElement.scrollWidth]");
    assert_eq!(width, json!([360, 360]), "{what}: nothing to scroll sideways");
    assert_eq!(browser.run(BROKEN), json!([]), "{what}: broken words");
}

#[test]
fn on_a_phone_nothing_overflows_or_breaks_within_a_word_and_publish_stands_last() {
    let hash = quick_hash("secret");
    let config = format!(
        "[[broker.user]]\nname = \"boss\"\nadmin = true\npassword_hash = \"{hash}\"\n\
         [[broker.user]]\nname = \"{LONG}\"\npassword_hash = \"{hash}\"\npublish = [\"{LONG}/{LONG}\"]\n\
         [[sensor]]\nname = \"{}\"\npin = 17\ntopic = \"{LONG}/{LONG}\"\nwarm_up = \"0 s\"\nhold = \"100 ms\"\n\
         simulate = [\"300 ms off\", \"300 ms on\"]\n\
         [[sensor]]\nname = \"loft\"\npin = 18\ntopic = \"loft/motion1\"\n\
         [[upstream]]\nname = \"home\"\naddresses = [\"mqtt://127.0.0.1:1\"]\n[[upstream.out]]\ntopic_filter = \"{LONG}/#\"\n\
         [[upstream.out]]\ntopic_filter = \"home/+/kitchen/#\"\n",
        &LONG[..64]
    );
    let (setup, http) = Setup::default().config(&config).http();
    let gateway = setup.start();
    let mut client = Connect::new(LONG).login(LONG, "secret").open(gateway.port);
    client.publish(&format!("{LONG}/{LONG}"), LONG.repeat(20), 1, true);
    for topic in ["home/kitchen/temperature".into(), format!("{LONG}/{LONG}/{LONG}/below")] {
        request(
            http,
            "PUT",
            &format!("/api/v1/topics/{topic}?retain=true"),
            &[],
            b"{\"temperature\":21.5,\"on\":true}",
        );
    }
    let browser = Browser::start(800, 800, &[]);
    browser.be_a_phone(360, 740);
    browser.open(&format!("http://localhost:{http}/"));
    browser.wait_for(IS_ONLINE);
    browser.run("document.getElementById('sign-in-open').click()");
    fits(&browser, "the form to sign in");
    browser.run("document.getElementById('sign-in-user').focus()");
    browser.keys("boss\u{e004}secret\u{e007}");
    browser.wait_for("document.getElementById('users').textContent.includes('boss')");
    browser.wait_for("document.getElementById('clients').textContent.includes('averylong')");
    browser.wait_for("document.getElementById('upstreams').textContent.includes('goes up')");
    browser.wait_for("document.getElementById('messages').textContent.includes('temperature')");
    for tree in [false, true] {
        if tree {
            browser.run("document.getElementById('as-tree').click()");
        }
        browser.wait_for(&format!("Boolean(document.querySelector('details.branch')) === {tree}"));
        browser.run("document.querySelectorAll('details').forEach((d) => { d.open = true; })");
        browser.wait_for("document.querySelector('#messages pre').textContent.length > 0");
        fits(&browser, if tree { "a tree" } else { "a list" });
    }
    let last = "const shown = [...document.querySelectorAll('main > section')].filter((s) => s.getClientRects().length); \
                shown.sort((a, b) => a.getBoundingClientRect().top - b.getBoundingClientRect().top); \
                return [shown.length > 6, shown.at(-1).id]";
    assert_eq!(browser.run(last), json!([true, "publish-section"]));
    // the check itself finds a broken word
    let breaking = "const users = document.getElementById('users'); users.style.overflowWrap = 'anywhere'; \
                    users.querySelectorAll('p').forEach((p) => { p.style.maxWidth = '8rem'; })";
    browser.run(breaking);
    assert_ne!(browser.run(BROKEN), json!([]));
    // one column: no element is beside another
    let left = "return new Set([...document.querySelectorAll('main > section')].filter((s) => s.getClientRects().length)\
                .map((s) => s.getBoundingClientRect().left)).size";
    assert_eq!(browser.run(left), 1);
    browser.run("location.hash = '#sensor=loft'");
    browser.wait_for("document.getElementById('edges-text').textContent.length > 10");
    fits(&browser, "a sensor");
    assert_eq!(browser.complaints(), [] as [String; 0]);
}

#[test]
fn the_page_of_a_sensor_says_what_its_edges_look_like() {
    let config = "[[sensor]]\nname = \"loft ü\"\npin = 17\ntopic = \"loft/motion1\"\nwarm_up = \"0 s\"\nhold = \"0 s\"\n\
                  simulate = [\"300 ms off\", \"400 ms on\"]\n[[sensor]]\nname = \"attic\"\npin = 18\ntopic = \"attic\"\n";
    let (setup, http) = Setup::default().config(&config.replace("loft ü", "loft-ü")).http();
    let _gateway = setup.start();
    let edges = || get(http, "/api/v1/sensors/loft-%C3%BC/edges").json();
    wait_until("edges", || edges()["figures"]["pulses"].as_u64() > Some(2));
    let answer = edges();
    let list = answer["edges"].as_array().unwrap();
    assert!(list.windows(2).all(|pair| pair[0]["active"] != pair[1]["active"]), "{answer}");
    let figures = &answer["figures"];
    assert!(figures["shortest_ms"].as_u64() >= Some(250) && figures["short_pulses"] == 0, "{answer}");
    assert_eq!(answer["finding"], json!(null));
    assert_eq!(get(http, "/api/v1/sensors/nobody/edges").status, 404);

    let browser = Browser::start(1200, 1000, &[]);
    browser.open(&format!("http://localhost:{http}/"));
    browser.wait_for("document.querySelector('article[aria-label=\"Sensor loft-ü\"] h3 a')");
    browser.run("document.querySelector('article[aria-label=\"Sensor loft-ü\"] h3 a').click()");
    browser.wait_for("document.getElementById('edges-text').textContent.includes('Its motion is made up')");
    let shown = "[...document.querySelectorAll('article')].filter((a) => a.getClientRects().length).map((a) => a.getAttribute('aria-label')).join()";
    assert_eq!(browser.run(&format!("return {shown}")), "Sensor loft-ü");
    assert_eq!(browser.run("return document.getElementById('publish-section').getClientRects().length"), 0);
    browser.wait_for("document.querySelector('#edges-wave polyline')");
    let label = "document.getElementById('edges-wave').getAttribute('aria-label')";
    browser.wait_for(&format!("/^Edges of loft-ü: \\d+ edges within/.test({label})"));
    browser.run("const zoom = document.getElementById('edges-zoom'); zoom.value = '1000'; zoom.dispatchEvent(new Event('change'))");
    browser.wait_for(&format!("/^Edges of loft-ü: [1-4] edges? within/.test({label})"));
    each_kind_of_trouble_is_said(&browser);
    // one day in parts
    browser.run("const zoom = document.querySelector('.sensor.chosen select'); zoom.value = '6'; zoom.dispatchEvent(new Event('change'))");
    let day = "document.querySelector('.sensor.chosen svg.day').getAttribute('aria-label')";
    browser.wait_for(&format!("{day}.includes('last 6 hours')"));
    browser.run("document.querySelector('[aria-label=\"Earlier, loft-ü\"]').click()");
    browser.wait_for(&format!("{day}.includes('6 hours until') && {day}.includes(': 0 motions')"));
    browser.run("document.querySelector('[aria-label=\"Later, loft-ü\"]').click()");
    browser.wait_for(&format!("{day}.includes('last 6 hours')"));
    browser.run("document.querySelector('#sensor-page a').click()");
    browser.wait_for("document.getElementById('publish-section').getClientRects().length > 0");
    // a sensor that does not exist
    browser.run("location.hash = '#sensor=nobody'");
    browser.wait_for("document.getElementById('edges-text').textContent === 'There is no such sensor.'");
    assert_eq!(browser.complaints(), [] as [String; 0]);
}

/// Recordings of faulty sensors, in the form of the interface's answers, because no simulated sensor is ever faulty.
fn each_kind_of_trouble_is_said(browser: &Browser) {
    browser.run(
        "window.answer = null; const real = window.fetch; window.fetch = (url, ...more) => answer && String(url).endsWith('/edges') \
         ? Promise.resolve(new Response(JSON.stringify(answer))) : real(url, ...more)",
    );
    for (recording, row, said) in [
        ("hum_50_hz", 0, "Mains hum: "),
        ("radio_every_30_s", 1, "Bursts as when a radio sends: "),
        ("floating_pin", 2, "A pin that nothing drives: "),
        ("loose_contact", 3, "Pulses shorter than a PIR can make: "),
        ("stuck_active", 4, "Stuck: active for "),
        ("am312_hallway", 9, "Nothing is the matter: "),
    ] {
        let path = format!("{}/tests/fixtures/pir/{recording}.txt", env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(path).unwrap();
        let until = text.lines().find_map(|line| line.strip_prefix("# until ")).unwrap().parse().unwrap();
        let mut edges = PinEdges::default();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let (at, level) = line.split_once(' ').unwrap();
            edges.push(level == "1", at.parse().unwrap());
        }
        let list: Vec<_> = edges.last().copy();
        let list: Vec<_> = list.iter().map(|(at, active)| json!({ "boot_ms": at, "active": active })).collect();
        let finding = edges.finding(until, 1_800_000);
        let answer =
            json!({ "finding": finding, "figures": EdgeFigures::of(&edges.last().copy(), until), "edges": list });
        browser.run(&format!("answer = {answer}"));
        // the sensor is shown as a real one again and again, because each update from the gateway marks it as simulated
        browser.wait_for(&format!(
            "(sensors.get('loft-ü').data.simulated = false, lookAtEdges(), \
             document.getElementById('edges-text').textContent.startsWith('{said}'))"
        ));
        let rows = "[...document.querySelectorAll('#edges-kinds tbody tr')].map((row) => row.cells[3].textContent)";
        let found = browser.run(&format!("return {rows}"));
        let expected: Vec<&str> = (0..5).map(|at| if at == row { "yes" } else { "no" }).collect();
        assert_eq!(found, json!(expected), "{recording}");
        let remedy = browser.run("return document.getElementById('edges-remedy').textContent");
        let expected = finding.map(|finding| format!("To do: {}.", finding.remedy)).unwrap_or_default();
        assert_eq!(remedy, json!(expected));
    }
    browser.run("answer = null");
}

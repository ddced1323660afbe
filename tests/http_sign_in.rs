//! Signing in on the page and the controls for administrators, tested in a browser.

#![allow(clippy::unwrap_used)]

mod support;

use serde_json::json;
use support::broker::Setup;
use support::browser::Browser;
use support::client::Connect;
use support::http::request;
use support::{quick_hash, wait_until};

fn config(accept: &str) -> String {
    let user = |name: &str, more: &str| {
        let hash = quick_hash(&format!("secret {name}"));
        format!("[[broker.user]]\nname = \"{name}\"\npassword_hash = \"{hash}\"\n{more}\n")
    };
    format!("[broker.anonymous]\naccept = \"{accept}\"\n")
        + &user("boss", "admin = true\nsubscribe = [\"#\", \"$SYS/#\"]")
        + &user("plain", "subscribe = [\"home/#\"]")
}

const IS_ONLINE: &str = "document.getElementById('link').textContent.startsWith('online')";

fn is_shown(id: &str) -> String {
    format!("document.getElementById('{id}').getClientRects().length > 0")
}

/// Replaces the text of a field by typing.
fn fill(browser: &Browser, id: &str, text: &str) {
    browser.run(&format!("const field = document.getElementById('{id}'); field.focus(); field.select()"));
    browser.keys(&if text.is_empty() { "\u{e017}".into() } else { text.replace('\n', "\u{e006}") });
}

fn sign_in(browser: &Browser, user: &str, password: &str) {
    browser.wait_for(&is_shown("sign-in-form"));
    fill(browser, "sign-in-user", user);
    fill(browser, "sign-in-password", &format!("{password}\u{e007}"));
}

/// The complaints, except for that of the browser itself about an answer with this status.
fn others(browser: &Browser, status: &str) -> Vec<String> {
    browser.complaints().into_iter().filter(|line| !line.contains(&format!("status of {status}"))).collect()
}

#[test]
fn whoever_is_not_let_in_signs_in_by_a_form_and_out_again() {
    let (setup, http) = Setup::default().config(&config("none")).http();
    let gateway = setup.start();
    let browser = Browser::start(1200, 1600, &[]);
    let url = format!("http://localhost:{http}/");
    browser.open(&url);
    browser.wait_for(&is_shown("sign-in-form"));
    let sections = "[...document.querySelectorAll('main > section')].filter((s) => s.getClientRects().length).map((s) => s.id).join()";
    assert_eq!(browser.run(&format!("return {sections}")), "sign-in", "nothing else is shown");
    assert_eq!(browser.complaints(), [] as [String; 0], "nothing was refused");
    sign_in(&browser, "plain", "wrong");
    browser.wait_for("document.getElementById('sign-in-result').textContent.includes('wrong user name or password')");
    assert_eq!(others(&browser, "401"), [] as [String; 0]);
    sign_in(&browser, "plain", "secret plain");
    browser.wait_for(&format!("{IS_ONLINE} || document.getElementById('link').textContent === 'connecting'"));
    browser.wait_for(&is_shown("sign-out"));
    assert_eq!(browser.run("return [document.getElementById('who').textContent, document.cookie].join()"), "plain,");
    for id in ["sign-in", "users-section", "sign-in-open"] {
        assert_eq!(browser.run(&format!("return {}", is_shown(id))), false, "{id}");
    }
    // the page does not ask for data that the user may not read
    browser.run("document.getElementById('filter').value = 'home/#'; document.getElementById('filter').dispatchEvent(new Event('input'))");
    browser.wait_for(IS_ONLINE);
    request(http, "PUT", "/api/v1/topics/home/a", &[("Authorization", "Basic Ym9zczpzZWNyZXQgYm9zcw==")], b"for plain");
    browser.wait_for("document.getElementById('messages').textContent.includes('for plain')");
    browser.run(
        "document.getElementById('publish-topic').value = 'home/b'; document.getElementById('publish').requestSubmit()",
    );
    browser.wait_for("document.getElementById('publish-result').textContent.startsWith('published on home/b')");
    // the sign-in survives a reload of the page, and signing out ends it
    browser.open(&url);
    browser.wait_for(&is_shown("sign-out"));
    browser.run("document.getElementById('sign-out').click()");
    browser.wait_for(&is_shown("sign-in-form"));
    // it ends with the gateway too, and the page shows that by itself
    sign_in(&browser, "boss", "secret boss");
    browser.wait_for(IS_ONLINE);
    let _gateway = gateway.kill().restart();
    browser.wait_for(&is_shown("sign-in-form"));
}

#[test]
fn an_administrator_makes_users_disconnects_and_deletes_below() {
    let (setup, http) = Setup::default().config(&config("loopback")).http();
    let gateway = setup.start();
    let browser = Browser::start(1200, 1600, &[]);
    browser.open(&format!("http://localhost:{http}/"));
    // guests can still read, and find no other controls
    browser.wait_for(IS_ONLINE);
    assert_eq!(browser.run(&format!("return {} || {}", is_shown("users-section"), is_shown("sign-in"))), false);
    let mut client = Connect::new("sensor").open(gateway.port);
    for topic in ["old/attic", "old/attic/a", "old/attic/b/c", "new/x"] {
        client.publish(topic, "x", 1, true);
    }
    browser.run("document.getElementById('as-tree').click()");
    let branch = "[...document.querySelectorAll('details.branch')].find((d) => d.querySelector('summary').textContent === 'attic (2)')";
    browser.wait_for(branch);
    let below = "[aria-label=\"Delete all retained messages below old/attic/\"]";
    let opened = "document.querySelectorAll('details.branch').forEach((d) => { d.open = true; })";
    browser.run(opened);
    let has_button = format!("document.querySelector('{below}').getClientRects().length > 0");
    assert_eq!(browser.run(&format!("return {has_button}")), false, "guests have no such button");
    browser.run("document.getElementById('sign-in-open').click()");
    sign_in(&browser, "boss", "secret boss");
    browser.wait_for(&is_shown("users-section"));
    browser.wait_for("document.getElementById('users').textContent.includes('plain')");
    // deleting below a branch
    browser.run("window.asked = []; window.confirm = (text) => { asked.push(text); return asked.length > 1; }; document.getElementById('as-tree').click()");
    browser.wait_for(branch);
    browser.run(opened);
    let press = format!("document.querySelector('{below}').click()");
    browser.run(&press);
    browser.wait_for("asked.length === 1");
    browser.run(&press);
    browser.wait_for(
        "document.getElementById('topics-result').textContent === 'deleted 2 retained messages below old/attic/'",
    );
    assert_eq!(browser.run("return asked[1]"), "Delete 2 retained messages below old/attic/? This cannot be undone.");
    browser.wait_for(&format!("!({branch})"));
    let boss = [("Authorization", "Basic Ym9zczpzZWNyZXQgYm9zcw==")];
    let left = request(http, "GET", "/api/v1/retained?filter=%23", &boss, b"").json();
    assert_eq!(left, json!({ "messages": 2, "kept": 0 }));
    // disconnecting a client
    browser.wait_for("document.querySelector('[aria-label=\"Disconnect sensor\"]')");
    browser.run("document.querySelector('[aria-label=\"Disconnect sensor\"]').click()");
    browser.wait_for("document.getElementById('clients-result').textContent === 'disconnected sensor'");
    client.closed();
    // making a user: a mistake is reported, and the other fields keep their texts
    let name = "esp <b>\"ü\"/";
    fill(&browser, "user-name", name);
    fill(&browser, "user-password", "first");
    fill(&browser, "user-publish", "a/#/b");
    browser.run("document.getElementById('user-save').click()");
    browser.wait_for("document.getElementById('user-result').textContent.includes('not a topic filter')");
    fill(&browser, "user-publish", "esp/#\n!esp/x");
    browser.run("document.getElementById('user-save').click()");
    browser.wait_for("document.getElementById('user-result').textContent.startsWith('added esp')");
    let article = "document.querySelector('article[aria-label^=\"User esp\"]')";
    browser.wait_for(&format!("{article}?.textContent.includes('publishes esp/#, !esp/x; receives #')"));
    let mut client = Connect::v5("e").login(name, "first").open(gateway.port);
    assert_eq!(client.publish("other", "x", 1, false), 0x87);
    browser.run(&format!("{article}.querySelectorAll('button')[0].click()"));
    fill(&browser, "user-password", "second");
    browser.run("document.getElementById('user-save').click()");
    browser.wait_for("document.getElementById('user-result').textContent.startsWith('changed esp')");
    client.closed_with(0x98);
    let mut client = Connect::v5("e").login(name, "second").open(gateway.port);
    browser.run(&format!("{article}.querySelectorAll('button')[1].click()"));
    browser.wait_for("document.getElementById('user-result').textContent.startsWith('removed esp')");
    client.closed_with(0x98);
    browser.wait_for(&format!("!{article}"));
    assert_eq!(browser.run("return document.querySelectorAll('#users b').length"), 0);
    assert_eq!(others(&browser, "400"), [] as [String; 0]);
    // without the right the page has no such controls, and a removed user is asked to sign in again
    let path = gateway.dir().join("pigateway.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("admin = true\n", "")).unwrap();
    gateway.signal(rustix::process::Signal::HUP);
    wait_until("the reload", || request(http, "GET", "/api/v1/users", &boss, b"").status == 403);
    browser.wait_for(&format!("!({}) && {}", is_shown("users-section"), is_shown("sign-in-open")));
}

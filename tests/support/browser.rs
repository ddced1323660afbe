//! A browser: Chromium, controlled through chromedriver by HTTP [W3C WebDriver].

use std::process::Command;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use base64ct::{Base64, Encoding};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::http::try_request;
use super::{PATIENCE, Process, free_port};

/// A browser with one page. Closed when dropped.
pub struct Browser {
    port: u16,
    session: String,
    _driver: Process,
    _profile: TempDir,
}

impl Browser {
    /// Starts a browser with a window of this size and further arguments.
    #[track_caller]
    pub fn start(width: u32, height: u32, more: &[&str]) -> Browser {
        let port = free_port();
        let driver = Process::start(Command::new("chromedriver").arg(format!("--port={port}")));
        let profile = tempfile::tempdir().unwrap();
        let mut args: Vec<String> = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
        ]
        .iter()
        .chain(more)
        .map(ToString::to_string)
        .collect();
        args.push(format!("--window-size={width},{height}"));
        args.push(format!("--user-data-dir={}", profile.path().display()));
        let wanted = json!({ "capabilities": { "alwaysMatch": {
            "browserName": "chrome",
            "goog:chromeOptions": { "args": args },
            "goog:loggingPrefs": { "browser": "ALL" },
        }}});
        super::wait_until("chromedriver", || try_request(port, "GET", "/status", &[], b"").is_ok());
        let mut browser = Browser { port, session: String::new(), _driver: driver, _profile: profile };
        let session = browser.call("POST", "", &wanted);
        browser.session = format!("/{}", session["sessionId"].as_str().expect("a session"));
        browser
    }

    #[track_caller]
    fn call(&self, method: &str, path: &str, body: &Value) -> Value {
        let body = if method == "POST" { body.to_string() } else { String::new() };
        let target = format!("/session{}{path}", self.session);
        let headers = [("Content-Type", "application/json")];
        let answer = try_request(self.port, method, &target, &headers, body.as_bytes()).expect("chromedriver answers");
        let mut json = answer.json();
        assert_eq!(answer.status, 200, "{json}");
        json["value"].take()
    }

    /// Opens a page.
    #[track_caller]
    pub fn open(&self, url: &str) {
        self.call("POST", "/url", &json!({ "url": url }));
    }

    /// Runs a script and returns its result.
    #[track_caller]
    pub fn run(&self, script: &str) -> Value {
        self.call("POST", "/execute/sync", &json!({ "script": script, "args": [] }))
    }

    /// Waits until a script returns a true value, and returns how long that took.
    #[track_caller]
    pub fn wait_for(&self, script: &str) -> Duration {
        let begin = Instant::now();
        while self.run(&format!("return Boolean({script})")) != true {
            let text = || self.run("return document.body.innerText");
            assert!(begin.elapsed() < PATIENCE, "in vain: {script}; the page says: {}", text());
        }
        begin.elapsed()
    }

    /// Types keys into the element that has the focus.
    #[track_caller]
    pub fn keys(&self, text: &str) {
        let actions: Vec<Value> = text
            .chars()
            .flat_map(|key| ["keyDown", "keyUp"].map(|kind| json!({ "type": kind, "value": key })))
            .collect();
        self.call("POST", "/actions", &json!({ "actions": [{ "type": "key", "id": "keyboard", "actions": actions }] }));
    }

    /// The complaints of the page and of the browser.
    #[track_caller]
    pub fn complaints(&self) -> Vec<String> {
        let log = self.call("POST", "/se/log", &json!({ "type": "browser" }));
        log.as_array().unwrap().iter().map(|entry| entry["message"].as_str().unwrap_or_default().to_owned()).collect()
    }

    /// All nodes that a screen reader can find, as the browser computes them.
    #[track_caller]
    pub fn accessibility(&self) -> Vec<Value> {
        let command = json!({ "cmd": "Accessibility.getFullAXTree", "params": {} });
        self.call("POST", "/goog/cdp/execute", &command)["nodes"].as_array().unwrap().clone()
    }

    /// Shows pages like a phone of this size, which may be narrower than the narrowest window.
    #[track_caller]
    pub fn be_a_phone(&self, width: u32, height: u32) {
        let params = json!({ "width": width, "height": height, "deviceScaleFactor": 2, "mobile": true });
        let command = json!({ "cmd": "Emulation.setDeviceMetricsOverride", "params": params });
        self.call("POST", "/goog/cdp/execute", &command);
    }

    /// A picture of the window.
    #[track_caller]
    pub fn screenshot(&self) -> Vec<u8> {
        let picture = self.call("GET", "/screenshot", &Value::Null);
        Base64::decode_vec(picture.as_str().unwrap()).unwrap()
    }
}

/// A page that stays open in a browser which it shares with other pages of this test file. Closed when dropped.
pub struct Tab {
    browser: Arc<Mutex<Browser>>,
    handle: String,
}

impl Tab {
    /// Opens this address. The browser believes every certificate.
    #[track_caller]
    pub fn open(url: &str) -> Tab {
        static SHARED: Mutex<Weak<Mutex<Browser>>> = Mutex::new(Weak::new());
        // a failed test has not damaged the pages of others
        let mut shared = SHARED.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let browser = shared.upgrade().unwrap_or_else(|| {
            let browser = Arc::new(Mutex::new(Browser::start(1200, 1600, &["--ignore-certificate-errors"])));
            *shared = Arc::downgrade(&browser);
            browser
        });
        drop(shared);
        let mut tab = Tab { browser, handle: String::new() };
        tab.handle = {
            let browser = tab.lock();
            // another page is opened from an existing one, and the last one may be closed
            let first = browser.call("GET", "/window/handles", &Value::Null)[0].take();
            browser.call("POST", "/window", &json!({ "handle": first }));
            let made = browser.call("POST", "/window/new", &json!({ "type": "tab" }));
            let handle = made["handle"].as_str().expect("a tab").to_owned();
            browser.call("POST", "/window", &json!({ "handle": handle }));
            browser.open(url);
            handle
        };
        tab
    }

    /// Runs a script in this page and returns its result.
    #[track_caller]
    pub fn run(&self, script: &str) -> Value {
        let browser = self.lock();
        browser.call("POST", "/window", &json!({ "handle": self.handle }));
        browser.run(script)
    }

    /// Whether the gateway's page shows only this part as faulty, with what to do; `None` means no faulty part at all.
    #[track_caller]
    pub fn names_faulty(&self, name: Option<&str>) -> bool {
        let (link, is_hidden) = match name {
            Some(_) => ("online, 1 part faulty", "false"),
            None => ("online", "true"),
        };
        let seen = self.run(&format!(
            "return document.getElementById('link').innerText === '{link}' && document.getElementById('faulty').hidden === {is_hidden} \
             ? [...document.querySelectorAll('#faulty-list li')].map((item) => item.innerText) : null"
        ));
        let Some(items) = seen.as_array() else { return false };
        let items: Vec<&str> = items.iter().filter_map(Value::as_str).collect();
        match (name, &items[..]) {
            (None, []) => true,
            (Some(name), [item]) => item.starts_with(&format!("{name}: ")) && item.contains("; "),
            _ => false,
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Browser> {
        self.browser.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Drop for Tab {
    fn drop(&mut self) {
        let browser = self.lock();
        let session = format!("/session{}", browser.session);
        let window = json!({ "handle": self.handle }).to_string();
        let headers = [("Content-Type", "application/json")];
        if try_request(browser.port, "POST", &format!("{session}/window"), &headers, window.as_bytes()).is_ok() {
            let _ = try_request(browser.port, "DELETE", &format!("{session}/window"), &[], b"");
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _ = try_request(self.port, "DELETE", &format!("/session{}", self.session), &[], b"");
    }
}

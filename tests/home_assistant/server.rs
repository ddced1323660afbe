//! Home Assistant as a process, with the part of its API that the tests need.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio_tungstenite::tungstenite::Message;

use crate::PATIENCE;
use crate::support::{Process, free_port, http};

/// The directory into which `tests/run` installs Home Assistant.
const TREE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/.cache/home_assistant");

/// Each process has its own mounts, so that any number can run in one tree.
const START: &str = r#"
mount --bind "$1" "$0/config"; mount --rbind /proc "$0/proc"; mount --rbind /dev "$0/dev"
exec chroot "$0" /usr/bin/env -i PATH=/ha/bin:/usr/bin:/bin HOME=/tmp LANG=C.UTF-8 /ha/bin/hass --config /config --skip-pip
"#;

/// Home Assistant with its data, over restarts.
pub struct HomeAssistant {
    process: Option<Process>,
    port: u16,
    dir: TempDir,
    token: String,
    runtime: tokio::runtime::Runtime,
}

impl HomeAssistant {
    /// Starts Home Assistant, makes its first user, and connects it to a broker.
    pub fn new(broker_port: u16) -> HomeAssistant {
        assert!(
            Path::new(TREE).join("ha/bin/hass").exists(),
            "Home Assistant is missing; tests/run --install installs what the tests need"
        );
        let dir = tempfile::Builder::new().prefix("pigateway-test-").tempdir().unwrap();
        let port = free_port();
        let config = format!(
            "homeassistant:\n  name: test\nhttp:\n  server_host: 127.0.0.1\n  server_port: {port}\nconfig:\n\
             logger:\n  default: error\n  logs:\n    homeassistant.components.mqtt: info\n"
        );
        std::fs::write(dir.path().join("configuration.yaml"), config).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let mut this = HomeAssistant { process: None, port, dir, token: String::new(), runtime };
        this.start();
        this.first_user();
        this.connect_to(broker_port);
        this
    }

    /// Starts the process, and waits until it answers.
    pub fn start(&mut self) {
        let mut command = Command::new("unshare");
        command.args(["--map-root-user", "--mount", "sh", "-ec", START, TREE]).arg(self.dir.path());
        let mut process = Process::start(&mut command);
        let begin = Instant::now();
        loop {
            assert!(process.is_running() && begin.elapsed() < PATIENCE, "{:#?}", process.log());
            let answer = http::try_request(self.port, "GET", "/api/onboarding", &[], b"");
            if answer.is_ok_and(|answer| answer.status == 200) {
                break;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        self.process = Some(process);
    }

    /// Ends the process in order, so that it disconnects from the broker.
    pub fn stop(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.signal(Signal::TERM);
            let begin = Instant::now();
            while process.is_running() && begin.elapsed() < PATIENCE {
                std::thread::sleep(Duration::from_millis(20));
            }
            process.wait();
        }
    }

    /// Kills the process, so that the broker publishes its will.
    pub fn kill(&mut self) {
        if let Some(process) = self.process.take() {
            process.kill();
        }
    }

    fn post(&self, path: &str, kind: &str, body: &str) -> Value {
        let authorization = format!("Bearer {}", self.token);
        let mut headers = vec![("Content-Type", kind)];
        if !self.token.is_empty() {
            headers.push(("Authorization", &authorization));
        }
        let answer = http::request(self.port, "POST", path, &headers, body.as_bytes());
        assert_eq!(answer.status, 200, "{path}: {}", answer.text());
        answer.json()
    }

    fn first_user(&mut self) {
        let client = format!("http://127.0.0.1:{}/", self.port);
        let user =
            json!({"client_id": client, "name": "a", "username": "a", "password": "a password", "language": "en"});
        let code = self.post("/api/onboarding/users", "application/json", &user.to_string());
        let code = code["auth_code"].as_str().unwrap();
        let grant = format!("grant_type=authorization_code&code={code}&client_id={client}");
        let tokens = self.post("/auth/token", "application/x-www-form-urlencoded", &grant);
        self.token = tokens["access_token"].as_str().unwrap().into();
    }

    fn connect_to(&self, broker_port: u16) {
        let flow = self.post("/api/config/config_entries/flow", "application/json", r#"{"handler":"mqtt"}"#);
        let path = format!("/api/config/config_entries/flow/{}", flow["flow_id"].as_str().unwrap());
        let broker = json!({"broker": "127.0.0.1", "port": broker_port, "other_settings": {"set_client_cert": false, "set_ca_cert": "off"}}).to_string();
        let result = self.post(&path, "application/json", &broker);
        assert_eq!(result["type"], "create_entry", "{result}");
    }

    /// Sends a request by WebSocket.
    pub fn ask(&self, mut command: Value) -> Value {
        use futures_util::{SinkExt, StreamExt};
        self.runtime.block_on(async {
            let stream = tokio::net::TcpStream::connect(("127.0.0.1", self.port)).await.unwrap();
            let url = format!("ws://127.0.0.1:{}/api/websocket", self.port);
            let (mut socket, _) = tokio_tungstenite::client_async(url, stream).await.unwrap();
            command["id"] = 1.into();
            let login = json!({"type": "auth", "access_token": self.token});
            for message in [login, command] {
                socket.send(Message::text(message.to_string())).await.unwrap();
            }
            loop {
                let message = socket.next().await.expect("an answer").unwrap();
                let Ok(text) = message.to_text() else { continue };
                let answer: Value = serde_json::from_str(text).unwrap_or_default();
                assert_ne!(answer["type"], "auth_invalid", "{answer}");
                if answer["type"] == "result" {
                    assert_eq!(answer["success"], true, "{answer}");
                    return answer["result"].clone();
                }
            }
        })
    }

    /// The state of an entity, which is found by the end of its unique id; `None` if there is no such entity.
    pub fn state(&self, unique_id: &str) -> Option<String> {
        let entities = self.ask(json!({"type": "config/entity_registry/list"}));
        let entity = entities.as_array()?.iter().find(|entity| entity["unique_id"] == unique_id)?.clone();
        let states = self.ask(json!({"type": "get_states"}));
        let shown = states.as_array()?.iter().find(|state| state["entity_id"] == entity["entity_id"]);
        Some(shown.map_or("not shown", |state| state["state"].as_str().unwrap()).into())
    }

    /// The names of the gateway's devices, in order.
    pub fn devices(&self) -> Vec<String> {
        let devices = self.ask(json!({"type": "config/device_registry/list"}));
        let is_ours = |device: &&Value| device["manufacturer"] == "pigateway";
        let name = |device: &Value| device["name"].as_str().unwrap().to_owned();
        let mut names: Vec<String> = devices.as_array().unwrap().iter().filter(is_ours).map(name).collect();
        names.sort();
        names
    }

    /// Deletes a device, as a person does on the page of Home Assistant.
    pub fn delete(&self, name: &str) {
        let devices = self.ask(json!({"type": "config/device_registry/list"}));
        let device = devices.as_array().unwrap().iter().find(|device| device["name"] == name).unwrap().clone();
        self.ask(json!({
            "type": "config/device_registry/remove_config_entry", "device_id": device["id"],
            "config_entry_id": device["config_entries"][0],
        }));
    }
}

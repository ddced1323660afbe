//! `pigateway check` accepts every configuration on the page about fleets without a warning.

#![allow(clippy::unwrap_used)]

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

/// The blocks of TOML of a page, each with its heading.
fn configurations(page: &str) -> Vec<(String, String)> {
    let mut found: Vec<(String, String)> = Vec::new();
    let (mut heading, mut is_inside) = (String::new(), false);
    for line in page.lines() {
        match line {
            "```toml" => {
                is_inside = true;
                found.push((heading.clone(), String::new()));
            }
            "```" => is_inside = false,
            _ if is_inside => {
                let text = &mut found.last_mut().unwrap().1;
                text.push_str(line);
                text.push('\n');
            }
            _ => {
                if let Some(text) = line.strip_prefix("## ") {
                    heading = text.to_owned();
                }
            }
        }
    }
    found
}

#[test]
fn every_configuration_is_valid() {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/fleet.md")).unwrap();
    let configurations = configurations(&page);
    let headings: Vec<&str> = configurations.iter().map(|(heading, _)| heading.as_str()).collect();
    for name in ["NATS", "RabbitMQ", "EMQX", "HiveMQ", "VerneMQ", "AWS", "Azure", "Adafruit"] {
        assert!(headings.iter().any(|heading| heading.starts_with(name)), "{name} in {headings:?}");
    }
    let dir = tempfile::tempdir().unwrap();
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(vec!["loft".into()]).unwrap().self_signed(&key).unwrap();
    for (name, text) in [
        ("AmazonRootCA1.pem", certificate.pem()),
        ("device.crt", certificate.pem()),
        ("device.key", key.serialize_pem()),
        ("hivemq.password", "x".into()),
        ("vernemq.password", "x".into()),
        ("adafruit.key", "x".into()),
    ] {
        let path = dir.path().join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    }
    for (heading, text) in configurations {
        let path = dir.path().join("pigateway.toml");
        fs::write(&path, text).unwrap();
        let output = Command::new(env!("CARGO_BIN_EXE_pigateway")).arg("check").arg(&path).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && said.is_empty(), "{heading}: {said}");
    }
}

//! `pigateway status`: asks a running gateway over HTTP and shows its state.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use serde_json::Value;

use super::{CliError, print, user};
use crate::config;
use crate::message::printable;

/// The longest wait for the gateway.
const PATIENCE: Duration = Duration::from_secs(10);
/// The longest answer in bytes.
const LONGEST: u64 = 16 << 20;

#[derive(Debug, clap::Args)]
pub(super) struct StatusArgs {
    /// Configuration file of the gateway; without one, port 8080 of this host is asked
    #[arg(long, short, value_name = "FILE")]
    config: Option<PathBuf>,
    /// User name; its password is asked for, or read from standard input
    #[arg(long, value_name = "NAME")]
    user: Option<String>,
    /// Print the answers unchanged as JSON, for programs
    #[arg(long)]
    json: bool,
}

/// Prints the state of the gateway.
pub(super) fn status(args: &StatusArgs) -> Result<(), CliError> {
    let at = address(args)?;
    let login = match &args.user {
        Some(name) => Some(user::basic(name, &user::read_password(name)?)?),
        None => None,
    };
    let ask = |what: &str| get(at, &format!("/api/v1/{what}"), login.as_deref());
    let answers = [ask("gateway")?, ask("upstreams")?, ask("clients")?, ask("sensors")?, ask("problems")?];
    if args.json {
        let [gateway, upstreams, clients, sensors, problems] = answers;
        let all = serde_json::json!({
            "gateway": gateway, "upstreams": upstreams, "clients": clients, "sensors": sensors, "problems": problems,
        });
        return print(format!("{all:#}\n").as_bytes());
    }
    let [gateway, upstreams, clients, sensors, problems] = &answers;
    print(shown(gateway, upstreams, clients, sensors, problems).as_bytes())
}

/// The address on this host at which the gateway answers HTTP.
fn address(args: &StatusArgs) -> Result<SocketAddr, CliError> {
    let Some(path) = &args.config else { return Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, 8080))) };
    let http = config::load(path)?.settings.http;
    let Some(address) = http.address else {
        return Err(CliError::Gateway("HTTP is off ([http] address = \"off\"), and it is HTTP that tells".into()));
    };
    if http.tls.is_some() {
        return Err(CliError::Gateway(
            "HTTP is served with TLS: `curl -u NAME https://HOST:PORT/api/v1/gateway` tells".into(),
        ));
    }
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        // an unspecified IPv6 address may stand for IPv4 alone, if the kernel has no IPv6
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(Ipv6Addr::LOCALHOST) => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    };
    Ok(SocketAddr::new(ip, address.port()))
}

/// Sends a GET request and returns the answer as JSON.
pub(super) fn get(at: SocketAddr, path: &str, login: Option<&str>) -> Result<Value, CliError> {
    request(at, "GET", path, login)
}

/// Sends a request and returns the answer as JSON.
pub(super) fn request(at: SocketAddr, method: &str, path: &str, login: Option<&str>) -> Result<Value, CliError> {
    let failed = |what: String| CliError::Gateway(format!("{at}: {what}"));
    let mut stream = TcpStream::connect_timeout(&at, PATIENCE)
        .map_err(|error| failed(format!("{error}; is the gateway running? `systemctl status pigateway`")))?;
    let broken = |error: std::io::Error| failed(error.to_string());
    stream.set_read_timeout(Some(PATIENCE)).map_err(broken)?;
    let login = login.map(|login| format!("Authorization: Basic {login}\r\n")).unwrap_or_default();
    let asked = format!("{method} {path} HTTP/1.0\r\nHost: {at}\r\n{login}Content-Length: 0\r\n\r\n");
    stream.write_all(asked.as_bytes()).map_err(broken)?;
    let mut answer = Vec::new();
    stream.take(LONGEST).read_to_end(&mut answer).map_err(broken)?;
    read(&answer).map_err(failed)
}

const NOT_HTTP: &str = "the answer is not HTTP; with [http] tls, only HTTPS is answered: ask with curl";

/// Parses an HTTP answer and returns its body as JSON.
pub fn read(answer: &[u8]) -> Result<Value, String> {
    let text = String::from_utf8_lossy(answer);
    let (head, body) = text.split_once("\r\n\r\n").ok_or(NOT_HTTP)?;
    match head.split(' ').nth(1) {
        Some("200" | "201") => serde_json::from_str(body).map_err(|_| "the answer is not the gateway's".into()),
        Some("401" | "403") => Err("not authorised: --user NAME, of a user who may read # or $SYS/#".into()),
        Some(code) => Err(format!("HTTP {code}")),
        None => Err(NOT_HTTP.into()),
    }
}

/// Formats the answers for people.
pub fn shown(gateway: &Value, upstreams: &Value, clients: &Value, sensors: &Value, problems: &Value) -> String {
    let word = |value: &Value| match value {
        Value::String(text) => printable(text),
        Value::Null => "-".into(),
        other => printable(&other.to_string()),
    };
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    let mut text = format!("pigateway {} {:?}", word(&gateway["version"]), word(&gateway["id"]));
    let _ = writeln!(text, ", started {}", word(&gateway["started"]));
    if gateway["clock_synchronised"] == false {
        let _ = writeln!(text, "the clock is not synchronised");
    }
    let journal = &gateway["journal"];
    let mebibytes = |value: &Value| value.as_u64().unwrap_or_default() >> 20;
    let _ =
        writeln!(text, "journal: {} of {} MiB", mebibytes(&journal["used_bytes"]), mebibytes(&journal["max_bytes"]));
    if !journal["failing"].is_null() {
        let _ = writeln!(text, "  failing: {}", word(&journal["failing"]));
    }
    if !gateway["lost_at_power_cut"].is_null() {
        let _ = writeln!(text, "  {}", word(&gateway["lost_at_power_cut"]));
    }
    for service in list(&gateway["mdns"]["services"]) {
        let (kind, port, name) = (word(&service["type"]), word(&service["port"]), word(&service["name"]));
        let _ = writeln!(text, "announced by mDNS: {kind} at port {port} as {name:?}");
    }
    if let Some(note) = gateway["mdns"]["note"].as_str() {
        let _ = writeln!(text, "not announced by mDNS: {}", printable(note));
    }
    for faulty in list(&gateway["faulty"]) {
        let (part, problem, remedy) = (word(&faulty["part"]), word(&faulty["problem"]), word(&faulty["remedy"]));
        let _ = writeln!(text, "faulty: {part}: {problem}; {remedy}");
    }
    let _ =
        writeln!(text, "clients: {} connected, {} sessions away", list(clients).len(), word(&gateway["sessions_away"]));
    for sensor in list(sensors) {
        let _ = writeln!(text, "sensor {}: {}", word(&sensor["name"]), word(&sensor["state"]));
        if let Some(problem) = sensor["fault"]["problem"].as_str() {
            let _ = writeln!(text, "  {}", printable(problem));
        }
    }
    for upstream in list(upstreams) {
        let state = if upstream["state"] == "connected" { "connected" } else { "not connected" };
        let _ = writeln!(
            text,
            "upstream {}: {state}, {} messages wait",
            word(&upstream["name"]),
            word(&upstream["ledger"]["pending"])
        );
        if let Some(error) = upstream["last_error"].as_str() {
            let _ = writeln!(text, "  {}", printable(error));
        }
    }
    // present problems have been written above; of the logged ones the newest come first
    let problems: Vec<Value> = list(problems).into_iter().filter(|problem| problem["now"] != true).collect();
    for problem in problems.iter().take(5).rev() {
        let _ = writeln!(text, "{} {} {}", word(&problem["time"]), word(&problem["level"]), word(&problem["text"]));
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_others_say_does_not_move_the_cursor() {
        let said = "\u{1b}[2J\r\u{9b}\n";
        let gateway = json!({ "version": said, "mdns": { "note": said } });
        let upstreams = json!([{ "name": said, "last_error": said }]);
        let text = shown(&gateway, &upstreams, &json!([]), &json!([]), &json!([]));
        assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{text:?}");
        assert!(text.contains("?[2J???") && text.contains("not announced by mDNS: ?[2J"), "{text:?}");
    }

    #[test]
    fn what_is_wrong_is_said_once_and_then_the_newest_lines_of_the_log() {
        let gateway = json!({ "faulty": [{ "part": "HTTP", "problem": "its port is taken", "remedy": "free it" }] });
        let mut problems = vec![json!({ "now": true, "text": "HTTP: its port is taken; free it" })];
        problems.extend((1..=7).rev().map(|number| json!({ "now": false, "text": format!("line {number}") })));
        let text = shown(&gateway, &json!([]), &json!([]), &json!([]), &json!(problems));
        assert_eq!(text.matches("its port is taken").count(), 1, "{text}");
        let lines: Vec<&str> = text.lines().filter_map(|line| line.split("line ").nth(1)).collect();
        assert_eq!(lines, ["3", "4", "5", "6", "7"], "{text}");
    }
}

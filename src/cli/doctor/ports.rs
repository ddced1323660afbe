//! Checks whether the ports that the gateway needs are free, and which program holds them otherwise.

use std::fs;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};

use super::{DoctorFinding, System};
use crate::config::Settings;

/// The findings about each listener of the broker and about HTTP.
pub(super) fn all(settings: &Settings, system: &System) -> Vec<DoctorFinding> {
    let mqtt = settings.broker.listeners.iter().filter_map(|listener| Some(("MQTT", listener.address.tcp()?)));
    let http = settings.http.address.map(|address| ("HTTP", address));
    mqtt.chain(http)
        .filter(|(_, address)| address.port() != 0)
        .map(|(what, address)| port(what, address, system))
        .collect()
}

fn port(what: &str, address: SocketAddr, system: &System) -> DoctorFinding {
    let error = match TcpListener::bind(address) {
        Ok(_) => return DoctorFinding::good(format!("{what}: {address} is free")),
        Err(error) => error,
    };
    match error.kind() {
        ErrorKind::AddrInUse => match owner(address.port(), system) {
            Some((name, pid)) if name == "pigateway" => {
                DoctorFinding::good(format!("{what}: a running pigateway (process {pid}) has {address}"))
            }
            Some((name, pid)) => DoctorFinding::problem(
                format!("{what}: {address} is taken by {name} (process {pid})"),
                format!("stop it (`sudo systemctl disable --now {name}`), or choose another port"),
            ),
            None => DoctorFinding::problem(
                format!("{what}: {address} is taken by another program"),
                "`sudo ss -ltnp` says which; stop it, or choose another port",
            ),
        },
        ErrorKind::PermissionDenied => DoctorFinding::problem(
            format!("{what}: this user may not listen on {address}"),
            "ports below 1024 need AmbientCapabilities=CAP_NET_BIND_SERVICE in the unit; or choose another port",
        ),
        ErrorKind::AddrNotAvailable => DoctorFinding::warning(
            format!("{what}: this machine does not have the address of {address} at the moment"),
            "`ip address` shows what it has",
        ),
        _ => DoctorFinding::problem(format!("{what}: {address}: {error}"), "choose another address"),
    }
}

/// The name and process id of the program that listens on a port, if this user may see them.
fn owner(port: u16, system: &System) -> Option<(String, u32)> {
    let mut inodes = Vec::new();
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        for line in system.text(table).unwrap_or_default().lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            let is_ours = fields.get(1).is_some_and(|local| local.ends_with(&format!(":{port:04X}")));
            // 0A is the state LISTEN
            if is_ours && fields.get(3) == Some(&"0A") {
                inodes.extend(fields.get(9).map(|inode| format!("socket:[{inode}]")));
            }
        }
    }
    for process in fs::read_dir(system.path("/proc")).ok()?.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        let Ok(files) = fs::read_dir(process.path().join("fd")) else { continue };
        let has = |link: std::path::PathBuf| inodes.iter().any(|inode| link.as_os_str() == inode.as_str());
        if files.flatten().any(|file| fs::read_link(file.path()).is_ok_and(has)) {
            let name = fs::read_to_string(process.path().join("comm")).unwrap_or_default();
            return Some((name.trim().to_owned(), pid));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_has_a_port_is_named() {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let system = System("/".into());
        let (_, pid) = owner(address.port(), &system).unwrap();
        assert_eq!(pid, std::process::id());
        let finding = port("MQTT", address, &system);
        assert!(finding.what.contains(&pid.to_string()) && !finding.remedy.is_empty(), "{finding}");
        drop(listener);
        assert!(port("MQTT", address, &system).remedy.is_empty());
        assert!(port("MQTT", "192.0.2.1:1883".parse().unwrap(), &system).what.contains("does not have"));
    }
}

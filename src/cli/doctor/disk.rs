//! Checks the data directory: file system, rights and free space.

use std::path::Path;

use rustix::fs::{Access, access, statvfs};

use super::{DoctorFinding, System};
use crate::app::file_system::{Mount, Mounts};
use crate::config::{Settings, units};
use crate::secret;

/// The findings about the data directory.
pub(super) fn data_dir(settings: &Settings, system: &System) -> Vec<DoctorFinding> {
    let dir = &settings.gateway.data_dir;
    let absolute = std::path::absolute(dir).unwrap_or_else(|_| dir.clone());
    let shown = absolute.display();
    let existing = absolute.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let mut findings = Vec::new();
    if access(existing, Access::WRITE_OK | Access::EXEC_OK).is_err() {
        let who = rustix::process::getuid().as_raw();
        findings.push(DoctorFinding::problem(
            format!("data directory {shown}: {} cannot be written by this user (uid {who})", existing.display()),
            "run this as the gateway's user (sudo -u pigateway), or let that user write there",
        ));
    } else {
        let state = if existing == absolute { "can be written" } else { "does not exist yet and can be made" };
        findings.push(DoctorFinding::good(format!("data directory {shown} {state}")));
    }
    if secret::lets_others(&absolute, 0o007) {
        findings.push(DoctorFinding::warning(
            format!("everybody on this machine can look into {shown}"),
            format!("chmod o-rwx {shown}"),
        ));
    }
    let mounts = Mounts::read(&system.0);
    if let Some(mount) = mounts.of(existing) {
        findings.push(match mounts.at_power_cut(&absolute).fault() {
            Some(fault) if !mount.is_read_only => DoctorFinding::warning(&fault.problem, &fault.remedy),
            _ => file_system(&mount),
        });
        findings.extend(card(&mount, system));
    }
    findings.extend(space(existing, settings.journal.max_size));
    findings
}

fn file_system(mount: &Mount) -> DoctorFinding {
    let (kind, point) = (&mount.kind, mount.point.display());
    if mount.is_read_only {
        return DoctorFinding::problem(
            format!("the file system of the data directory ({kind} at {point}) is read-only"),
            "mount it writable; a card that has become read-only is usually worn out: replace it",
        );
    }
    match kind.as_str() {
        "vfat" | "exfat" | "ntfs" | "ntfs3" | "fuseblk" => DoctorFinding::warning(
            format!("the file system {kind} at {point} does not survive a power cut well"),
            "use ext4 for the data directory",
        ),
        "nfs" | "nfs4" | "cifs" | "smb3" => DoctorFinding::warning(
            format!("the data directory is on the network ({kind} at {point})"),
            "choose gateway.data_dir on this machine",
        ),
        _ => DoctorFinding::good(format!("the file system of the data directory is {kind}, at {point}")),
    }
}

/// The finding about the wear of the card, as the card reports it.
fn card(mount: &Mount, system: &System) -> Option<DoctorFinding> {
    let name = mount.device.strip_prefix("/dev/")?;
    let disk = name.split_once('p').filter(|_| name.starts_with("mmcblk")).map(|(disk, _)| disk)?;
    let read = |file: &str| system.text(&format!("/sys/block/{disk}/device/{file}"));
    let (model, date) = (read("name")?, read("date").unwrap_or_default());
    // 0x01 to 0x0a are used tenths of its life, 0x0b is more than all of it; SD cards do not report it
    let life = read("life_time").unwrap_or_default();
    let used =
        life.split_whitespace().filter_map(|word| u32::from_str_radix(word.trim_start_matches("0x"), 16).ok()).max();
    Some(match used {
        Some(used @ 9..) => DoctorFinding::problem(
            format!("the card {model} of {date} has used up its life ({}0 % or more)", used.min(10)),
            "copy it to a new one soon",
        ),
        _ => DoctorFinding::good(format!("the card is {model} of {date}")),
    })
}

fn space(path: &Path, journal: u64) -> Option<DoctorFinding> {
    let stat = statvfs(path).ok()?;
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    let wanted = journal + (32 << 20);
    let shown = |bytes: u64| units::show_size(bytes >> 20 << 20);
    Some(if free < 32 << 20 {
        DoctorFinding::problem(format!("only {} are free", shown(free)), "make room: `sudo du -xh / | sort -h | tail`")
    } else if free < wanted {
        DoctorFinding::warning(
            format!("{} are free, and the journal may grow to {}", shown(free), shown(journal)),
            "make room, or set journal.max_size lower",
        )
    } else {
        DoctorFinding::good(format!("{} are free", shown(free)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
22 1 179:2 / / rw,noatime shared:1 - ext4 /dev/mmcblk0p2 rw
30 22 0:26 / /media rw shared:2 - vfat /dev/sda2 rw
31 22 0:27 / /mnt/with\\040space ro,relatime - vfat /dev/sda1 rw
32 22 0:28 / /srv rw - ext4 /dev/sdb1 ro,errors=remount-ro
";

    fn mounts() -> (tempfile::TempDir, System) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("proc/self")).unwrap();
        std::fs::write(dir.path().join("proc/self/mountinfo"), MOUNTS).unwrap();
        let system = System(dir.path().into());
        (dir, system)
    }

    #[test]
    fn the_file_system_is_judged() {
        let (_dir, system) = mounts();
        let at = |path: &str| file_system(&Mounts::read(&system.0).of(Path::new(path)).unwrap()).to_string();
        assert!(at("/srv").contains("PROBLEM") && at("/srv").contains("read-only"));
        assert!(at("/mnt/with space").contains("read-only"));
        assert!(at("/media").contains("does not survive") && at("/home").contains("ok "));
    }

    #[test]
    fn a_worn_card_is_a_problem() {
        let (dir, system) = mounts();
        let device = dir.path().join("sys/block/mmcblk0/device");
        std::fs::create_dir_all(&device).unwrap();
        for (name, text) in [("name", "SC32G\n"), ("date", "03/2021\n"), ("life_time", "0x03 0x0a\n")] {
            std::fs::write(device.join(name), text).unwrap();
        }
        let mount = Mounts::read(&system.0).of(Path::new("/")).unwrap();
        let finding = card(&mount, &system).unwrap();
        assert!(finding.what.contains("SC32G") && finding.remedy.contains("new one"), "{finding}");
        std::fs::write(device.join("life_time"), "0x01 0x01\n").unwrap();
        assert!(card(&mount, &system).unwrap().remedy.is_empty());
    }
}

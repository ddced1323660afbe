//! Finds out which file system the data directory is on, and what a power cut would lose there.
//!
//! A PUBACK is a promise because the message is on a card or disk by then. If the root file system is an overlay in memory,
//! if `/var` is a tmpfs, or if log2ram keeps the directory in memory, the system accepts the same writes and syncs but loses
//! them with the power. The gateway cannot change that, so it reports it.

use std::borrow::Cow;
use std::fs;
use std::path::{Path, PathBuf};

use rustix::fs::statvfs;

use crate::health::Fault;

/// How many levels of overlays, and of files that contain file systems, are followed.
const DEPTH: usize = 4;
/// A journal in memory may take one part in this many of the memory, because the gateway and other programs need the rest.
const PART_OF_MEMORY: u64 = 8;

/// A mounted file system, as /proc/self/mountinfo describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Mount {
    pub(crate) point: PathBuf,
    /// The type of the file system, such as `ext4`.
    pub(crate) kind: String,
    /// The mounted device, or a word that stands for it.
    pub(crate) device: String,
    /// Whether it is mounted read-only.
    pub(crate) is_read_only: bool,
    /// For an overlay, the directory that receives changes.
    upper: Option<PathBuf>,
}

/// What happens to a directory when the power fails.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum AtPowerCut {
    /// Synced data is kept.
    Kept,
    /// The directory is in memory.
    Lost(Fault),
    /// It cannot be determined.
    Unknown(Fault),
}

impl AtPowerCut {
    /// The problem to report.
    pub(crate) fn fault(&self) -> Option<&Fault> {
        match self {
            AtPowerCut::Kept => None,
            AtPowerCut::Lost(fault) | AtPowerCut::Unknown(fault) => Some(fault),
        }
    }
}

/// Why a directory is in memory.
enum MemoryReason {
    /// The device or file system, named here, is in memory.
    This(String),
    /// As above, and the program named second copies it to a card now and then.
    Copied(String, &'static str),
    /// An overlay whose upper directory is not visible.
    Perhaps(String),
}

/// The system files that describe the mounts.
pub(crate) struct Mounts {
    root: PathBuf,
    table: String,
}

impl Mounts {
    /// Reads the files below a root directory: `/`, or one that a test has prepared.
    pub(crate) fn read(root: &Path) -> Mounts {
        let table = fs::read(root.join("proc/self/mountinfo")).unwrap_or_default();
        Mounts { root: root.into(), table: String::from_utf8_lossy(&table).into_owned() }
    }

    /// The file system of an absolute path: the mount with the longest path above it, and of several at the same place the
    /// last one.
    pub(crate) fn of(&self, path: &Path) -> Option<Mount> {
        // a sandbox has a hundred mounts, and only one of them is looked at further
        let mounts = self.table.lines().filter_map(|line| Some((point(line)?, line)));
        let above = mounts.filter(|(point, _)| path.starts_with(&**point));
        let (_, line) = above.max_by_key(|(point, _)| Path::new(&**point).components().count())?;
        parse(line)
    }

    /// What a power cut does to this directory, or to the one in which it will be created.
    pub(crate) fn at_power_cut(&self, dir: &Path) -> AtPowerCut {
        let absolute = std::path::absolute(dir).unwrap_or_else(|_| dir.into());
        let existing = absolute.ancestors().find_map(|path| path.canonicalize().ok());
        let memory = self.of(&existing.unwrap_or_else(|| "/".into())).and_then(|mount| self.memory(&mount, DEPTH));
        let remedy =
            "where that is not meant, set gateway.data_dir to a directory on a card or disk that stays writable";
        let shown = absolute.display();
        let all =
            "messages that wait for an upstream or a session, retained messages, sessions, and the sensors' history";
        match memory {
            None => AtPowerCut::Kept,
            Some(MemoryReason::This(what)) => AtPowerCut::Lost(Fault::new(
                format!("{shown} is in memory ({what}): a power cut or a reboot costs everything: {all}"),
                remedy,
            )),
            Some(MemoryReason::Copied(what, who)) => AtPowerCut::Lost(Fault::new(
                format!(
                    "{shown} is in memory ({what}): a power cut costs what came in since {who} wrote it to a disk: {all}"
                ),
                remedy,
            )),
            Some(MemoryReason::Perhaps(what)) => AtPowerCut::Unknown(Fault::new(
                format!("{shown} is on {what}: if that is in memory, a power cut or a reboot costs everything: {all}"),
                remedy,
            )),
        }
    }

    fn memory(&self, mount: &Mount, depth: usize) -> Option<MemoryReason> {
        let Mount { point, kind, device, upper, .. } = mount;
        let what = format!("{kind} at {}", point.display());
        let name = device.strip_prefix("/dev/").unwrap_or_default();
        match kind.as_str() {
            _ if device.contains("log2ram") => Some(MemoryReason::Copied(what, "log2ram")),
            "tmpfs" | "ramfs" | "rootfs" => Some(MemoryReason::This(what)),
            _ if name.starts_with("zram") || name.starts_with("ram") => {
                Some(MemoryReason::This(format!("{what} on {device}")))
            }
            "overlay" if mount.point == Path::new("/") && self.root_is_volatile() => Some(MemoryReason::This(what)),
            "overlay" => {
                let upper = upper.as_deref()?;
                let below = self.of(upper).filter(|below| below.point != *point && depth > 0);
                match below {
                    Some(below) => self.memory(&below, depth - 1),
                    None => Some(MemoryReason::Perhaps(format!(
                        "an overlay ({what}) whose changes go to {}, which is not to be seen from here",
                        upper.display()
                    ))),
                }
            }
            _ if name.starts_with("loop") && depth > 0 => {
                let file = fs::read_to_string(self.root.join(format!("sys/block/{name}/loop/backing_file"))).ok()?;
                self.memory(&self.of(Path::new(file.trim_end()))?, depth - 1)
            }
            _ => None,
        }
    }

    /// Whether the system was started with an overlay in memory over its root, which is not visible later: Raspberry Pi OS's
    /// overlay file system, the package overlayroot, or systemd.
    fn root_is_volatile(&self) -> bool {
        let line = fs::read_to_string(self.root.join("proc/cmdline")).unwrap_or_default();
        line.split_whitespace().any(|word| {
            matches!(word, "boot=overlay" | "systemd.volatile=overlay" | "systemd.volatile=yes")
                || word.starts_with("overlayroot=tmpfs")
        })
    }

    /// The largest reasonable journal in bytes for a directory that is in memory.
    pub(crate) fn largest_in_memory(&self) -> Option<u64> {
        let text = fs::read_to_string(self.root.join("proc/meminfo")).ok()?;
        let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
        let kib: u64 = line.trim().trim_end_matches(" kB").parse().ok()?;
        Some((kib << 10) / PART_OF_MEMORY)
    }
}

/// The largest journal in bytes that the directory's file system can hold beside other files. It does not depend on the
/// space that is free at the moment, because that can change.
pub(crate) fn largest_journal(dir: &Path) -> u64 {
    let total = statvfs(dir).map_or(0, |stat| stat.f_blocks.saturating_mul(stat.f_frsize));
    // some file systems do not report their size
    if total == 0 { u64::MAX } else { within(total) }
}

fn within(total: u64) -> u64 {
    let reserve = (total / 8).max((total / 4).min(2 << 20)).min(256 << 20);
    total - reserve
}

/// Where the mount of a line of mountinfo is.
fn point(line: &str) -> Option<Cow<'_, str>> {
    line.split(' ').nth(4).map(unescape)
}

/// A line of mountinfo.
fn parse(line: &str) -> Option<Mount> {
    let (left, right) = line.split_once(" - ")?;
    let left: Vec<&str> = left.split(' ').collect();
    let right: Vec<&str> = right.split(' ').collect();
    let options = right.get(2).copied().unwrap_or_default();
    let is_ro = |options: &str| options.split(',').any(|option| option == "ro");
    Some(Mount {
        point: PathBuf::from(&*point(line)?),
        kind: (*right.first()?).into(),
        device: unescape(right.get(1)?).into_owned(),
        is_read_only: is_ro(left.get(5)?) || is_ro(options),
        upper: options
            .split(',')
            .find_map(|option| option.strip_prefix("upperdir="))
            .map(|upper| PathBuf::from(&*unescape(upper))),
    })
}

/// Decodes octal escapes, by which the kernel writes characters that would end a field.
fn unescape(field: &str) -> Cow<'_, str> {
    if !field.contains('\\') {
        return field.into();
    }
    field.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\").into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOUNTS: &str = "\
22 1 179:2 / / rw,noatime shared:1 - ext4 /dev/mmcblk0p2 rw
30 22 0:26 / /var/lib rw shared:2 - tmpfs tmpfs rw,size=100k
31 22 0:27 / /mnt/with\\040space ro,relatime - vfat /dev/sda1 rw
32 22 0:28 / /srv rw - ext4 /dev/sdb1 ro,errors=remount-ro
";

    fn mounts(table: &str, files: &[(&str, &str)]) -> (tempfile::TempDir, Mounts) {
        let root = tempfile::tempdir().unwrap();
        for (name, text) in files.iter().chain(&[("proc/self/mountinfo", table)]) {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        let mounts = Mounts::read(root.path());
        (root, mounts)
    }

    #[test]
    fn the_file_system_of_a_path_is_found() {
        let (_root, mounts) = mounts(MOUNTS, &[]);
        let at = |path: &str| mounts.of(Path::new(path)).unwrap();
        assert_eq!((at("/home/pi").kind, at("/var/lib/pigateway").kind), ("ext4".into(), "tmpfs".into()));
        assert!(at("/mnt/with space/x").is_read_only && at("/srv").is_read_only && !at("/home").is_read_only);
    }

    /// Examines a system with these mounts; the directory need not exist.
    fn of_root(table: &str, files: &[(&str, &str)]) -> AtPowerCut {
        mounts(table, files).1.at_power_cut(Path::new("/no such directory/pigateway"))
    }

    #[test]
    fn memory_is_told_from_a_card() {
        let lost = |table: &str, files: &[(&str, &str)]| match of_root(table, files) {
            AtPowerCut::Lost(fault) => fault.to_string(),
            other => panic!("{other:?} of {table}"),
        };
        let card = "22 1 179:2 / / rw,noatime shared:1 - ext4 /dev/mmcblk0p2 rw\n";
        assert_eq!(of_root(card, &[]), AtPowerCut::Kept);
        assert_eq!(of_root("", &[]), AtPowerCut::Kept);
        let text = lost("22 1 0:5 / / rw - tmpfs tmpfs rw", &[]);
        for part in ["pigateway is in memory (tmpfs at /)", "costs everything", "retained messages", "gateway.data_dir"]
        {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(lost("22 1 0:5 / / rw - tmpfs log2ram rw", &[]).contains("since log2ram wrote it"));
        assert!(lost("22 1 252:0 / / rw - ext4 /dev/zram0 rw", &[]).contains("on /dev/zram0"));
        let file = [("sys/block/loop3/loop/backing_file", "/run/disk.img\n")];
        let loops = "22 1 7:3 / / rw - ext4 /dev/loop3 rw\n23 22 0:5 / /run rw - tmpfs tmpfs rw";
        assert!(lost(loops, &file).contains("tmpfs at /run"));
        assert_eq!(of_root(&loops.replace("tmpfs", "ext4"), &file), AtPowerCut::Kept);
    }

    #[test]
    fn an_overlay_is_as_good_as_where_its_changes_go() {
        let overlay = "22 1 0:30 / / rw - overlay overlayroot rw,lowerdir=/media/root-ro,upperdir=/media/root-rw/overlay,workdir=/w\n";
        let on = |kind: &str| format!("{overlay}23 22 0:5 / /media/root-rw rw - {kind} x rw\n");
        assert!(matches!(of_root(&on("tmpfs"), &[]), AtPowerCut::Lost(_)));
        assert_eq!(of_root(&on("ext4"), &[]), AtPowerCut::Kept);
        // if the upper directory is hidden, the kernel's command line shows where it is
        for line in ["quiet boot=overlay", "overlayroot=tmpfs:recurse=0", "systemd.volatile=overlay\n"] {
            assert!(matches!(of_root(overlay, &[("proc/cmdline", line)]), AtPowerCut::Lost(_)), "{line}");
        }
        // the root of a container
        let AtPowerCut::Unknown(fault) = of_root(overlay, &[("proc/cmdline", "quiet")]) else { panic!("unknown") };
        assert!(fault.problem.contains("/media/root-rw/overlay, which is not to be seen"), "{fault}");
        // without an upper directory nothing can be written, so nothing is lost
        assert_eq!(of_root("22 1 0:30 / / ro - overlay overlay ro,lowerdir=/a:/b", &[]), AtPowerCut::Kept);
    }

    #[test]
    fn a_journal_is_smaller_than_its_disk() {
        for (total, largest) in [(4, 3), (8, 6), (16, 14), (64, 56), (512, 448), (32 << 10, (32 << 10) - 256)] {
            assert_eq!(within(total << 20), largest << 20, "{total} MiB");
        }
    }

    #[test]
    fn a_journal_in_memory_leaves_room_for_others() {
        let (_root, mounts) = mounts(MOUNTS, &[("proc/meminfo", "MemTotal:         469504 kB\nMemFree: 1 kB\n")]);
        assert_eq!(mounts.largest_in_memory(), Some(58688 << 10));
    }
}

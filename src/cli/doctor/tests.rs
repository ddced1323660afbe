use std::os::unix::fs::PermissionsExt;

use super::*;

fn system(files: &[(&str, &str)]) -> (tempfile::TempDir, System) {
    let dir = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = dir.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let system = System(dir.path().into());
    (dir, system)
}

const MODEL: (&str, &str) = ("proc/device-tree/model", "Raspberry Pi Zero W Rev 1.1\0");
const THROTTLED: &str = "sys/devices/platform/soc/soc:firmware/get_throttled";

#[test]
fn the_power_supply_is_judged_by_what_the_firmware_says() {
    for (bits, level, part) in [
        ("0", FindingLevel::Good, "sufficient"),
        ("50000", FindingLevel::Warning, "since boot"),
        ("50005", FindingLevel::Problem, "now"),
        ("40000", FindingLevel::Warning, "slowed down"),
    ] {
        let (_dir, system) = system(&[MODEL, (THROTTLED, bits)]);
        let findings = system::power(&system);
        assert!(findings[0].level == level && findings[0].what.contains(part), "{bits}: {findings:?}");
        assert_eq!(findings[0].remedy.is_empty(), level == FindingLevel::Good);
    }
    let (_dir, system) =
        system(&[("sys/class/hwmon/hwmon0/name", "rpi_volt\n"), ("sys/class/hwmon/hwmon0/in0_lcrit_alarm", "1\n")]);
    assert_eq!(system::power(&system)[0].level, FindingLevel::Problem);
}

#[test]
fn a_laptop_has_no_firmware_to_ask() {
    let (_dir, system) = system(&[]);
    assert!(system::power(&system).is_empty());
}

#[test]
fn limits_of_memory_that_do_nothing_are_said() {
    let (_dir, with) = system(&[
        ("sys/fs/cgroup/cgroup.controllers", "cpu io memory pids\n"),
        ("proc/meminfo", "MemTotal: 1 kB\nMemAvailable:   524288 kB\n"),
    ]);
    assert!(system::memory(&with).iter().all(|finding| finding.level == FindingLevel::Good));
    let (_dir, without) =
        system(&[("sys/fs/cgroup/cgroup.controllers", "cpu io pids\n"), ("proc/meminfo", "MemAvailable: 30000 kB\n")]);
    let findings = system::memory(&without);
    assert!(findings[0].remedy.contains("cgroup_enable=memory") && findings[1].what.contains("29 MiB"), "{findings:?}");
}

#[test]
fn secrets_that_all_can_read_are_said() {
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(dir.path().join("p"), "secret").unwrap();
    let path = dir.path().join("pigateway.toml");
    fs::write(
        &path,
        "[[upstream]]\nname = \"u\"\naddresses = [\"mqtt://h\"]\nusername = \"u\"\npassword_file = \"p\"\n",
    )
    .unwrap();
    for (mode, times) in [(0o644, 1), (0o640, 0)] {
        fs::set_permissions(dir.path().join("p"), fs::Permissions::from_mode(mode)).unwrap();
        let mut findings = Vec::new();
        configuration(Some(&path), &mut findings);
        let said = findings.iter().filter(|finding| finding.what.contains("everybody on this machine can read"));
        assert_eq!(said.count(), times, "{findings:?}");
    }
}

#[test]
fn a_data_directory_that_all_can_look_into_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let mut settings = Settings::demonstration();
    settings.gateway.data_dir = dir.path().join("data");
    let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    fs::create_dir(&settings.gateway.data_dir).unwrap();
    // it is enough that a parent directory is closed to others
    for (around, own, said) in [(0o755, 0o755, true), (0o755, 0o750, false), (0o750, 0o755, false)] {
        mode(&settings.gateway.data_dir, own);
        mode(dir.path(), around);
        let findings = disk::data_dir(&settings, &System("/".into()));
        assert_eq!(findings.iter().any(|finding| finding.what.contains("can look into")), said, "{findings:?}");
    }
}

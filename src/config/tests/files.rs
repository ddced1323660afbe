//! Tests of the files that a configuration names.

use super::*;

#[test]
fn secrets_are_looked_for_among_the_credentials_first() {
    let (_dir, path) = example_dir();
    let credentials = tempfile::tempdir().unwrap();
    let environment = Environment { credentials_dir: Some(credentials.path().into()), ..environment() };
    let password_file = || match load_in(&path, &environment).unwrap().settings.upstreams[0].password.clone() {
        Some(Password::File(path)) => path,
        other => panic!("{other:?}"),
    };
    assert_eq!(password_file(), path.with_file_name("home.password"));
    std::fs::write(credentials.path().join("home.password"), "from systemd\r\n").unwrap();
    assert_eq!(password_file(), credentials.path().join("home.password"));
}

#[test]
fn a_configuration_that_has_become_something_else_is_not_waited_for() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("pigateway.toml");
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    let problems = load_again(&path).unwrap_err().to_string();
    assert!(problems.contains("valid: a file"), "{problems}");
    // a device that never ends is read no further than the longest configuration
    let problems = load_again(Path::new("/dev/zero")).unwrap_err().to_string();
    assert!(problems.contains("more than 16 MiB"), "{problems}");
}

/// The problems of files in the example with TLS everywhere, without the directory.
fn file_problems(path: &Path) -> Vec<(String, bool)> {
    let text = EXAMPLE.replace("# tls = {", "tls = {");
    std::fs::write(path, text).unwrap();
    let loaded = load_in(path, &environment()).expect("files are no mistakes of the configuration");
    let dir = format!("{}/", path.parent().unwrap().display());
    let shown = |file: &FileProblem| format!("{}: {}", file.problem.key, file.problem.message).replace(&dir, "");
    loaded.files.iter().map(|file| (shown(file), file.is_missing)).collect()
}

#[test]
fn files_that_are_missing_are_told_from_those_that_will_not_do() {
    let (_dir, path) = example_dir();
    assert_eq!(file_problems(&path), []);
    std::fs::remove_file(path.with_file_name("home.password")).unwrap();
    std::fs::write(path.with_file_name("ca.crt"), "hello").unwrap();
    std::fs::copy(path.with_file_name("server.crt"), path.with_file_name("server.key")).unwrap();
    let (no_key, no_certificate) =
        ("server.key has no private key in PEM form", "ca.crt has no certificate in PEM form");
    let expected = [
        ("broker.listener.tls.key", no_key, false),
        ("broker.listener.tls.client_ca", no_certificate, false),
        ("upstream.password_file", "home.password cannot be read: No such file or directory (os error 2)", true),
        ("upstream.tls.ca", no_certificate, false),
        ("http.tls.key", no_key, false),
    ];
    let expected = expected.map(|(key, message, missing)| (format!("{key}: {message}"), missing));
    assert_eq!(file_problems(&path), expected);
    std::fs::write(path.with_file_name("home.password"), "\n").unwrap();
    assert!(file_problems(&path).contains(&("upstream.password_file: home.password is empty".into(), false)));
}

#[test]
fn tls_files_that_do_not_make_a_server_are_reported() {
    let (_dir, path) = example_dir();
    let other = rcgen::generate_simple_self_signed(vec!["pi".into()]).unwrap();
    std::fs::write(path.with_file_name("server.key"), other.signing_key.serialize_pem()).unwrap();
    let problems = file_problems(&path);
    let message = "server.key will not do: this key does not belong to the certificate in server.crt";
    let expected = ["broker.listener.tls.key", "http.tls.key"].map(|key| (format!("{key}: {message}"), false));
    assert_eq!(problems, expected);
    // a file that has the form of a certificate but contains none
    let pem = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
    std::fs::write(path.with_file_name("server.crt"), pem).unwrap();
    let (problem, is_missing) = file_problems(&path).remove(0);
    assert!(problem.starts_with("broker.listener.tls.cert: server.crt will not do: ") && !is_missing, "{problem}");
}

#[test]
fn files_written_on_windows_are_read_as_meant() {
    let (_dir, path) = example_dir();
    for name in ["home.password", "ca.crt", "server.crt", "server.key"] {
        let path = path.with_file_name(name);
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, format!("\u{feff}{}", text.replace('\n', "\r\n"))).unwrap();
    }
    assert_eq!(file_problems(&path), []);
    let text = EXAMPLE.replace("# tls = {", "tls = {").replace('\n', "\r\n");
    std::fs::write(&path, format!("\u{feff}{text}")).unwrap();
    assert_eq!(load_in(&path, &environment()).unwrap().files, []);
}

#[test]
fn secrets_that_others_can_read_are_warned_about() {
    let dir = tempfile::tempdir().unwrap();
    let (path, secret) = (dir.path().join("t.toml"), dir.path().join("secret"));
    std::fs::write(&secret, "pass").unwrap();
    let set_mode = |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    set_mode(dir.path(), 0o755);
    let found = |address: &str, mode| -> Vec<String> {
        set_mode(&secret, mode);
        let login = "username = \"a\"\npassword_file = \"secret\"\n[[upstream.out]]\ntopic_filter = \"a\"\n";
        std::fs::write(&path, UPSTREAM.replace("mqtt://h", address) + login).unwrap();
        load_in(&path, &environment()).unwrap().warnings.iter().map(|found| found.to_string()).collect()
    };
    for (address, mode) in [("mqtts://h", 0o600), ("mqtt://127.0.0.1:1884", 0o640), ("wss://h/", 0o400)] {
        assert_eq!(found(address, mode), [] as [String; 0]);
    }
    let sent = found("mqtt://h", 0o600).pop().unwrap();
    assert!(sent.contains("upstream.addresses: mqtt://h:1883 has no TLS"), "{sent}");
    let public = found("mqtts://h", 0o644).pop().unwrap();
    assert!(public.contains("upstream.password_file: everybody on this machine can read"), "{public}");
    assert!(public.contains("chmod 600") && public.contains("LoadCredential"), "{public}");
    // as the package installs it: others cannot enter the directory, and files that root puts there can be read by the
    // gateway
    set_mode(dir.path(), 0o750);
    assert_eq!(found("mqtts://h", 0o644), [] as [String; 0]);
    // a link in the directory leads to a file that others can read
    let elsewhere = tempfile::tempdir().unwrap();
    set_mode(elsewhere.path(), 0o755);
    std::fs::rename(&secret, elsewhere.path().join("secret")).unwrap();
    std::os::unix::fs::symlink(elsewhere.path().join("secret"), &secret).unwrap();
    assert_eq!(found("mqtts://h", 0o644).len(), 1);
    assert_eq!(found("mqtts://h", 0o640).len(), 0);
}

#[test]
fn hashes_that_others_can_read_are_warned_about_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("t.toml");
    let set_mode = |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    set_mode(dir.path(), 0o755);
    let hash = crate::access::hash::make("password").unwrap();
    let user = |name: &str| format!("[[broker.user]]\nname = \"{name}\"\npassword_hash = \"{hash}\"\n");
    let found = |text: &str, mode| -> Vec<String> {
        std::fs::write(&path, text).unwrap();
        set_mode(&path, mode);
        load_in(&path, &environment()).unwrap().warnings.iter().map(|found| found.to_string()).collect()
    };
    let with_hashes = user("a") + &user("b");
    let [public] = &found(&with_hashes, 0o644)[..] else { panic!("one warning") };
    assert!(public.contains("guess the passwords") && public.contains("chmod 640"), "{public}");
    assert_eq!(found(&with_hashes, 0o640), [] as [String; 0]);
    assert_eq!(found("[log]\nlevel = \"info\"\n", 0o644), [] as [String; 0]);
    set_mode(dir.path(), 0o750);
    assert_eq!(found(&with_hashes, 0o644), [] as [String; 0]);
}

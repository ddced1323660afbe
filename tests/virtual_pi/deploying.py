"""Over ssh: deploy/deploy (refusals that change nothing, an upgrade, versions that do not start, a first install), and
what docs/install.md says is done by hand."""

import os
import pathlib
import re
import subprocess
import tempfile
from time import monotonic

from faults import watches_motion
from machine import ACTIVE, EDITS, Subscriber, free_port, say

HERE = pathlib.Path(__file__).parent
# compressed only a little, because an emulator unpacks well compressed files slowly
REPACK = ["dpkg-deb", "--root-owner-group", "-Zgzip", "-z1", "-b"]
PID = "systemctl show -p MainPID --value pigateway"


class Deployer:
    """A person at a computer with deploy/deploy and an ssh key that the Pi knows."""

    def __init__(self, pi, directory):
        self.pi, self.directory = pi, directory
        self.key = f"{directory}/key"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.key], check=True)
        public = pathlib.Path(self.key + ".pub").read_text().strip()
        pi.run(f"""id plain > /dev/null || useradd -m plain
for user in pi plain; do
    install -d -m 700 -o $user -g $user /home/$user/.ssh
    echo '{public}' > /home/$user/.ssh/authorized_keys
    chown $user: /home/$user/.ssh/authorized_keys
done
systemctl start ssh""")

    def options(self, port=None):
        """The options of ssh for the virtual Pi, with keys that an emulator exchanges quickly."""
        return [f"Port={port or self.pi.ssh_port}", f"IdentityFile={self.key}", "StrictHostKeyChecking=no",
                f"UserKnownHostsFile={self.directory}/known_hosts", "LogLevel=ERROR", "BatchMode=yes",
                "KexAlgorithms=curve25519-sha256"]

    def deploy(self, package, *arguments, user="pi", port=None):
        """Runs it, and returns its exit code and its output. Without a package it builds one."""
        options = [part for option in self.options(port) for part in ("-o", option)]
        command = [HERE / "../../deploy/deploy", *arguments, *options, f"{user}@127.0.0.1"]
        environment = {name: value for name, value in os.environ.items() if name != "PACKAGE"}
        if package:
            environment["PACKAGE"] = str(package)
        done = subprocess.run(command, env=environment, text=True, capture_output=True, stdin=subprocess.DEVNULL,
                              timeout=900, check=False)
        print(done.stdout, done.stderr, flush=True)
        return done.returncode, done.stdout + done.stderr

    def refused(self, package, *words, **how):
        """Checks that it fails with these words, and that the gateway keeps running unchanged."""
        pid = self.pi.run(PID)
        code, said = self.deploy(package, **how)
        assert code == 1 and all(word in said for word in words), (words, said)
        assert self.pi.run(PID) == pid != "0"


def repacked(package, directory, version, program):
    """Makes the package in another version, with a shell script as the program."""
    tree, path = f"{directory}/tree-{version}", f"{directory}/pigateway-{version}.deb"
    subprocess.run(["dpkg-deb", "-R", package, tree], check=True)
    control = pathlib.Path(f"{tree}/DEBIAN/control")
    lines = control.read_text().splitlines(keepends=True)
    control.write_text("".join(f"Version: {version}\n" if line.startswith("Version:") else line for line in lines))
    pathlib.Path(f"{tree}/usr/bin/pigateway").write_text(f"#!/bin/sh\n{program}\n")
    subprocess.run([*REPACK, tree, path], check=True, stdout=subprocess.DEVNULL)
    return path


def pretend(pi, program, option, answer):
    """Makes a program of the Pi answer one question like another machine. Returns the function that ends that."""
    pi.run(f"""cat > /usr/local/bin/{program} <<'END'
#!/bin/sh
[ "$1" = {option} ] && echo '{answer}' || exec /usr/bin/{program} "$@"
END
chmod +x /usr/local/bin/{program}""")
    return lambda: pi.run(f"rm /usr/local/bin/{program}")


def refusals(pi, person, package):
    """Checks that obstacles are reported in plain words."""
    person.refused(package, "no ssh connection", "is the Pi on", port=free_port())
    person.refused(package, "sudo asks for a password", "NOPASSWD", user="plain")
    for program, option, answer, words in (
        ("dpkg", "--print-architecture", "amd64", ("amd64", "not a Raspberry Pi")),
        ("systemctl", "--version", "systemd 247 (247.3-7)", ("too old", "bookworm")),
    ):
        end = pretend(pi, program, option, answer)
        person.refused(package, *words)
        end()


def deploy_again(pi, package):
    """Deploys to a Pi with the package: refusals, an upgrade that adds a sensor, and versions that do not work."""
    with tempfile.TemporaryDirectory() as directory:
        person = Deployer(pi, directory)
        refusals(pi, person, package)

        begin = monotonic()
        code, said = person.deploy(package, "--sensor", "hall-motion:27:hall/motion")
        assert code == 0 and "is ready" in said, said
        say(f"deployed over ssh in {monotonic() - begin:.1f} s")
        assert "serving; 2 sensors" in pi.run("systemctl status pigateway --no-pager")

        person.refused(repacked(package, directory, "97", "exit 1"), "does not accept the configuration")
        begin = monotonic()
        code, said = person.deploy(repacked(package, directory, "98", '[ "$1" = check ]'))
        assert code == 1 and "does not become ready" in said and "the version before runs again" in said, said
        say(f"a version that does not start was taken back in {monotonic() - begin:.1f} s")
        assert "serving; 2 sensors" in pi.run("systemctl status pigateway --no-pager")
        assert pi.run("dpkg-query -W -f '${Version}' pigateway") not in ("97", "98")


def nothing_left(pi):
    """Checks that only logs and the copies of the test and its persons are left of the gateway's files."""
    left = pi.run("""find / -xdev -path /proc -prune -o -name '*pigateway*' -print |
        grep -v -e ^/var/log -e ^/tmp -e ^/root -e ^/home || true""")
    assert not left, left


def commands(heading):
    """The blocks of commands below a heading of docs/install.md."""
    text = (HERE / "../../docs/install.md").read_text(encoding="utf-8").split(f"\n{heading}\n")[1]
    return re.findall(r"(?m)(?:^    .*\n)+", re.split(r"(?m)^#", text)[0])


def by_hand(pi, package):
    """Installs and removes the gateway by the unchanged commands of docs/install.md."""
    copied, installed = commands("### 3. By hand")
    with tempfile.TemporaryDirectory() as directory:
        person = Deployer(pi, directory)
        tree = pathlib.Path(directory, "tree")
        # the sources, with the files that deploy/build has made
        subprocess.run(["dpkg-deb", "-x", package, f"{directory}/package"], check=True)
        (tree / "target/deploy").mkdir(parents=True)
        os.rename(f"{directory}/package/usr/bin/pigateway", tree / "target/deploy/pigateway-arm64")
        for name in ("systemd", "deploy"):
            (tree / name).symlink_to((HERE / "../.." / name).resolve())
        config = pathlib.Path(directory, "ssh_config")
        config.write_text("Host raspberrypi.local\nHostName 127.0.0.1\n" + "".join(
            option.replace("=", " ", 1) + "\n" for option in person.options()), encoding="utf-8")

        def follow(*command, text):
            text = "set -e\n" + re.sub("(?m)^ *deploy/build .*", "", text).replace("armv7", "arm64")
            subprocess.run(command, input=text, text=True, cwd=tree, timeout=120, check=True)

        on_the_pi = ["ssh", "-F", config, "pi@raspberrypi.local", "bash -s"]
        follow("bash", "-s", text=f'scp() {{ command scp -F {config} "$@"; }}\n{copied}')
        follow(*on_the_pi, text=installed)
        pi.run(f"{ACTIVE} && systemctl is-enabled pigateway && {EDITS} && systemctl reload pigateway")
        subscriber = Subscriber(pi.mqtt_port, "-t", "loft/#", "-q", "1")
        subscriber.wait("loft/motion1/status [01] online")
        watches_motion(pi, subscriber, 17, "loft/motion1")
        subscriber.close()
        follow(*on_the_pi, text=commands("## Uninstalling")[1])
    nothing_left(pi)


def deploy_first(pi, package):
    """Builds and deploys to a Pi without the gateway: it has the given sensor, and starts at boot."""
    pi.run("! test -e /etc/pigateway && ! dpkg-query -W pigateway")
    if not os.environ.get("PACKAGE"):
        package = None
    logins = "journalctl -b -u ssh -o cat --no-pager | grep -c '^Accepted ' || true"
    before = int(pi.run(logins))
    with tempfile.TemporaryDirectory() as directory:
        begin = monotonic()
        code, said = Deployer(pi, directory).deploy(package, "--sensor", "hall-motion:27:hall/motion")
    assert code == 0 and "is ready" in said and "journalctl" in said, said
    # a person with a password types it only once, however long the build takes
    assert int(pi.run(logins)) == before + 1
    if not package:
        say(f"built and deployed in {monotonic() - begin:.1f} s")
        assert "building for arm64" in said
        built = subprocess.check_output(["sha256sum", HERE / "../../target/deploy/pigateway-arm64"], text=True)
        assert pi.run("sha256sum /usr/bin/pigateway").split()[0] == built.split()[0]
    assert pi.run("systemctl is-enabled pigateway") == "enabled"
    assert "serving; 1 sensor" in pi.run("systemctl status pigateway --no-pager")
    assert "sensor hall-motion on pin 27 publishes to hall/motion" in pi.run("journalctl -u pigateway -o cat --no-pager")
    # open to the host, to see the first event there
    pi.run("sed -i 's/^accept = .*/accept = \"all\"/' /etc/pigateway/pigateway.toml; systemctl reload pigateway")
    subscriber = Subscriber(pi.mqtt_port, "-t", "hall/#")
    subscriber.wait("hall/motion/status [01] online")
    subscriber.close()

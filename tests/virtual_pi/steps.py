"""The steps of the test with the virtual Pi: the gateway as a package and a service.

Run by tests/virtual_pi/run. Every step leaves the gateway running for the next one.
"""

import itertools
import json
import pathlib
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback

import booting
import conditions
from announced import announced
from deploying import REPACK, by_hand, deploy_again, deploy_first, nothing_left
from faults import pin_faults
from machine import ACTIVE, EDITS, Mosquitto, Pi, Subscriber, end_all, free_port, say, wait_for

HERE = pathlib.Path(__file__).parent


def install(pi, package):
    """The package installs, and the gateway is ready."""
    pi.put(package, "/root/pigateway.deb")
    begin = time.monotonic()
    print(pi.run("dpkg -i /root/pigateway.deb", timeout=300))
    pi.wait_until("the gateway is ready", ACTIVE)
    say(f"installed and ready in {time.monotonic() - begin:.1f} s")
    assert "gpio" in pi.run("id -nG pigateway")
    assert pi.run("stat -c '%U:%G %a' /etc/pigateway/pigateway.toml") == "root:pigateway 640"
    assert pi.run("systemctl is-enabled pigateway") == "enabled"
    status = pi.run("systemctl status pigateway --no-pager")
    assert "serving; 1 sensor" in status, status
    print(pi.run("systemd-analyze security --no-pager pigateway | tail -n 1"))
    # only INFO, because a working gateway logs no warnings
    noise = pi.run("journalctl -u pigateway -p warning --no-pager -o cat")
    assert not noise or "No entries" in noise, noise


def reload(pi, _):
    """A changed configuration is applied by a reload; one with mistakes is refused and changes nothing."""
    pi.run("echo 'mistake = 1' >> /etc/pigateway/pigateway.toml")
    refused = pi.run("systemctl reload pigateway", check=False)
    assert "failed" in refused, refused
    pi.run(ACTIVE)
    pi.run("sed -i '/^mistake/d' /etc/pigateway/pigateway.toml")
    pi.run(EDITS)
    pi.run("systemctl reload pigateway")
    pi.wait_until("the reload", "journalctl -u pigateway -o cat | grep -q '^configuration reloaded'")


def motion(pi, _):
    """A pin that moves becomes a message on the host; its state is retained."""
    subscriber = Subscriber(pi.mqtt_port, "-t", "loft/#", "-q", "1")
    subscriber.wait("loft/motion1/status [01] online")
    subscriber.wait('"state":"off"')
    begin = time.time()
    pi.pin(17, True)
    line = subscriber.wait('"state":"on"')
    say(f"pin to subscriber on the host, with the test's own shell: {(float(line.split()[0]) - begin) * 1000:.0f} ms")
    assert json.loads(line.split(" ", 3)[3])["sensor"] == "loft-motion"
    count = len(subscriber.lines())
    pi.pin(17, False)
    subscriber.wait('"state":"off"', after=count)
    subscriber.close()
    again = Subscriber(pi.mqtt_port, "-t", "loft/motion1")
    again.wait(r' loft/motion1 1 \{')
    again.close()


def journal(pi, _):
    """Lines of the log can be found by their fields."""
    fields = json.loads(pi.run("journalctl SENSOR=loft-motion -o json --no-pager -n 1"))
    assert fields["PIN"] == "17" and fields["TOPIC"] == "loft/motion1", fields
    assert fields["_SYSTEMD_UNIT"] == "pigateway.service", fields
    assert fields["SYSLOG_IDENTIFIER"] == "pigateway", fields
    # a client that breaks the protocol is found by its id
    with socket.create_connection(("127.0.0.1", pi.mqtt_port), timeout=30) as client:
        client.sendall(b"\x10\x17\x00\x04MQTT\x04\x02\x00\x3c\x00\x0btest-client")
        assert client.recv(4) == b"\x20\x02\x00\x00"
        client.sendall(b"\x00\x00")
        assert client.recv(1) == b""
    pi.wait_until("the line of the client", "journalctl CLIENT_ID=test-client -o cat --no-pager | grep protocol")


def stop(pi, _):
    """A stop takes less than five seconds, with a client connected; a start is ready soon."""
    subscriber = Subscriber(pi.mqtt_port, "-t", "loft/motion1/status")
    subscriber.wait("online")
    begin = time.monotonic()
    pi.run("systemctl stop pigateway")
    took = time.monotonic() - begin
    subscriber.close()
    print(pi.run("journalctl -u pigateway -o short-monotonic --no-pager -n 6"))
    assert took < 5, took
    begin = time.monotonic()
    pi.run("systemctl start pigateway")
    say(f"stopped in {took:.1f} s, started and ready in {time.monotonic() - begin:.1f} s")
    begin = pi.run("systemctl show -p ExecMainStartTimestampMonotonic --value pigateway")
    ready = pi.run("systemctl show -p ActiveEnterTimestampMonotonic --value pigateway")
    say(f"from process start to READY in the virtual Pi: {(int(ready) - int(begin)) / 1000:.0f} ms")


def watchdog(pi, _):
    """A gateway that hangs is killed and started again."""
    drop_in = "/run/systemd/system/pigateway.service.d"
    pi.run(f"mkdir -p {drop_in}; printf '[Service]\\nWatchdogSec=8s\\n' > {drop_in}/test.conf; systemctl daemon-reload")
    pi.run("systemctl restart pigateway")
    pid = pi.run("systemctl show -p MainPID --value pigateway")
    show = "systemctl show --value pigateway -p"
    fed = f"$(( $({show} WatchdogTimestampMonotonic) - $({show} ExecMainStartTimestampMonotonic) ))"
    pi.wait_until("it is fed for longer than the watchdog waits", f"test {fed} -gt 12000000")
    assert pi.run("systemctl show -p MainPID --value pigateway") == pid, "it is fed"
    begin = time.monotonic()
    pi.run("systemctl kill -s STOP pigateway")
    pi.wait_until("a restart", f"{ACTIVE} && test $(systemctl show -p MainPID --value pigateway) != {pid}")
    say(f"hung, killed and ready again in {time.monotonic() - begin:.1f} s")
    assert "watchdog" in pi.run("journalctl -u pigateway -o cat --no-pager -n 40").lower()
    pi.run(f"rm -r {drop_in}; systemctl daemon-reload; systemctl restart pigateway")


def credentials(pi, _):
    """A secret comes from systemd, out of a file that the gateway itself may not read; an upstream uses it."""
    port = free_port()
    upstream = Mosquitto(port)
    pi.run("mkdir -pm 700 /etc/pigateway/secrets; umask 077; echo secret > /etc/pigateway/secrets/home.password")
    pi.run("mkdir -p /etc/systemd/system/pigateway.service.d")
    pi.put(HERE / "../../systemd/secrets.conf", "/etc/systemd/system/pigateway.service.d/secrets.conf")
    pi.run(f"""cat >> /etc/pigateway/pigateway.toml <<'END'

[[upstream]]
name = "home"
addresses = ["mqtt://10.0.3.2:{port}"]
username = "loft"
password_file = "home.password"
status_topic = "sites/pi/status"

[[upstream.out]]
topic_filter = "loft/#"
remote_prefix = "sites/"

[[broker.listener]]
address = "0.0.0.0:1883"

[[broker.listener]]
address = "{conditions.LATE_LISTENER}"
END
systemctl daemon-reload; systemctl restart pigateway""")
    subscriber = Subscriber(port, "-t", "sites/#", "-q", "1")
    subscriber.wait("sites/pi/status [01] online")
    subscriber.wait("sites/loft/motion1/status [01] online")
    subscriber.close()
    pi.wait_until("the line of the upstream", "journalctl UPSTREAM=home -o cat --no-pager | grep connected")
    upstream.close()
    pi.run("sync")  # the power cut is to hit messages, not this configuration
    return port


def publish_until_cut(pi, acknowledged):
    """Publishes message after message until the Pi is off, and records the acknowledged ones."""
    command = ["mosquitto_pub", "-h", "127.0.0.1", "-p", str(pi.mqtt_port), "-q", "1", "-t", "loft/cut"]
    for number in itertools.count():
        message = f"message-{number}"
        if subprocess.run([*command, "-m", message], capture_output=True, check=False).returncode != 0:
            return
        acknowledged.append(message)


def power_cut(pi, port):
    """Acknowledged messages for an absent upstream survive a power cut; network and time come late."""
    pi.run("printf %4096s old > /root/unflushed")
    conditions.prepare(pi, "systemd-timesyncd")
    acknowledged = []
    publisher = threading.Thread(target=publish_until_cut, args=(pi, acknowledged))
    publisher.start()
    wait_for("enough messages", lambda: len(acknowledged) >= 200 or not publisher.is_alive())
    # writes past the cache of the system into that of the disk without a flush, so that the power cut loses this write
    overwrite = "printf %4096s new | dd of=/root/unflushed oflag=direct conv=notrunc bs=4096 2> /dev/null"
    wait_for("a write that is not flushed", lambda: pi.run(overwrite) == "" and pi.disk.cache)
    lost = pi.cut_power()
    publisher.join()
    say(f"power cut: {len(acknowledged)} messages acknowledged, {lost} blocks not flushed are gone")
    assert len(acknowledged) >= 200
    pi.boot()
    pi.wait_until("the gateway is ready", ACTIVE)
    conditions.without_network(pi)
    return port, acknowledged


def after_cut(pi, before):
    """The network comes two minutes after boot: messages that were acknowledged before the power cut arrive, even after restarts."""
    port, acknowledged = before
    moved = conditions.moves_without_time(pi)
    upstream = Mosquitto(port)
    subscriber = Subscriber(port, "-t", "sites/#", "-q", "1")
    begin = time.monotonic()
    conditions.network_comes(pi)
    for message in acknowledged:
        subscriber.wait(f" {message}$", 120)
    say(f"all of them had arrived {time.monotonic() - begin:.1f} s after these were waited for")
    subscriber.close()
    upstream.close()
    conditions.timesyncd(pi, moved)


def boot(pi, _):
    """From power on to the first message of a pin, with all that Raspberry Pi OS meets: a clock that is weeks behind, a
    network and a time server (for chrony) that come later, and a card that cannot read what is old: here the test's own disk
    answers with read errors."""
    booting.prepare(pi)
    conditions.prepare(pi, "chrony")
    worn = conditions.old_blocks(pi)
    pi.cut_power()
    pi.disk.worn.update(worn)
    begin = time.monotonic()
    pi.boot()
    pi.wait_until("the gateway is ready", ACTIVE)
    say(f"power on to ready: {time.monotonic() - begin:.1f} s")
    motion(pi, None)
    say(f"power on to the first motion on the host: {time.monotonic() - begin:.1f} s")
    booting.compare(pi)
    conditions.worn_card_is_said(pi)
    conditions.without_network(pi)


def after_boot(pi, _):
    """Two minutes after that boot there is a network, and then a time server."""
    moved = conditions.moves_without_time(pi)
    conditions.network_comes(pi)
    conditions.chrony(pi, moved)
    conditions.as_usual(pi)
    booting.as_before(pi)


def pi5(pi, _):
    """The same on a Pi 5, whose pins belong to another chip."""
    pi.run("sync")
    pi.cut_power()
    pi.model = "pi5"
    pi.boot()
    pi.wait_until("the gateway is ready", ACTIVE)
    motion(pi, None)


def compare(pi, _):
    """Prints the time from an edge to a subscriber and the processor time, compared with a Python program; nothing is checked."""
    pi.run("""cat >> /etc/pigateway/pigateway.toml <<'END'

[[sensor]]
name = "compare"
pin = 22
topic = "compare/gateway"
payload = "on_off"
qos = 0
retain = false
debounce = "0 s"
hold = "0 s"
warm_up = "0 s"
END
systemctl restart pigateway""")
    pi.put(HERE / "compare.py", "/root/compare.py")
    print(pi.run("python3 /root/compare.py 22 compare/gateway 23", timeout=300))


def memory(pi, _):
    """The unit's limits are in force, the gateway stays far below them, and a gateway that exceeds them is started again."""
    names = ("MemoryHigh", "MemoryMax", "MemoryPeak", "OOMScoreAdjust", "ControlGroup", "MainPID", "NRestarts", "Environment",
             "LimitCORE", "StartupCPUWeight")
    shown = pi.run(f"systemctl show pigateway {' '.join(f'-p {name}' for name in names)}; grep MemTotal /proc/meminfo")
    values = dict(re.findall(r"(?m)^(\w+)[=:] *(\S+)", shown))
    total, group = int(values["MemTotal"]) * 1024, f"/sys/fs/cgroup{values['ControlGroup']}"
    for name, file, part in (("MemoryHigh", "memory.high", 0.45), ("MemoryMax", "memory.max", 0.6)):
        limit = int(pi.run(f"cat {group}/{file}"))
        assert abs(limit - int(values[name])) <= 4096 and abs(limit / total - part) < 0.01, (name, limit, shown)
    assert pi.run(f"cat /proc/{values['MainPID']}/oom_score_adj") == values["OOMScoreAdjust"] == "0", shown
    # one heap from the start, without a second start of the program, and no core is dumped
    assert (values["Environment"], values["LimitCORE"]) == ("MALLOC_ARENA_MAX=1", "1"), shown
    # the share of the processor while the system boots; systemd decides when the boot is over
    assert values["StartupCPUWeight"] == "500" and pi.run(f"cat {group}/cpu.weight") in ("500", "100"), shown
    peak = int(values["MemoryPeak"])
    say(f"most memory since its start, with what the system caches for it: {peak >> 20} of {total >> 20} MiB")
    assert peak < int(values["MemoryHigh"]) / 3, shown
    # the limit is lowered instead of raising the memory; the next start has the unit's limit again
    pi.run(f"echo 1M > {group}/memory.max")
    begin = time.monotonic()
    another = f"test $(systemctl show -p MainPID --value pigateway) != {values['MainPID']}"
    pi.wait_until("a restart", f"{ACTIVE} && {another}")
    say(f"above its limit, killed and ready again in {time.monotonic() - begin:.1f} s")
    assert int(pi.run("systemctl show -p NRestarts --value pigateway")) == int(values["NRestarts"]) + 1
    assert "Failed with result 'oom-kill'" in pi.run("journalctl -b -u pigateway -o cat --no-pager -n 40")
    assert abs(int(pi.run(f"cat {group}/memory.max")) / total - 0.6) < 0.01


def package_life(pi, package):
    """An upgrade keeps a changed configuration and the data; remove keeps both; purge keeps nothing."""
    with tempfile.TemporaryDirectory() as directory:
        subprocess.run(["dpkg-deb", "-R", package, f"{directory}/tree"], check=True)
        control = pathlib.Path(f"{directory}/tree/DEBIAN/control")
        control.write_text(re.sub(r"(?m)^Version: .*", "Version: 99", control.read_text()))
        with open(f"{directory}/tree/etc/pigateway/pigateway.toml", "a", encoding="utf-8") as config:
            config.write("# from version 99\n")
        subprocess.run([*REPACK, f"{directory}/tree", f"{directory}/99.deb"], check=True)
        pi.put(f"{directory}/99.deb", "/root/99.deb")
    config = "/etc/pigateway/pigateway.toml"
    pi.run("touch /var/lib/pigateway/data")
    before = pi.run(f"cat {config}")
    pid = pi.run("systemctl show -p MainPID --value pigateway")
    print(pi.run("dpkg --force-confdef --force-confold -i /root/99.deb", timeout=300))
    pi.wait_until("the new version", f"{ACTIVE} && test $(systemctl show -p MainPID --value pigateway) != {pid}")
    assert pi.run(f"cat {config}") == before
    assert "from version 99" in pi.run(f"tail -n 1 {config}.dpkg-dist")
    assert pi.run(f"stat -c '%U:%G %a' {config}") == "root:pigateway 640"
    pi.run("dpkg -r pigateway", timeout=300)
    assert pi.run("systemctl is-active pigateway", check=False) == "inactive"
    pi.run(f"test -e {config} && test -e /var/lib/pigateway/data && test ! -e /usr/bin/pigateway")
    pi.run("rm -rf /etc/pigateway/secrets /etc/systemd/system/pigateway.service.d")
    pi.run("dpkg -P pigateway", timeout=300)
    nothing_left(pi)


# steps that need no network run between a boot without a network and the arrival of the network
STEPS = [install, reload, motion, conditions.no_time, credentials, power_cut, journal, pin_faults, stop, watchdog, after_cut,
         boot, announced, memory, deploy_again, after_boot, compare, pi5, package_life, by_hand, deploy_first]
# the steps that a step needs, if it needs more than an installed and configured gateway
NEEDED = {install: [], reload: [install], by_hand: [], deploy_first: [],
          **dict.fromkeys((power_cut, boot), [install, reload, credentials]),
          after_cut: [install, reload, credentials, power_cut], after_boot: [install, reload, credentials, boot]}
# the steps that end the conditions that a step has begun
ENDED = {power_cut: after_cut, boot: after_boot}


def chosen(names):
    """The steps with these names and those that they need, in order; all steps if there are no names."""
    unknown = set(names) - {step.__name__ for step in STEPS}
    if unknown:
        sys.exit(f"no such step: {', '.join(unknown)}; there are {', '.join(step.__name__ for step in STEPS)}")
    wanted = {step for step in STEPS if not names or step.__name__ in names}
    wanted |= {ENDED[step] for step in wanted & ENDED.keys()}
    needed = {other for step in wanted for other in NEEDED.get(step, [install, reload])}
    return [step for step in STEPS if step in wanted | needed]


def explain(pi):
    """Prints information about why a step has failed."""
    print(pathlib.Path(pi.serial.name).read_text(errors="replace")[-2000:])
    if pi.qemu and pi.qemu.poll() is None:
        log = "journalctl -u pigateway -n 60 --no-pager; systemctl --failed --no-pager"
        try:
            print(pi.run(log, check=False, timeout=30))
        except OSError as error:
            print(f"the virtual Pi does not answer: {error}")


def main():
    images, package, *names = sys.argv[1:]
    steps = chosen(names)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))
    pi = Pi(images)
    done, name = 0, "power on"
    try:
        pi.boot()
        before = None
        for step in steps:
            begin, name = time.monotonic(), step.__name__
            result = step(pi, before if step in (power_cut, after_cut) else package)
            before = result or before
            done += 1
            say(f"ok: {name} ({time.monotonic() - begin:.1f} s)")
    except Exception:
        explain(pi)
        traceback.print_exc()
        sys.exit(f"{done} passed, 1 failed: {name}; {len(steps) - done - 1} not run")
    finally:
        end_all()
    print(f"{done} passed, 0 failed")


if __name__ == "__main__":
    main()

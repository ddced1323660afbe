"""What Raspberry Pi OS boots under: no clock that runs without power, a network and a time server that come later, and a
card that cannot read any more what has lain there for long.

The network comes two minutes after boot, by a timer in the Pi; steps that need none run meanwhile. The time server is a
program in the Pi, since timesyncd asks at port 123 only, and comes after the network. That old blocks cannot be read is the
work of the test's own disk (disk.py): the kernel gets an I/O error for these blocks and no others, as from a card, until they
are written anew. dm-flakey in the Pi would fail whole ranges by the clock instead.
"""

import datetime
import json
import pathlib
import subprocess
import time

from machine import ACTIVE, Subscriber, say, wait_for

HERE = pathlib.Path(__file__).parent
# a second address of the gateway, which exists only when the network is available
LATE_LISTENER = "10.0.3.15:1884"
# the time after boot at which the network is available
LATE_SECONDS = 120
THREE_WEEKS = 21 * 86400
READY = r"""exec 3<> /dev/tcp/127.0.0.1/8080
printf 'GET /readyz HTTP/1.0\r\nHost: localhost\r\n\r\n' >&3; cat <&3"""
# runs with all restrictions of the unit
CLOCK_PROBE = r"""
import ctypes, errno, time
libc = ctypes.CDLL(None, use_errno=True)
def adjtimex(modes):
    timex = ctypes.create_string_buffer(modes.to_bytes(4, "little"), 512)
    return "allowed" if libc.adjtimex(timex) >= 0 else errno.errorcode[ctypes.get_errno()]
def set_time():
    try:
        time.clock_settime(time.CLOCK_REALTIME, time.time())
        return "allowed"
    except OSError as error:
        return errno.errorcode[error.errno]
print("the clock: reading", adjtimex(0), "adjusting", adjtimex(2), "setting", set_time(), flush=True)
"""
# makes the kernel report an unset clock, as it does by itself after hours without a time server
UNSYNCHRONISE = r"""
import ctypes, struct
timex = ctypes.create_string_buffer(struct.pack("<IxxxxqqqqI", 0x14, 0, 0, 16000000, 16000000, 0x40), 512)
assert ctypes.CDLL(None).adjtimex(timex) == 5
"""
# the blocks of the disk with the older half of the written part of a file, without its head
OLD_BLOCKS = r"""
import fcntl, os, struct, sys
for path in filter(os.path.exists, sys.argv[1:]):
    with open(path, "rb") as file:
        used = len(file.read().rstrip(b"\0")) // 4096 + 1
        for number in range(min(2, used - 1), max(used // 2, 1)):
            print(struct.unpack("I", fcntl.ioctl(file, 1, struct.pack("I", number)))[0])
"""


def told(pi):
    """The data of the page, which `pigateway status` reads."""
    return json.loads(pi.run("pigateway status --json"))


def all_show(pi, part, is_faulty, name=None):
    """Waits until page, `/readyz` and status line show a part as faulty, or not; `name` is its name in the status line."""
    def agree():
        page = any(faulty["part"] == part for faulty in told(pi)["gateway"]["faulty"])
        ready = f"\n{part}: " in pi.run(READY)
        line = pi.run("systemctl show -p StatusText --value pigateway")
        return {page, ready, (name or part) in line.partition("; faulty: ")[2]} == {is_faulty}
    wait_for(f"{part} is shown as {'faulty' if is_faulty else 'working'}", agree, 60)


def state(line):
    """The payload of a line of a subscriber."""
    return json.loads(line.split(" ", 3)[3])


def no_time(pi, _):
    """While the clock is not set, that is reported and messages have no time. The unit allows to read the clock but not to set it."""
    all_show(pi, "clock", True)
    subscriber = Subscriber(pi.mqtt_port, "-t", "loft/motion1")
    assert state(subscriber.wait('"state"'))["time"] is None
    subscriber.close()
    drop_in = "/run/systemd/system/pigateway.service.d"
    pi.run(f"""mkdir -p {drop_in}; cat > /run/probe.py <<'END'
{CLOCK_PROBE}
END
printf '[Service]\\nExecStartPre=python3 /run/probe.py\\n' > {drop_in}/probe.conf
systemctl daemon-reload; systemctl restart pigateway; rm -r {drop_in}; systemctl daemon-reload""")
    line = pi.run("journalctl -b -u pigateway -o cat --no-pager | grep '^the clock: reading'")
    print(f"    {line}")
    assert line == "the clock: reading allowed adjusting EPERM setting EPERM", line


def prepare(pi, source):
    """Prepares the next boot, with a late network and this source of time."""
    other = "chrony" if source == "systemd-timesyncd" else "systemd-timesyncd"
    # the time of the last shutdown, as timesyncd keeps it
    kept, then = "/var/lib/systemd/timesync/clock", int(time.time()) - THREE_WEEKS
    pi.run(f"""touch /etc/network-is-late; systemctl disable --quiet {other}; systemctl enable --quiet {source}
install -d -o systemd-timesync -g systemd-timesync {kept.rpartition("/")[0]}
touch {kept}; chown systemd-timesync: {kept}; touch -d @{then} {kept}; sync""")


def without_network(pi):
    """Checks that missing parts are named and others work. The following checks run without a network."""
    pi.run("test -e /etc/network-is-late && test ! -e /run/network-came")
    all_show(pi, "clock", True)
    all_show(pi, f"listener {LATE_LISTENER}", True)
    all_show(pi, "upstream home", True)


def moves_without_time(pi):
    """Checks that local clients and sensors are served. Returns when motion began."""
    subscriber = Subscriber(pi.mqtt_port, "-t", "loft/motion1", "-q", "1")
    count = len(subscriber.wait('"state":"off"') and subscriber.lines())
    begin = time.time()
    pi.pin(17, True)
    moved = state(subscriber.wait('"state":"on"', after=count))
    assert moved["time"] is None, moved
    subscriber.close()
    return begin


def network_comes(pi):
    """Checks that the late listener opens by itself. The caller checks upstreams."""
    uptime = "cut -d ' ' -f 1 /proc/uptime"
    waited = LATE_SECONDS - float(pi.run(uptime))
    pi.wait_until("the network", "test -e /run/network-came", 2 * LATE_SECONDS)
    all_show(pi, f"listener {LATE_LISTENER}", False)
    pi.run(f"exec 3<> /dev/tcp/{LATE_LISTENER.replace(':', '/')}")
    came = float(pi.run("cat /run/network-came"))
    assert came >= LATE_SECONDS, came
    seen = float(pi.run(uptime)) - came
    late = f"the late listener was seen open {seen:.1f} s after that" if waited > 0 else "steps were at work when it came"
    say(f"the network came {came:.0f} s after boot, of which {max(waited, 0):.0f} s were waited for; {late}")


def time_comes(pi, since, then="true"):
    """Starts a time server and runs this command. Then the clock is set, and the last motion gets its time."""
    behind = time.time() - int(pi.run("date +%s"))
    assert behind > THREE_WEEKS - 86400, f"the clock is {behind} s behind"
    subscriber = Subscriber(pi.mqtt_port, "-t", "loft/motion1", "-q", "1")
    assert state(subscriber.wait('"state":"on"'))["time"] is None
    pi.put(HERE / "time_server.py", "/root/time_server.py")
    at_boot = time.time() - float(pi.run("cut -d ' ' -f 1 /proc/uptime"))
    pi.run(f"systemd-run --quiet --unit=time-server python3 /root/time_server.py {at_boot}")
    pi.wait_until("the time server", "grep ':007B ' /proc/net/udp")
    pi.run(then)
    all_show(pi, "clock", False)
    moved = state(subscriber.wait('"state":"on".*"time":"|"time":".*"state":"on"'))["time"]
    moved = datetime.datetime.fromisoformat(moved).timestamp()
    assert since - 60 < moved < time.time() + 60, (since, moved)
    subscriber.close()
    pi.pin(17, False)
    say(f"the clock was {behind / 86400:.0f} days behind; the motion from before has its time now, {moved - since:+.1f} s")


def timesyncd(pi, since):
    """The file of timesyncd shows that the clock is set."""
    # networkd would notify it of the network, so that it would not wait for its next attempt
    time_comes(pi, since, "systemctl restart systemd-timesyncd")
    pi.run("test -e /run/systemd/timesync/synchronized; systemctl is-active systemd-timesyncd")


def chrony(pi, since):
    """Only the kernel decides whether the clock is set, and its report holds for this boot, even after a restart."""
    time_comes(pi, since)
    pi.run("test ! -e /run/systemd/timesync/synchronized; systemctl is-active chrony")
    pi.run(f"systemctl stop chrony; python3 -c '{UNSYNCHRONISE}'; systemctl restart pigateway")
    pi.wait_until("the gateway is ready", ACTIVE)
    all_show(pi, "clock", False)
    assert told(pi)["gateway"]["clock_synchronised"] is True


def old_blocks(pi):
    """The blocks of the disk with old messages and with the history of the sensor."""
    # messages that wait for an upstream that does not exist, which no earlier step has made
    port, lines = str(pi.mqtt_port), "".join(f"{number} {'old' * 300}\n" for number in range(40))
    publish = ["mosquitto_pub", "-h", "127.0.0.1", "-p", port, "-q", "1", "-t", "loft/old", "-l"]
    subprocess.run(publish, input=lines, text=True, timeout=60, check=True)
    files = "/var/lib/pigateway/journal/00000000.segment /var/lib/pigateway/history/loft-motion.jsonl"
    blocks = pi.run(f"cat > /root/blocks.py <<'END'\n{OLD_BLOCKS}\nEND\npython3 /root/blocks.py {files}")
    assert pi.run("stat -f -c %S /var/lib/pigateway") == "4096"
    return {int(number) for number in blocks.split()}


def worn_card_is_said(pi):
    """Checks that unreadable files are named, and that everything else works."""
    assert pi.disk.failed_reads > 0, "nobody has read the worn blocks"
    # files that were not needed for the start are checked later
    pi.wait_until("the damage is said", "journalctl -b -u pigateway -p warning -o cat --no-pager | grep 'damaged in'")
    data = told(pi)
    assert data["gateway"]["journal"]["damaged"] > 0, data["gateway"]
    assert any("damaged in" in problem["text"] for problem in data["problems"]), data["problems"]
    say(f"a worn card: {len(pi.disk.worn)} blocks cannot be read, {pi.disk.failed_reads} reads have failed")


def as_usual(pi):
    """Prepares a next boot with a network and a readable card."""
    pi.disk.worn.clear()
    pi.run("rm /etc/network-is-late; systemctl disable --quiet chrony; sync")

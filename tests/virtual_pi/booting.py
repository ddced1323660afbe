"""Measures what the gateway adds to the boot of a Pi, compared with a unit that does nothing in the same boot.

The time that an emulator takes to boot depends more on its machine and on the other contents of the image than on the
gateway. A second unit with the same dependencies, which is ready as soon as it is started, waits for the same things on the
same machine. The additional time of the gateway is its own, and is limited to a part of the boot.
"""

from machine import say

# the gateway must be ready before the boot has taken twice as long as without it; its card here has unreadable blocks, and
# other programs may keep the machine busy. docs/speed.md has the figure for an idle machine.
MOST = 1.0
UNIT = "does-nothing.service"


def prepare(pi):
    """Adds a unit to compare with at the next boot."""
    pi.run(f"""cat > /etc/systemd/system/{UNIT} <<'END'
[Unit]
After=network.target
[Service]
Type=exec
ExecStart=/bin/sleep infinity
[Install]
WantedBy=multi-user.target
END
systemctl enable --quiet {UNIT}""")


def compare(pi):
    """Checks that the gateway is ready soon after that unit."""
    def times(unit, *names):
        shown = pi.run(f"systemctl show {unit} {' '.join(f'-p {name}' for name in names)}")
        values = dict(line.split("=") for line in shown.splitlines())
        return [int(values[name]) for name in names]

    (other,) = times(UNIT, "ActiveEnterTimestampMonotonic")
    start, ready = times("pigateway", "ExecMainStartTimestampMonotonic", "ActiveEnterTimestampMonotonic")
    (processor,) = times("pigateway", "CPUUsageNSec")
    added = ready - other
    say(f"since the kernel's start: a unit that does nothing is there after {other / 1e6:.2f} s, the gateway is started after "
        f"{start / 1e6:.2f} s and ready after {ready / 1e6:.2f} s; it adds {added / other:.0%} to the boot "
        f"(at most {MOST:.0%}), and has used {processor / 1e9:.2f} s of processor time by now")
    assert 0 < other and added <= MOST * other, (other, start, ready)


def as_before(pi):
    """Removes the unit."""
    pi.run(f"systemctl disable --quiet --now {UNIT}; rm /etc/systemd/system/{UNIT}; systemctl daemon-reload")

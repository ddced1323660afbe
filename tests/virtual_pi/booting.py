"""What the gateway adds to the boot of a Pi: compared with a unit that does nothing, in the same boot.

How long an emulator takes to boot says more about the machine that it runs on, and about what else is in the image, than
about the gateway. A unit with the dependencies of the gateway's, which is there as soon as it is started, waits for the same
things on the same machine. What the gateway takes longer than that is its own, and is bounded by a part of the boot.
"""

from machine import say

# the gateway is ready before the boot has taken twice as long as it would without it: here its card does not read all blocks,
# and other programs may keep the machine busy. docs/speed.md says what it adds where nothing else goes on.
MOST = 1.0
UNIT = "does-nothing.service"


def prepare(pi):
    """At the next boot there is a unit to compare with."""
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
    """The gateway is ready soon after that unit."""
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
    """The unit is gone."""
    pi.run(f"systemctl disable --quiet --now {UNIT}; rm /etc/systemd/system/{UNIT}; systemctl daemon-reload")

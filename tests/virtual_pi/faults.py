"""Pins that cannot be watched: each fault is named with its remedy, the gateway keeps running, and the pin works again by itself."""

from time import monotonic

from conditions import all_show
from machine import Subscriber, say, wait_for

CONFIG = "/etc/pigateway/pigateway.toml"
# holds a line like any other program
HOLDER = """
import gpiod, pathlib, signal
chips = map(str, pathlib.Path("/dev").glob("gpiochip*"))
chip = next(path for path in chips if gpiod.Chip(path).get_info().label.startswith("pinctrl-"))
with gpiod.request_lines(chip, consumer="fan-control", config={22: gpiod.LineSettings()}):
    pathlib.Path("/run/holder.ready").touch()
    signal.pause()
"""


def add_sensor(pi, name, pin):
    """Adds a quick sensor to the configuration, which the next reload or start reads."""
    pi.run(f"""cat >> {CONFIG} <<'END'

[[sensor]]
name = "{name}"
pin = {pin}
topic = "faults/{name}"
hold = "0 s"
warm_up = "0 s"
END""")


def errors(pi, sensor):
    """The messages of the log about a sensor at level ERROR."""
    lines = pi.run(f"journalctl -b SENSOR={sensor} -p err -o cat --no-pager", check=False)
    return [line for line in lines.splitlines() if not line.startswith("--")]


def reported(pi, sensor, *words):
    """Waits until an error contains all these words, and returns it."""
    def found():
        return next((line for line in errors(pi, sensor) if all(word in line for word in words)), None)
    line = wait_for(f"an error of {sensor} with {words}", found, 60)
    print(f"    {line}")


def watches_motion(pi, subscriber, pin, topic):
    """A pin that goes up and down is published."""
    count = len(subscriber.lines())
    pi.pin(pin, True)
    subscriber.wait(f'{topic} .*"state":"on"', after=count)
    pi.pin(pin, False)
    subscriber.wait(f'{topic} .*"state":"off"', after=count)


def taken(pi, subscriber):
    """A line that another program holds: the fault is named, and the sensor works when the line is released."""
    pi.run(f"cat > /run/holder.py <<'END'\n{HOLDER}\nEND\nsystemd-run --quiet --unit=holder python3 /run/holder.py")
    pi.wait_until("the other holder", "test -e /run/holder.ready")
    add_sensor(pi, "taken", 22)
    pi.run("systemctl reload pigateway")
    subscriber.wait("faults/taken/status [01] offline")
    reported(pi, "taken", "pin 22", '"fan-control"', "config.txt")
    watches_motion(pi, subscriber, 17, "loft/motion1")
    count = len(subscriber.lines())
    # the line has been tried again meanwhile, and only the first attempt was logged
    pi.wait_until("the status line", "systemctl status pigateway --no-pager | grep '; faulty: taken'")
    assert len(errors(pi, "taken")) == 1, errors(pi, "taken")
    begin = monotonic()
    pi.run("systemctl stop holder")
    subscriber.wait("faults/taken/status [01] online", after=count)
    say(f"a released pin is watched after {monotonic() - begin:.1f} s")
    watches_motion(pi, subscriber, 22, "faults/taken")


def named_twice(pi, subscriber):
    """A pin that two sensors name: `check` warns, the second is faulty, and all others keep running."""
    pi.run(f"cp {CONFIG} /root/before.toml")
    add_sensor(pi, "twice", 17)
    # 66 means that a secret comes from systemd and is missing for this shell, which is no mistake of the configuration
    warning = pi.run(f"pigateway check {CONFIG} 2>&1 || [ $? -eq 66 ]")
    print(f"    {warning}")
    assert "pin 17" in warning and "sensor.pin" in warning, warning
    pi.run("systemctl reload pigateway")
    subscriber.wait("faults/twice/status [01] offline")
    reported(pi, "twice", "pin 17", '"loft-motion"')
    watches_motion(pi, subscriber, 17, "loft/motion1")
    pi.run(f"cat /root/before.toml > {CONFIG}; systemctl reload pigateway")


def not_there(pi, subscriber):
    """A pin that is not on the header; on this Pi it leads to the SD card."""
    add_sensor(pi, "absent", 50)
    pi.run("systemctl reload pigateway")
    subscriber.wait("faults/absent/status [01] offline")
    reported(pi, "absent", "pin 50", "does not exist on the header of Raspberry Pi 4 B", "BCM number")
    watches_motion(pi, subscriber, 17, "loft/motion1")


def forbidden(pi, subscriber):
    """Missing permissions at the start: file and group are named, the broker serves, and the sensor works after the correction."""
    subscriber.close()
    pi.run("chmod 600 /dev/gpiochip* /dev/gpiomem*; systemctl restart pigateway; systemctl is-active pigateway")
    reported(pi, "loft-motion", "pin 17", "no permission for /dev/gpio", "group gpio")
    subscriber = Subscriber(pi.mqtt_port, "-t", "loft/#", "-q", "1")
    subscriber.wait("loft/motion1/status 1 offline")
    all_show(pi, "sensor loft-motion", True, "loft-motion")
    pi.run("chmod 660 /dev/gpiochip* /dev/gpiomem*")
    subscriber.wait("loft/motion1/status [01] online")
    watches_motion(pi, subscriber, 17, "loft/motion1")
    all_show(pi, "sensor loft-motion", False, "loft-motion")
    subscriber.close()


def driver_gone(pi, subscriber):
    """The GPIO disappears while its pin is watched, and comes back: clients stay connected, and the sensor works again."""
    count = len(subscriber.lines())
    pi.run("echo 0 > /sys/kernel/config/gpio-sim/pi/live")
    subscriber.wait("loft/motion1/status [01] offline", after=count)
    all_show(pi, "sensor loft-motion", True, "loft-motion")
    reported(pi, "loft-motion", "pin 17", "cannot be used")
    pi.run("/usr/local/sbin/gpio-of-a-pi")
    all_show(pi, "sensor loft-motion", False, "loft-motion")
    subscriber.wait("loft/motion1/status [01] online", after=count)
    watches_motion(pi, subscriber, 17, "loft/motion1")


def pin_faults(pi, _):
    """Tests all faults, and restores the configuration."""
    pi.run(f"cp {CONFIG} /root/unfaulty.toml")
    subscriber = Subscriber(pi.mqtt_port, "-t", "loft/#", "-t", "faults/#", "-q", "1")
    subscriber.wait("loft/motion1/status [01] online")
    for fault in (taken, driver_gone, not_there, named_twice, forbidden):
        fault(pi, subscriber)
    pi.run(f"cat /root/unfaulty.toml > {CONFIG}; systemctl reload pigateway")

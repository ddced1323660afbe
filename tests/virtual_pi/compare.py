"""Runs in the virtual Pi: from an edge to a subscriber, by the gateway and by a program of gpiod and paho beside it.

usage: compare.py PIN_OF_GATEWAY TOPIC_OF_GATEWAY PIN_OF_PROGRAM. Prints the median and worst time and the processor time
per edge of each. Both publish to the gateway's broker, at QoS 0 and without debouncing or hold.
"""

import os
import pathlib
import queue
import statistics
import subprocess
import sys
import time

import paho.mqtt.client as mqtt

EDGES = 40
TICK = os.sysconf("SC_CLK_TCK")


def program(pin):
    """A typical program for gpiod and paho."""
    import gpiod
    from gpiod.line import Edge

    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
    client.connect("127.0.0.1")
    client.loop_start()
    settings = gpiod.LineSettings(edge_detection=Edge.BOTH)
    # QEMU's machine has a chip of its own besides that of the Pi
    chips = map(str, pathlib.Path("/dev").glob("gpiochip*"))
    chip = next(path for path in chips if gpiod.Chip(path).get_info().label.startswith("pinctrl-"))
    with gpiod.request_lines(chip, consumer="program", config={pin: settings}) as lines:
        print("ready", flush=True)
        while True:
            for event in lines.read_edge_events():
                rising = event.event_type is event.Type.RISING_EDGE
                client.publish("compare/program", "ON" if rising else "OFF")


def processor_seconds(pid):
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICK


def measure(name, pid, pin, topic):
    messages = queue.SimpleQueue()
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
    client.on_message = lambda _client, _data, message: message.retain or messages.put(time.monotonic())
    client.on_subscribe = lambda *_: messages.put(0)
    client.connect("127.0.0.1")
    client.subscribe(topic)
    client.loop_start()
    messages.get(timeout=60)
    pull = pathlib.Path(f"/run/gpio/sim_gpio{pin}/pull")
    times = []
    before = processor_seconds(pid)
    for number in range(EDGES):
        begin = time.monotonic()
        pull.write_text("pull-down" if number % 2 else "pull-up")
        times.append((messages.get(timeout=60) - begin) * 1000)
        time.sleep(0.1)
    processor = (processor_seconds(pid) - before) * 1000 / EDGES
    print(f"{name}: edge to subscriber {statistics.median(times):.1f} ms (worst {max(times):.1f}), "
          f"processor {processor:.1f} ms an edge", flush=True)
    client.loop_stop()


def main():
    if sys.argv[1] == "program":
        program(int(sys.argv[2]))
        return
    gateway = int(subprocess.check_output(["systemctl", "show", "-p", "MainPID", "--value", "pigateway"]))
    measure("gateway", gateway, sys.argv[1], sys.argv[2])
    with subprocess.Popen([sys.executable, __file__, "program", sys.argv[3]], stdout=subprocess.PIPE) as other:
        try:
            assert other.stdout.readline() == b"ready\n"
            measure("gpiod and paho", other.pid, sys.argv[3], "compare/program")
        finally:
            other.kill()


if __name__ == "__main__":
    main()

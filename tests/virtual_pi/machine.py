"""A virtual Raspberry Pi in QEMU, and what is on its host."""

import pathlib
import re
import socket
import subprocess
import tempfile
import time

from disk import Disk

START = time.monotonic()


def say(text):
    """Prints a line with the seconds since the start of the test."""
    print(f"{time.monotonic() - START:7.1f} s  {text}", flush=True)


def wait_for(what, condition, seconds=120):
    """Waits until `condition` returns something, and returns that."""
    end = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > end:
            raise AssertionError(f"waited {seconds} s in vain: {what}")
        time.sleep(0.1)


def free_port():
    """A loopback port that nobody uses."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


class Pi:
    """A Pi with its disk; the disk outlives power cuts."""

    def __init__(self, images, model="pi4"):
        self.images = pathlib.Path(images)
        self.model = model
        self.disk = Disk(self.images / "root.ext4")
        self.shell_port, self.mqtt_port, self.ssh_port = free_port(), free_port(), free_port()
        self.serial = tempfile.NamedTemporaryFile(prefix="virtual-pi-", suffix=".log")
        self.qemu = None

    def boot(self):
        """Switches it on and waits for its shell."""
        ports = ((self.shell_port, 2222), (self.mqtt_port, 1883), (self.ssh_port, 22))
        forward = "".join(f",hostfwd=tcp:127.0.0.1:{host}-:{guest}" for host, guest in ports)
        command = [
            "qemu-system-aarch64", "-M", "virt", "-cpu", "cortex-a72", "-smp", "2", "-m", "512",
            "-accel", "tcg,thread=multi", "-nodefaults", "-nographic", "-no-reboot", "-monitor", "none",
            "-serial", f"file:{self.serial.name}",
            "-kernel", self.images / "vmlinuz", "-initrd", self.images / "initrd",
            "-dtb", self.images / f"{self.model}.dtb",
            "-append", "console=ttyAMA0 quiet systemd.show_status=0 systemd.gpt_auto=0 net.ifnames=0 panic=-1",
            "-drive", f"file=nbd:127.0.0.1:{self.disk.port},format=raw,if=virtio,cache=writeback",
            "-netdev", f"user,id=net{forward}", "-device", "virtio-net-pci,netdev=net,romfile=",
        ]
        begin = time.monotonic()
        self.qemu = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        wait_for("the shell of the virtual Pi", self._answers, 300)
        say(f"{self.model} booted to a shell in {time.monotonic() - begin:.1f} s")

    def _answers(self):
        if self.qemu.poll() is not None:
            raise AssertionError(f"QEMU ended: {pathlib.Path(self.serial.name).read_text()[-2000:]}")
        try:
            return "pi" in self.run("hostname", timeout=5)
        except (OSError, AssertionError):
            time.sleep(0.4)
            return False

    def cut_power(self):
        """Ends it at once; unflushed writes are gone."""
        self.qemu.kill()
        self.qemu.wait()
        return self.disk.power_cut()

    def run(self, script, timeout=120, check=True):
        """Runs a shell script as root and returns what it printed."""
        with socket.create_connection(("127.0.0.1", self.shell_port), timeout=timeout) as connection:
            # one write: bash reads its script from the connection
            script = f"({script}\n) < /dev/null 2>&1; printf '\\nEXIT=%s\\n' $?; exit\n"
            connection.sendall(script.encode())
            output = b""
            while not (match := re.search(rb"\nEXIT=(\d+)\n$", output)):
                received = connection.recv(65536)
                if not received:
                    raise OSError("the shell has gone")
                output += received
        text = output[: match.start()].decode(errors="replace").strip()
        if check and match[1] != b"0":
            raise AssertionError(f"exit code {match[1].decode()} of: {script}\n{text}")
        return text

    def put(self, source, target):
        """Copies a file into it."""
        data = pathlib.Path(source).read_bytes()
        with socket.create_connection(("127.0.0.1", self.shell_port), timeout=300) as connection:
            # the shell must have read its line before the data come
            connection.sendall(f"echo GO; head -c {len(data)} > {target}; echo DONE; exit\n".encode())
            stream = connection.makefile("rwb")
            assert stream.readline() == b"GO\n"
            stream.write(data)
            stream.flush()
            assert stream.readline() == b"DONE\n"

    def pin(self, number, high):
        """Puts a level on a pin."""
        self.run(f"echo pull-{'up' if high else 'down'} > /run/gpio/sim_gpio{number}/pull")

    def wait_until(self, what, script, seconds=120):
        """Waits until a script succeeds."""
        wait_for(what, lambda: "yes" in self.run(f"{script} > /dev/null && echo yes", check=False), seconds)


class Subscriber:
    """mosquitto_sub on the host."""

    def __init__(self, port, *arguments):
        self.file = tempfile.NamedTemporaryFile(prefix="virtual-pi-", suffix=".messages")
        command = ["mosquitto_sub", "-h", "127.0.0.1", "-p", str(port), "-v", "-F", "%U %t %r %p", *arguments]
        self.process = subprocess.Popen(command, stdout=self.file, stderr=subprocess.STDOUT)

    def lines(self):
        """What has come so far: time, topic, retain flag and payload."""
        return pathlib.Path(self.file.name).read_text().splitlines()

    def wait(self, pattern, seconds=60, after=0):
        """Waits for a line that matches; returns it."""
        assert self.process.poll() is None, f"mosquitto_sub has ended: {self.lines()}"
        found = lambda: next((line for line in self.lines()[after:] if re.search(pattern, line)), None)
        try:
            return wait_for(f"a message like {pattern}", found, seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}; there were {self.lines()}") from None

    def close(self):
        """Ends it."""
        self.process.terminate()
        self.process.wait()


class Mosquitto:
    """An upstream broker on the host, seen from the Pi at 10.0.2.2."""

    def __init__(self, port):
        self.port = port
        self.config = tempfile.NamedTemporaryFile("w", prefix="virtual-pi-", suffix=".conf")
        self.config.write(f"listener {port} 127.0.0.1\nallow_anonymous true\nmax_queued_messages 0\n")
        self.config.flush()
        command = ["mosquitto", "-c", self.config.name]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for("the upstream to listen", self._listens, 30)

    def _listens(self):
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", self.port)) == 0

    def close(self):
        """Ends it."""
        self.process.terminate()
        self.process.wait()

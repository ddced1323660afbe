"""A virtual Raspberry Pi in QEMU, and programs on its host."""

import pathlib
import re
import socket
import subprocess
import tempfile
import time

from disk import Disk

START = time.monotonic()
# short times for a test, and open to the host, whose address is not the Pi's loopback
EDITS = r"""sed -i 's/^accept = .*/accept = "all"/; s/^hold = .*/hold = "1 s"/; s/^warm_up = .*/warm_up = "1 s"/' \
    /etc/pigateway/pigateway.toml"""
ACTIVE = "systemctl is-active --quiet pigateway"
# without the kernel's protections against attackers, which make system calls several times slower in an emulator
KERNEL = ("console=ttyAMA0 quiet systemd.show_status=0 systemd.gpt_auto=0 net.ifnames=0 panic=-1 nokaslr mitigations=off "
          "init_on_alloc=0 audit=0 lsm=capability")
_started = []


def say(text):
    """Prints a line with the seconds since the start of the test."""
    print(f"{time.monotonic() - START:7.1f} s  {text}", flush=True)


def wait_for(what, condition, seconds=120):
    """Waits until `condition` returns a true value, and returns it."""
    end = time.monotonic() + seconds
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > end:
            raise AssertionError(f"waited {seconds} s in vain: {what}")
        time.sleep(0.1)


def free_port():
    """A free loopback port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def start(command, **how):
    """Starts a program of the host. `end_all` ends it if it still runs."""
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL, **how)
    _started.append(process)
    return process


def end_all():
    """Ends all started programs that still run."""
    for process in _started:
        if process.poll() is None:
            process.kill()
            process.wait()


class Pi:
    """A Pi with its disk; the disk outlives power cuts."""

    def __init__(self, images, model="pi4"):
        self.images = pathlib.Path(images)
        self.model = model
        self.disk = Disk(self.images / "root.ext4")
        self.shell_port, self.mqtt_port, self.ssh_port = free_port(), free_port(), free_port()
        self.serial = tempfile.NamedTemporaryFile(prefix="virtual-pi-", suffix=".log")
        self.qemu = self._shell = None

    def boot(self):
        """Switches it on and waits for its shell."""
        ports = ((self.shell_port, 2222), (self.mqtt_port, 1883), (self.ssh_port, 22))
        # eth0: connects to the test; eth1: connects to all other hosts
        forward = "".join(f",hostfwd=tcp:127.0.0.1:{host}-:{guest}" for host, guest in ports)
        command = [
            "qemu-system-aarch64", "-M", "virt", "-cpu", "cortex-a72", "-smp", "2", "-m", "512",
            "-accel", "tcg,thread=multi", "-nodefaults", "-nographic", "-no-reboot", "-monitor", "none",
            "-serial", f"file:{self.serial.name}",
            "-kernel", self.images / "vmlinuz", "-initrd", self.images / "initrd",
            "-dtb", self.images / f"{self.model}.dtb",
            "-append", KERNEL,
            "-drive", f"file=nbd:127.0.0.1:{self.disk.port},format=raw,if=virtio,cache=writeback",
            "-netdev", f"user,id=net{forward}", "-device", "virtio-net-pci,netdev=net,romfile=",
            "-netdev", "user,id=rest,net=10.0.3.0/24", "-device", "virtio-net-pci,netdev=rest,romfile=",
        ]
        begin = time.monotonic()
        self.qemu = start(command)
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
        """Ends it at once. Unflushed writes are lost."""
        self.qemu.kill()
        self.qemu.wait()
        self._forget_shell()
        return self.disk.power_cut()

    def _connect(self, timeout):
        # one shell for all scripts, because in the emulator starting another takes longer than most scripts
        if not self._shell:
            self._shell = socket.create_connection(("127.0.0.1", self.shell_port), timeout=timeout)
        self._shell.settimeout(timeout)
        return self._shell

    def _forget_shell(self):
        if self._shell:
            self._shell.close()
            self._shell = None

    def _ask(self, script, end, timeout):
        """Sends lines to the shell. Returns its output up to `end`, and the match of `end`."""
        output = b""
        try:
            shell = self._connect(timeout)
            # one write: bash reads its script from the connection
            shell.sendall(script)
            while not (match := re.search(end, output)):
                received = shell.recv(65536)
                if not received:
                    raise OSError("the shell has gone")
                output += received
        except OSError:
            self._forget_shell()
            raise
        return output[: match.start()], match

    def run(self, script, timeout=120, check=True):
        """Runs a shell script as root and returns what it printed."""
        sent = f"({script}\n) < /dev/null 2>&1; printf '\\nEXIT=%s\\n' $?\n"
        output, match = self._ask(sent.encode(), rb"\nEXIT=(\d+)\n$", timeout)
        text = output.decode(errors="replace").strip()
        if check and match[1] != b"0":
            raise AssertionError(f"exit code {match[1].decode()} of: {script}\n{text}")
        return text

    def put(self, source, target):
        """Copies a file into it."""
        data = pathlib.Path(source).read_bytes()
        # the shell must have read its line before the data come
        self._ask(f"echo GO; head -c {len(data)} > {target}; echo DONE\n".encode(), rb"GO\n$", 60)
        self._ask(data, rb"DONE\n$", 300)

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
        self.process = start(command, stdout=self.file, stderr=subprocess.STDOUT)

    def lines(self):
        """The messages so far: time, topic, retain flag and payload."""
        return pathlib.Path(self.file.name).read_text().splitlines()

    def wait(self, pattern, seconds=60, after=0):
        """Waits for a line that matches, and returns it."""
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
    """An upstream broker on the host, seen from the Pi at 10.0.3.2."""

    def __init__(self, port):
        self.port = port
        self.config = tempfile.NamedTemporaryFile("w", prefix="virtual-pi-", suffix=".conf")
        self.config.write(f"listener {port} 127.0.0.1\nallow_anonymous true\nmax_queued_messages 0\n")
        self.config.flush()
        command = ["mosquitto", "-c", self.config.name]
        self.process = start(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for("the upstream to listen", self._listens, 30)

    def _listens(self):
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", self.port)) == 0

    def close(self):
        """Ends it."""
        self.process.terminate()
        self.process.wait()

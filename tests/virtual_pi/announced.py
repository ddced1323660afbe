"""mDNS with a real Avahi: which services of the gateway avahi-browse sees, and when."""

import pathlib
import subprocess
import tempfile

from conditions import LATE_LISTENER
from machine import ACTIVE, say, wait_for

HERE = pathlib.Path(__file__).parent
LATE_PORT = LATE_LISTENER.partition(":")[2]
CONFIG = "/etc/pigateway/pigateway.toml"
THREE = {"_http._tcp": "8080", "_mqtt._tcp": "1883", "_secure-mqtt._tcp": "8883"}


def found(pi):
    """The gateway's services: their ports by their types, and the names under which they are found."""
    services, names = {}, set()
    browse = "; ".join(f"avahi-browse -rptk {kind}" for kind in THREE)
    for line in pi.run(browse, check=False).splitlines():
        fields = line.split(";")
        # =;interface;protocol;name;type;domain;host;address;port;txt
        # other steps check whether the network is available
        if fields[0] == "=" and fields[8] != LATE_PORT:
            services[fields[4]] = fields[8]
            names.add(fields[3])
            assert fields[6] == "pi.local" and '"id=pi"' in fields[9], line
            assert ('"path=/"' in fields[9]) == (fields[4] == "_http._tcp"), line
    return services, names


def is_found(pi, expected):
    """Waits until exactly these services are found."""
    seen = None

    def agree():
        nonlocal seen
        seen, names = found(pi)
        return seen == expected and names <= {"pigateway\\032pi"}
    try:
        wait_for("services", agree, 60)
    except AssertionError:
        raise AssertionError(f"{seen} is found instead of {expected}") from None


def memory(pi):
    """Memory of the gateway in KiB."""
    return int(pi.run("awk '/^RssAnon/ {print $2}' /proc/$(systemctl show -p MainPID --value pigateway)/status"))


def announced(pi, _):
    """Within its sandbox the gateway uses an Avahi that starts late or again, and its announcements end when it stops."""
    with tempfile.TemporaryDirectory() as directory:
        subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
                        "-subj", "/CN=pi.local", "-days", "9000", "-keyout", f"{directory}/server.key",
                        "-out", f"{directory}/server.crt"], check=True, capture_output=True)
        for name in ("server.key", "server.crt"):
            pi.put(pathlib.Path(directory, name), f"/etc/pigateway/{name}")
    pi.run(f"""chgrp pigateway /etc/pigateway/server.*; chmod 640 /etc/pigateway/server.*
cp {CONFIG} /root/unannounced.toml; grep -q '^address = "0.0.0.0:1883"' {CONFIG} || printf '\\n[[broker.listener]]\\naddress = "0.0.0.0:1883"\\n' >> {CONFIG}
cat >> {CONFIG} <<'END'

[[broker.listener]]
address = "0.0.0.0:8883"
tls = {{ cert = "server.crt", key = "server.key" }}
END
systemctl restart pigateway""")
    # it is looked for two seconds after the start
    pi.wait_until("the note", "pigateway status --json | grep 'Avahi does not run here'")
    before = memory(pi)
    pi.run("systemctl start avahi-daemon")
    is_found(pi, THREE)
    say(f"the gateway takes {memory(pi) - before} KiB more of memory once it has told Avahi")
    pi.run("systemctl stop pigateway")
    is_found(pi, {})
    pi.run("systemctl start pigateway")
    is_found(pi, THREE)
    pi.run("systemctl restart avahi-daemon")
    is_found(pi, THREE)
    # Avahi accepts the file for hosts of containers
    pi.run("systemctl stop pigateway")
    is_found(pi, {})
    pi.put(HERE / "../../deploy/avahi.service", "/etc/avahi/services/pigateway.service")
    pi.wait_until("the file to be read", "avahi-browse -rptk _mqtt._tcp | grep '^=.*;pigateway.032pi;_mqtt._tcp;.*;1883;'")
    pi.run(f"""rm /etc/avahi/services/pigateway.service /etc/pigateway/server.*
systemctl stop avahi-daemon.socket avahi-daemon; cat /root/unannounced.toml > {CONFIG}; systemctl start pigateway""")
    pi.wait_until("the gateway is ready", ACTIVE)

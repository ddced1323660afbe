"""Runs in the virtual Pi: a time server for its source of time, which asks at 127.0.0.1.

usage: time_server.py SECONDS: the wall time at boot, as Unix time. What is done to the Pi's own wall clock does not matter.
"""

import socket
import struct
import sys
import time

# from 1900 on, as NTP counts
AT_BOOT = float(sys.argv[1]) + 2_208_988_800


def stamp():
    """The present time."""
    now = time.clock_gettime(time.CLOCK_BOOTTIME) + AT_BOOT
    return struct.pack(">II", int(now), int(now % 1 * 2**32))


server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
server.bind(("127.0.0.1", 123))
while True:
    request, client = server.recvfrom(512)
    received = stamp()
    # a server's answer (mode 4) in the version of the question; stratum 1, and its clock is exact
    head = struct.pack(">BBbbII4s", request[0] & 0x38 | 4, 1, 0, -20, 0, 0, b"TEST")
    server.sendto(head + received + request[40:48] + received + stamp(), client)

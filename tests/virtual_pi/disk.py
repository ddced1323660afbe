"""A disk for QEMU that loses what was not flushed when the power fails.

A network block device (the newstyle protocol, simple replies) over a read-only image. Writes stay in a volatile cache
until the guest flushes or asks for FUA; then they become part of the stable disk. `power_cut` throws the cache away,
as a real drive would. A block is 4 KiB; a cut may also tear what one unflushed request wrote, which dropping all of it
covers. Blocks that are `worn` cannot be read until they are written anew, when a card puts others in their place.
"""

import socket
import struct
import threading

BLOCK = 4096
MAGIC, OPTION_MAGIC, REPLY_MAGIC = 0x4E42444D41474943, 0x49484156454F5054, 0x0003E889045565A9
OPT_EXPORT_NAME, OPT_ABORT, OPT_INFO, OPT_GO = 1, 2, 6, 7
REP_ACK, REP_INFO, REP_ERR_UNSUP = 1, 3, 0x80000001
READ, WRITE, DISCONNECT, FLUSH, TRIM, WRITE_ZEROES = 0, 1, 2, 3, 4, 6
# has flags, flush, FUA, trim, write zeroes
FLAGS = 1 | 4 | 8 | 32 | 64
FUA = 1
EIO = 5


class Disk:
    """Serves `image` on a loopback port. Written blocks are kept in memory."""

    def __init__(self, image):
        self.image = open(image, "rb")
        self.size = self.image.seek(0, 2)
        self.stable = {}
        self.cache = {}
        self.flushes = 0
        self.worn = set()
        self.failed_reads = 0
        self.lock = threading.Lock()
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def power_cut(self):
        """Drops all blocks that were not flushed, and returns their number."""
        with self.lock:
            lost = len(self.cache)
            self.cache.clear()
            return lost

    def _accept(self):
        while True:
            connection, _ = self.listener.accept()
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection):
        stream = connection.makefile("rwb")
        try:
            if self._negotiate(stream):
                self._transmit(stream)
        except (OSError, EOFError, struct.error):
            pass  # QEMU has been killed
        finally:
            connection.close()

    def _negotiate(self, stream):
        stream.write(struct.pack(">QQH", MAGIC, OPTION_MAGIC, 1 | 2))  # fixed newstyle, no zeroes
        stream.flush()
        (flags,) = struct.unpack(">I", _read(stream, 4))
        while True:
            _, option, length = struct.unpack(">QII", _read(stream, 16))
            _read(stream, length)
            if option == OPT_EXPORT_NAME:
                stream.write(struct.pack(">QH", self.size, FLAGS) + (b"" if flags & 2 else bytes(124)))
                stream.flush()
                return True
            if option in (OPT_GO, OPT_INFO):
                info = struct.pack(">HQH", 0, self.size, FLAGS)
                _reply(stream, option, REP_INFO, info)
                _reply(stream, option, REP_ACK)
                if option == OPT_GO:
                    return True
            elif option == OPT_ABORT:
                _reply(stream, option, REP_ACK)
                return False
            else:
                _reply(stream, option, REP_ERR_UNSUP)

    def _transmit(self, stream):
        while True:
            _, flags, command, handle, offset, length = struct.unpack(">IHHQQI", _read(stream, 28))
            data, error = b"", 0
            if command == DISCONNECT:
                return
            with self.lock:
                if command == READ and self._is_worn(offset, length):
                    self.failed_reads += 1
                    error = EIO
                elif command == READ:
                    data = self._get(offset, length)
                elif command == WRITE:
                    self._put(offset, _read(stream, length), flags & FUA)
                elif command == WRITE_ZEROES:
                    self._put(offset, bytes(length), flags & FUA)
                elif command == FLUSH:
                    self.flushes += 1
                    self.stable.update(self.cache)
                    self.cache.clear()
            stream.write(struct.pack(">IIQ", 0x67446698, error, handle) + data)
            stream.flush()

    def _block(self, number):
        for blocks in (self.cache, self.stable):
            if number in blocks:
                return blocks[number]
        self.image.seek(number * BLOCK)
        return self.image.read(BLOCK).ljust(BLOCK, b"\0")

    def _is_worn(self, offset, length):
        return not self.worn.isdisjoint(range(offset // BLOCK, (offset + length - 1) // BLOCK + 1))

    def _get(self, offset, length):
        first, last = offset // BLOCK, (offset + length - 1) // BLOCK
        data = b"".join(self._block(number) for number in range(first, last + 1))
        return data[offset - first * BLOCK :][:length]

    def _put(self, offset, data, force):
        written = {}
        while data:
            number, inside = divmod(offset, BLOCK)
            part = data[: BLOCK - inside]
            block = part
            if len(part) < BLOCK:
                old = self._block(number)
                block = old[:inside] + part + old[inside + len(part) :]
            self.cache[number] = written[number] = bytes(block)
            self.worn.discard(number)
            offset, data = offset + len(part), data[len(part) :]
        if force:
            self.stable.update(written)
            for number in written:
                self.cache.pop(number)


def _read(stream, length):
    data = stream.read(length)
    if len(data) != length:
        raise EOFError
    return data


def _reply(stream, option, kind, data=b""):
    stream.write(struct.pack(">QIII", REPLY_MAGIC, option, kind, len(data)) + data)
    stream.flush()

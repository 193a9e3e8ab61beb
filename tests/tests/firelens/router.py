"""A log router that prints what it finds and what it gets: the forward protocol on FireLens's socket,
and on its port where there is a network. One JSON object a line."""

import json
import os
import signal
import socketserver
import struct
import sys
import threading

SOCKET = "/var/run/fluent.sock"
CONFIGS = ["/fluent-bit/etc/fluent-bit.conf", "/fluentd/etc/fluent.conf"]
FETCHED = ["/fluent-bit/etc/external.conf", "/fluentd/etc/external.conf"]
LOCK = threading.Lock()


def tell(**what):
    with LOCK:
        print(json.dumps(what), flush=True)


def exactly(stream, count):
    data = stream.read(count)
    if len(data) < count:
        raise EOFError
    return data


def number(stream, form):
    return struct.unpack(form, exactly(stream, struct.calcsize(form)))[0]


def text(stream, count):
    return exactly(stream, count).decode()


def table(stream, count):
    return {str(unpack(stream)): unpack(stream) for _ in range(count)}


def items(stream, count):
    return [unpack(stream) for _ in range(count)]


def extension(stream, count):
    kind = number(stream, ">b")
    data = exactly(stream, count)
    # An event time: seconds and nanoseconds.
    return list(struct.unpack(">II", data)) if (kind, count) == (0, 8) else None


def unpack(stream):
    """A value of MessagePack."""
    code = exactly(stream, 1)[0]
    if code <= 0x7F:
        return code
    if code <= 0x8F:
        return table(stream, code & 0x0F)
    if code <= 0x9F:
        return items(stream, code & 0x0F)
    if code <= 0xBF:
        return text(stream, code & 0x1F)
    if code >= 0xE0:
        return code - 0x100
    if code in (0xC0, 0xC2, 0xC3):
        return {0xC0: None, 0xC2: False, 0xC3: True}[code]
    sizes = {0xC4: ">B", 0xC5: ">H", 0xC6: ">I", 0xD9: ">B", 0xDA: ">H", 0xDB: ">I"}
    if code in sizes:
        return text(stream, number(stream, sizes[code]))
    numbers = {0xCA: ">f", 0xCB: ">d", 0xCC: ">B", 0xCD: ">H", 0xCE: ">I", 0xCF: ">Q"}
    numbers.update({0xD0: ">b", 0xD1: ">h", 0xD2: ">i", 0xD3: ">q"})
    if code in numbers:
        return number(stream, numbers[code])
    if 0xC7 <= code <= 0xC9:
        return extension(stream, number(stream, {0xC7: ">B", 0xC8: ">H", 0xC9: ">I"}[code]))
    if 0xD4 <= code <= 0xD8:
        return extension(stream, 1 << (code - 0xD4))
    if code in (0xDC, 0xDD):
        return items(stream, number(stream, {0xDC: ">H", 0xDD: ">I"}[code]))
    return table(stream, number(stream, {0xDE: ">H", 0xDF: ">I"}[code]))


class Forward(socketserver.StreamRequestHandler):
    """Messages [tag, time, record, option], one after the other."""

    def handle(self):
        by = "socket" if self.server.address_family == socketserver.socket.AF_UNIX else "network"
        try:
            while True:
                tag, time, record = unpack(self.rfile)[:3]
                tell(by=by, tag=tag, time=time, record=record)
        except EOFError:
            pass


class Socket(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True


class Port(socketserver.ThreadingTCPServer):
    daemon_threads = True
    allow_reuse_address = True


def stop(*_):
    tell(stopping=True)
    os._exit(0)


signal.signal(signal.SIGTERM, stop)
for path in CONFIGS + FETCHED:
    if os.path.exists(path):
        try:
            open(path, "a").close()
            writable = True
        except OSError:
            writable = False
        tell(path=path, text=open(path).read(), writable=writable)
threading.Thread(target=Port(("0.0.0.0", 24224), Forward).serve_forever, daemon=True).start()
if "--dies" in sys.argv:
    threading.Timer(1, lambda: os._exit(3)).start()
if os.path.exists(SOCKET):
    os.unlink(SOCKET)
Socket(SOCKET, Forward).serve_forever()

"""Says something on its output, and to its log router itself where it was told where that is; says
something last when it is to stop."""

import os
import signal
import socket
import struct
import sys
import time


def text(value):
    return bytes([0xD9, len(value)]) + value.encode()


def over_the_network():
    """A message of the forward protocol: [tag, seconds, {"log": ...}]."""
    message = b"\x93" + text("app-firelens-own") + b"\xce" + struct.pack(">I", int(time.time()))
    message += b"\x81" + text("log") + text("by network")
    for _ in range(600):
        try:
            address = (os.environ["FLUENT_HOST"], int(os.environ["FLUENT_PORT"]))
            with socket.create_connection(address, timeout=5) as connection:
                connection.sendall(message)
            return
        except OSError:
            # The router was started, and may not listen yet.
            time.sleep(0.05)


def stop(*_):
    print("last words", flush=True)
    # So that a router which stopped beside it would not hear them.
    time.sleep(2)
    sys.exit(0)


signal.signal(signal.SIGTERM, stop)
print("first words", flush=True)
print("some more", file=sys.stderr, flush=True)
if "FLUENT_HOST" in os.environ:
    over_the_network()
while True:
    signal.pause()

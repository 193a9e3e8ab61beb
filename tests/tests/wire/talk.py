"""talk.py serve PORT: sends every line back. talk.py HOST PORT: a line of stdin goes there, its echo to stdout."""
import socket
import sys

if sys.argv[1] == "serve":
    listening = socket.create_server(("0.0.0.0", int(sys.argv[2])))
    print("ready", flush=True)
    connection, _ = listening.accept()
    with connection, connection.makefile("rw") as lines:
        for line in lines:
            lines.write(line)
            lines.flush()
else:
    with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=10) as connection:
        lines = connection.makefile("rw")
        for line in sys.stdin:
            lines.write(line)
            lines.flush()
            print(lines.readline(), end="", flush=True)

"""Prints what comes in by eth0 that was sent by say.py, until that has said all it had to say."""
import socket

ETH_P_ALL = 3
wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
wire.bind(("eth0", ETH_P_ALL))
wire.settimeout(60)
print("ready", flush=True)
while True:
    frame, sender = wire.recvfrom(65536)
    if sender[2] == socket.PACKET_OUTGOING:
        continue
    at = frame.find(b"SAID:")
    if at < 0:
        continue
    word = frame[at + 5:].split(b";")[0].decode()
    print(word, flush=True)
    if word == "end":
        break

"""Sends frames by eth0, honest ones and others:
say.py MAC IPV4 IPV6 VICTIM_IPV4 VICTIM_IPV6 queued|both"""
import socket
import struct
import sys

mac, own4, own6, victim4, victim6, ways = sys.argv[1:7]
MAC = bytes.fromhex(mac.replace(":", ""))
OTHER = bytes.fromhex("0200deadbeef")
ALL = b"\xff" * 6
PACKET, QDISC_BYPASS = 263, 20

v4 = socket.inet_aton
def v6(text): return socket.inet_pton(socket.AF_INET6, text)

def mark(word):
    return b"SAID:" + word.encode() + b";"

def ether(source, kind, content):
    return ALL + source + struct.pack("!H", kind) + content

def arp(sender_mac, sender, target):
    return struct.pack("!HHBBH", 1, 0x0800, 6, 4, 2) + sender_mac + v4(sender) + ALL + v4(target)

def ipv4(source, target, content):
    content = struct.pack("!HHHH", 9, 9, 8 + len(content), 0) + content
    def header(checksum):
        fields = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(content), 0, 0, 64, 17, checksum)
        return fields + v4(source) + v4(target)
    total = sum(struct.unpack("!10H", header(0)))
    total = (total & 0xFFFF) + (total >> 16)
    return header(~(total + (total >> 16)) & 0xFFFF) + content

def ipv6(source, target, next_header, content):
    return struct.pack("!IHBB", 6 << 28, len(content), next_header, 255) + v6(source) + v6(target) + content

def claim(target):
    return struct.pack("!BBHI", 136, 0, 0, 0x20000000) + v6(target) + b"\x02\x01" + MAC

def udp6(source, target, word):
    content = mark(word)
    return ipv6(source, target, 17, struct.pack("!HHHH", 9, 9, 8 + len(content), 0) + content)

def icmp6(source, content, word):
    return ipv6(source, "ff02::1", 58, content + mark(word))

ADVERTISEMENT = struct.pack("!BBHI", 134, 0, 0, 0) + b"\0" * 8
frames = {
    "honest-arp": (MAC, 0x0806, lambda word: arp(MAC, own4, victim4) + mark(word)),
    "honest-probe": (MAC, 0x0806, lambda word: arp(MAC, "0.0.0.0", victim4) + mark(word)),
    "honest-ipv4": (MAC, 0x0800, lambda word: ipv4(own4, victim4, mark(word))),
    "honest-ipv6": (MAC, 0x86DD, lambda word: udp6(own6, victim6, word)),
    "honest-claim": (MAC, 0x86DD, lambda word: icmp6(own6, claim(own6), word)),
    "anothers-mac": (OTHER, 0x0800, lambda word: ipv4(own4, victim4, mark(word))),
    "anothers-ipv4": (MAC, 0x0800, lambda word: ipv4(victim4, own4, mark(word))),
    "anothers-ipv6": (MAC, 0x86DD, lambda word: udp6(victim6, own6, word)),
    "arp-for-another": (MAC, 0x0806, lambda word: arp(MAC, victim4, own4) + mark(word)),
    "arp-under-anothers-mac": (MAC, 0x0806, lambda word: arp(OTHER, own4, victim4) + mark(word)),
    "claim-of-anothers": (MAC, 0x86DD, lambda word: icmp6(own6, claim(victim6), word)),
    "router": (MAC, 0x86DD, lambda word: icmp6("fe80::1", ADVERTISEMENT, word)),
    "vlan-tagged": (MAC, 0x8100, lambda word: b"\0\x01\x08\0" + ipv4(victim4, own4, mark(word))),
}

# A raw socket may go past the queue of the interface, and past what looks at frames there.
for bypass in {"queued": [0], "both": [0, 1]}[ways]:
    wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    wire.bind(("eth0", 0))
    wire.setsockopt(PACKET, QDISC_BYPASS, bypass)
    for word, (source, kind, content) in frames.items():
        try:
            wire.send(ether(source, kind, content(word)))
        except OSError as refused:
            # The kernel may tell the sender that a frame was dropped.
            print(word, refused, file=sys.stderr)
wire.send(ether(MAC, 0x0800, ipv4(own4, victim4, mark("end"))))

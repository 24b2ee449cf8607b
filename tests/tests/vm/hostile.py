#!/usr/bin/python3
# A machine monitor that is the guest itself, and hostile: what it does is named by `deed=` on the kernel's command line.
# It speaks the link's protocol (see proto/src/link.rs) as far as it needs to, to break it at a place of its choice.
import re
import socket
import struct
import sys

MAGIC = b"coracle-link-v1\n"
OPENED, DATA, WINDOW = 2, 4, 6
words = " ".join(sys.argv[1:])
if "kvm" in words:
    sys.exit("no KVM")
deed = re.search(r"deed=(\w+)", words).group(1)
port = socket.socket(fileno=int(re.search(r"id=agent,fd=(\d+)", words).group(1))).accept()[0]
rest = b""


def take(count):
    global rest
    while len(rest) < count:
        chunk = port.recv(65536)
        if not chunk:
            sys.exit("the link has left")
        rest += chunk
    taken, rest = rest[:count], rest[count:]
    return taken


def beginning():
    """The nonce of the next session."""
    seen = b""
    while not seen.endswith(MAGIC):
        seen = (seen + take(1))[-len(MAGIC) :]
    print("session", flush=True)
    return take(16)


def frame(seal, stream, kind, payload=b""):
    return struct.pack(">IBBH", stream, kind, 0, len(payload)) + payload + seal


def opened(seal):
    """Waits for a stream, and accepts it."""
    while True:
        stream, kind, _, length = struct.unpack(">IBBH", take(8))
        take(length + 4)
        if kind == 1:
            port.sendall(frame(seal, stream, OPENED))
            return stream


while True:
    nonce = beginning()
    seal = nonce[12:]
    if deed != "noise":
        port.sendall(MAGIC + nonce)
    if deed == "noise":
        # More than is skipped, and no answer in it.
        port.sendall(bytes(range(256)) * 8192)
        continue
    if deed == "nonsense":
        opened(seal)
        port.sendall(b"\xff" * 100000)
    elif deed == "flood":
        stream = opened(seal)
        for _ in range(64):
            port.sendall(frame(seal, stream, DATA, bytes(16384)))
    elif deed == "grants":
        port.sendall(frame(seal, opened(seal), WINDOW, b"\xff\xff\xff\xff"))
    elif deed == "cut":
        # Half a frame, and what a guest's next link would send behind it.
        port.sendall(frame(seal, opened(seal), DATA, bytes(16384))[:9000] + bytes(16404))
    elif deed == "lies":
        # An answer of ttrpc that is longer than any may be.
        while True:
            stream = opened(seal)
            port.sendall(frame(seal, stream, DATA, b"\x7f\xff\xff\xff\0\0\0\1\2\0" + bytes(1000)))

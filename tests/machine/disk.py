#!/usr/bin/env python3
"""A disk with a volatile write cache, for qemu (NBD over a UNIX socket), which can lose its power.

  tests/machine/disk.py --image FILE --socket FILE --pidfile FILE [--seed N] [--lost all|some] [--cache MB] [--lies]

A write is answered when it is in memory and reaches the image at the next flush, or when the cache is
full, the oldest first: what a hard disk or an SSD without capacitors does. SIGUSR1 cuts the power: qemu, whose
process is in --pidfile, is killed after a few more writes (as the seed says), while the last one waits for
its flush; so it is cut, too, when qemu is killed by others. Of the sectors that were not flushed all are lost, or (some) each of them, by itself, has any of
the contents that it was given since the last flush, or the one from before. So requests come in any
order and in part. A sector (512 bytes) is whole. With --lies flushes do nothing: a trial that passes on
such a disk proves nothing. Ends when qemu does, and prints what was lost.
"""

import argparse
import os
import random
import signal
import socket
import struct

SECTOR = 512
REQUEST = struct.Struct(">IHHQQI")
REQUEST_MAGIC, REPLY_MAGIC, OPTION_REPLY_MAGIC = 0x25609513, 0x67446698, 0x3E889045565A9
READ, WRITE, DISCONNECT, FLUSH = 0, 1, 2, 3
EXPORT_NAME, ABORT, GO = 1, 2, 7
# Has flags, and flushes.
FLAGS = 0b101
EINVAL = 22


class Disk:
    """The image and what is written but not flushed."""

    def __init__(self, image, capacity, lies):
        self.file = os.open(image, os.O_RDWR)
        self.size = os.fstat(self.file).st_size
        self.capacity, self.lies = capacity // SECTOR, lies
        # Sector number to all it was given since the last flush, in order of the first.
        self.pending = {}
        self.flushes = 0

    def read(self, at, length):
        found = os.pread(self.file, length, at)
        if not self.pending:
            return found
        found = bytearray(found)
        for place in range(0, length, SECTOR):
            versions = self.pending.get((at + place) // SECTOR)
            if versions:
                found[place : place + SECTOR] = versions[-1]
        return found

    def write(self, at, data):
        for place in range(0, len(data), SECTOR):
            self.pending.setdefault((at + place) // SECTOR, []).append(data[place : place + SECTOR])
        excess = len(self.pending) - self.capacity
        if excess > 0:
            oldest = [number for number, _ in zip(self.pending, range(excess))]
            self.keep({number: self.pending.pop(number)[-1] for number in oldest})

    def flush(self):
        self.flushes += 1
        if not self.lies:
            self.settle()

    def settle(self):
        self.keep({number: versions[-1] for number, versions in self.pending.items()})
        self.pending.clear()

    def keep(self, sectors):
        """To the image, neighbours in one piece."""
        start, piece = 0, []
        for number in sorted(sectors):
            if piece and number != start + len(piece):
                os.pwrite(self.file, b"".join(piece), start * SECTOR)
                piece = []
            if not piece:
                start = number
            piece.append(sectors[number])
        if piece:
            os.pwrite(self.file, b"".join(piece), start * SECTOR)

    def cut(self, chance, lost):
        """The power is gone. Returns of how many sectors the newest content is lost, and kept."""
        kept, newest = {}, 0
        # How much the disk still managed differs from cut to cut.
        share = 0.0 if lost == "all" else chance.choice([0.1, 0.5, 0.9])
        for number, versions in self.pending.items():
            if chance.random() < share:
                choice = chance.randrange(len(versions))
                kept[number] = versions[choice]
                newest += choice == len(versions) - 1
        self.keep(kept)
        return len(self.pending) - newest, newest


def receive(peer, length):
    """Exactly so many bytes, or None when the other side is gone."""
    data = bytearray(length)
    view, done = memoryview(data), 0
    while done < length:
        try:
            count = peer.recv_into(view[done:])
        except ConnectionResetError:
            return None
        if count == 0:
            return None
        done += count
    return bytes(data)


def greet(peer, disk):
    """Up to where requests begin."""
    peer.sendall(b"NBDMAGICIHAVEOPT" + struct.pack(">H", 0b11))
    flags = receive(peer, 4)
    while True:
        head = receive(peer, 16)
        if head is None:
            return False
        option, length = struct.unpack(">8xII", head)
        receive(peer, length)

        def reply(kind, data=b"", option=option):
            peer.sendall(struct.pack(">QIII", OPTION_REPLY_MAGIC, option, kind, len(data)) + data)

        if option == EXPORT_NAME:
            peer.sendall(struct.pack(">QH", disk.size, FLAGS) + (b"" if flags[3] & 2 else bytes(124)))
            return True
        if option == GO:
            reply(3, struct.pack(">HQH", 0, disk.size, FLAGS))
            # Blocks: the smallest, the preferred, the largest.
            reply(3, struct.pack(">HIII", 3, SECTOR, 4096, 32 << 20))
            reply(1)
            return True
        if option == ABORT:
            reply(1)
            return False
        # Not supported.
        reply(0x80000001)


def serve(peer, disk, writes_left):
    """Answers requests; true when the other side said that it goes. `writes_left` is how many more writes
    there may be, as a function."""
    while True:
        head = receive(peer, REQUEST.size)
        if head is None:
            return False
        magic, _, kind, handle, at, length = REQUEST.unpack(head)
        if magic != REQUEST_MAGIC:
            raise SystemExit("no NBD request")
        error, answer = 0, b""
        if kind == WRITE:
            data = receive(peer, length)
            if data is None:
                return False
            disk.write(at, data)
            if writes_left() <= 0:
                return False
        elif kind == READ:
            answer = disk.read(at, length)
        elif kind == FLUSH:
            disk.flush()
        elif kind == DISCONNECT:
            return True
        else:
            error = EINVAL
        try:
            peer.sendall(struct.pack(">IIQ", REPLY_MAGIC, error, handle) + answer)
        except (BrokenPipeError, ConnectionResetError):
            # It may have asked for more before it was killed: the disk had these requests.
            continue


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--image", required=True)
    arguments.add_argument("--socket", required=True)
    arguments.add_argument("--pidfile", required=True)
    arguments.add_argument("--seed", type=int, default=0)
    arguments.add_argument("--lost", choices=["all", "some"], default="some")
    arguments.add_argument("--cache", type=int, default=64)
    arguments.add_argument("--lies", action="store_true")
    options = arguments.parse_args()
    disk = Disk(options.image, options.cache << 20, options.lies)
    chance = random.Random(options.seed)
    left = []

    def writes_left():
        if left:
            left[0] -= 1
        return left[0] if left else 1

    signal.signal(signal.SIGUSR1, lambda *_: left.append(chance.randrange(1, 200)))
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    listener.bind(options.socket)
    listener.listen(1)
    while True:
        peer, _ = listener.accept()
        if greet(peer, disk):
            break
    if serve(peer, disk, writes_left):
        disk.settle()
        print(f"switched off in order, after {disk.flushes} flushes")
    else:
        if left:
            with open(options.pidfile) as file:
                os.kill(int(file.read()), signal.SIGKILL)
        lost, kept = disk.cut(chance, options.lost)
        print(f"the disk had {disk.flushes} flushes, and {lost + kept} sectors since the last: {lost} lost, {kept} kept")


if __name__ == "__main__":
    main()

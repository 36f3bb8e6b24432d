"""What a disk holds after its power was cut: all that it was told to keep, and any part of what came after.

usage: cuts.py mark LAB                    behind the file system, how many lines events.ndjson has, as soon as it has them
       cuts.py cut LAB CUTS PROGRAM        from the log of the disk; one line of JSON; ends with 1 if a cut lost what had been told
"""

import json
import mmap
import os
import random
import signal
import sqlite3
import struct
import subprocess
import sys
import time

SECTOR = 512
# Where the file system ends.
MARK = 48 << 20
MAGIC = b"told so far     "
FLUSH, DISCARD = 1, 4
# Flushes before the last mark that a disk that lies has not done.
LAG = 10


def mark(lab):
    """A line is written after its commit returned, so a mark after the line is after the commit."""
    stopped = []
    signal.signal(signal.SIGTERM, lambda *_: stopped.append(True))
    view = os.open(f"{lab}/view", os.O_WRONLY | os.O_DIRECT)
    block = mmap.mmap(-1, SECTOR)
    path, file, lines = f"{lab}/disk/events.ndjson", None, 0
    while not stopped:
        if file is None and os.path.exists(path):
            file = open(path, "rb")
        come = file.read().count(b"\n") if file else 0
        if come:
            lines += come
            block[: len(MAGIC) + 8] = MAGIC + struct.pack("<Q", lines)
            os.pwritev(view, [block], MARK)
        else:
            time.sleep(0.002)


def entries(lab):
    """The log: (flags, offset in bytes, data, or None where only space was given back)."""
    with open(f"{lab}/log", "rb") as file:
        magic, version, count, size = struct.unpack("<QQQL", file.read(28))
        assert (magic, version, size) == (0x6A736677736872, 1, SECTOR), "no log of writes"
        file.seek(SECTOR)
        for _ in range(count):
            sector, sectors, flags, length = struct.unpack("<QQQQ", file.read(SECTOR)[:32])
            data = file.read(sectors * SECTOR) if not flags & (FLUSH | DISCARD) or length else None
            yield flags, sector * SECTOR, data


class Disk:
    """The contents of the disk as it was told to keep them, and the writes after that."""

    def __init__(self, lab):
        with open(f"{lab}/start", "rb") as file:
            self.kept = bytearray(file.read())
        self.since = []

    def take(self, flags, offset, data):
        """The next entry of the log."""
        if flags & FLUSH:
            self.keep()
        if data:
            self.since.append((offset, data))

    def keep(self):
        """A flush returned."""
        for offset, data in self.since:
            self.kept[offset : offset + len(data)] = data
        self.since = []

    def cut(self, chance, share, path):
        """Each sector of what was not yet kept is there or not, that share of them."""
        image = self.kept[:MARK]
        for offset, data in self.since:
            for at in range(0, len(data), SECTOR):
                if chance.random() < share:
                    image[offset + at : offset + at + SECTOR] = data[at : at + SECTOR]
        with open(path, "wb") as file:
            file.write(image)


def whole(folder, ids):
    """What is wrong with the record in `folder` of which `ids` had been told; and how many events and pictures there are."""
    base = sqlite3.connect(f"{folder}/state/dsad.db")
    said = base.execute("PRAGMA integrity_check").fetchall()
    if said != [("ok",)]:
        return f"integrity: {said[:3]}", 0, 0
    there = {row[0] for row in base.execute("SELECT event_id FROM events")}
    pictures = base.execute("SELECT stem, bytes FROM images").fetchall()
    base.close()
    lost = [event for event in ids if event not in there]
    if lost:
        return f"{len(lost)} of {len(ids)} events that had been told are lost", len(there), len(pictures)
    for stem, size in pictures:
        files = [f"{folder}/images/{stem}.{kind}" for kind in ("png", "jpg", "json")]
        if sum(os.path.getsize(file) for file in files if os.path.exists(file)) != size:
            return f"pictures of {stem} are not whole", len(there), len(pictures)
    return None, len(there), len(pictures)


def started(folder, program):
    """The next start: it runs, and no line is missing behind the first. Where the file had not come to the disk yet, it begins anew."""
    with open(f"{folder}/dsad.toml") as file:
        text = file.read()
    with open(f"{folder}/dsad.toml", "w") as file:
        file.write(text.replace("fps = 20.0", "parts = 3"))
    ran = subprocess.run([program, "run", "--config", f"{folder}/dsad.toml"], capture_output=True, text=True)
    if ran.returncode != 0:
        return f"the next start ended with {ran.returncode}: {ran.stderr[-500:]}"
    base = sqlite3.connect(f"{folder}/state/dsad.db")
    there = [row[0] for row in base.execute("SELECT event_id FROM events ORDER BY id")]
    base.close()
    with open(f"{folder}/events.ndjson") as file:
        lines = [json.loads(line)["event_id"] for line in file]
    return None if lines and lines == there[-len(lines) :] else f"after the next start {len(lines)} lines and {len(there)} events"


def judge(lab, disk, chance, share, ids, program=None):
    """Mounts what the disk holds after a cut: what is wrong with it, how many events and pictures there are."""
    image, folder = f"{lab}/cut", f"{lab}/after"
    os.makedirs(folder, exist_ok=True)
    disk.cut(chance, share, image)
    subprocess.run(["mount", "-o", "loop", image, folder], check=True)
    try:
        wrong, events, pictures = whole(folder, ids)
        if program and not wrong:
            wrong = started(folder, program)
        return wrong, events, pictures
    except (OSError, sqlite3.Error, ValueError) as error:
        return repr(error), 0, 0
    finally:
        subprocess.run(["umount", folder], check=True)


def told(data):
    return struct.unpack_from("<Q", data, len(MAGIC))[0] if data and data.startswith(MAGIC) else None


def cut(lab, cuts, program):
    with open(f"{lab}/told.ndjson") as file:
        ids = [json.loads(line)["event_id"] for line in file if line.endswith("\n")]
    log = list(entries(lab))
    first = next(index for index, (_, _, data) in enumerate(log) if told(data))
    chance = random.Random(4)
    moments = set(chance.sample(range(first, len(log)), min(cuts, len(log) - first)))
    flushes = [index for index, (flags, _, _) in enumerate(log) if flags & FLUSH]
    last = max(index for index, (_, _, data) in enumerate(log) if told(data))
    ignored = [index for index in flushes if index < last][-LAG]
    disk, lying = Disk(lab), None
    number = done = wrongs = flying = events = pictures = 0
    for index, (flags, offset, data) in enumerate(log):
        if index == ignored:
            lying = disk.kept[:]
        disk.take(flags, offset, data)
        number = told(data) or number
        if index not in moments:
            continue
        restart = program if done % 25 == 0 else None
        wrong, events, pictures = judge(lab, disk, chance, chance.choice([0.0, 0.5, 0.9]), ids[:number], restart)
        done, flying = done + 1, flying + len(disk.since)
        if wrong:
            wrongs += 1
            print(f"cut at write {index} of {len(log)}: {wrong}", file=sys.stderr)
    # A disk that says that it keeps what it does not: if that loses nothing that was told, nothing is proven.
    disk.kept, disk.since = lying, []
    control, _, _ = judge(lab, disk, chance, 0.0, ids[:number])
    figures = {"cuts": done, "writes": len(log), "flushes": len(flushes), "told": number, "events": events, "with_pictures": pictures}
    print(json.dumps({**figures, "writes_in_flight": flying, "wrong": wrongs, "on_a_disk_that_lies": control}))
    return 1 if wrongs or not control else 0


if __name__ == "__main__":
    if sys.argv[1] == "mark":
        mark(sys.argv[2])
    else:
        sys.exit(cut(sys.argv[2], int(sys.argv[3]), sys.argv[4]))

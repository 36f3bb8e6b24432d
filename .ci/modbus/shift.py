"""A shift over Modbus: select, prepare, parts by both handshakes, another recipe, Halt, Reset, faults, an unread verdict.

usage: shift.py MODBUS_PORT TCP_PORT PARTS EVENTS
"""

import json
import socket
import struct
import sys
import time

from pymodbus.client import ModbusTcpClient

WORDS = {"select": 1, "prepare": 2, "unprepare": 3, "job": 4, "continuous": 5, "stop": 6, "abort": 7, "halt": 8, "reset": 9}
DONE, NOT_READY, UNKNOWN, NOT_TRIGGERED, WRONG_STATE = 1, 2, 4, 5, 6
VERDICTS = {1: "pass", 2: "fail", 3: "fault"}
STATES = ["Preoperational", "Halted", "Error", "Initialized", "Ready", "SingleExecution", "ContinuousExecution"]

failed = False


def check(name, good, **figures):
    global failed
    failed |= not good
    print(json.dumps({"check": name, "ok": bool(good), **figures}), flush=True)


class Plc:
    def __init__(self, port):
        self.client = ModbusTcpClient("127.0.0.1", port=port, timeout=10)
        assert self.client.connect()
        self.request = self.registers(6, 1)[0]

    def registers(self, at, count):
        answer = self.client.read_holding_registers(at, count=count)
        assert not answer.isError(), answer
        return answer.registers

    def inputs(self, at, count):
        answer = self.client.read_discrete_inputs(at, count=count)
        assert not answer.isError(), answer
        return answer.bits[:count]

    def write(self, at, values):
        answer = self.client.write_registers(at, values)
        assert not answer.isError(), answer

    def command(self, word, camera=0, recipe=0, part=0):
        """The handshake: write, then wait until the request is acknowledged."""
        self.request = (self.request + 1) & 0xFFFF
        self.write(8, [WORDS[word], camera, recipe, part >> 16, part & 0xFFFF, self.request])
        self.until(lambda: self.registers(6, 1)[0] == self.request)
        return self.registers(7, 1)[0]

    def state(self):
        return STATES[self.registers(1, 1)[0]]

    def until(self, done, seconds=60):
        end = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < end, "it never came"
            time.sleep(0.001)

    def verdict(self):
        """Waits for `done`, reads the camera's block, acknowledges."""
        self.until(lambda: self.inputs(11, 1)[0])
        block = self.registers(100, 23)
        self.write(122, [block[2]])
        long = lambda at: block[at] << 16 | block[at + 1]
        score = struct.unpack(">f", struct.pack(">HH", block[5], block[6]))[0]
        return {"recipe": block[0], "number": block[2], "verdict": VERDICTS[block[3]], "reason": block[4],
                "score": score, "part": long(7), "frame": long(9), "counts": [long(11), long(13), long(15)]}


modbus, tcp, parts, events = int(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
plc = Plc(modbus)
check("starts halted", plc.state() == "Halted" and plc.registers(2, 1)[0] == 0)
check("a trigger of a halted station is refused", plc.command("job", part=1) == NOT_READY)
check("Stop of a halted station is refused", plc.command("stop") == WRONG_STATE)
check("SelectModeAutomatic", plc.command("select") == DONE and plc.state() == "Initialized")
check("a trigger without a recipe is refused", plc.command("job", part=1) == NOT_READY)
check("a recipe that is not there is refused", plc.command("prepare", recipe=9) == UNKNOWN)
check("PrepareRecipe", plc.command("prepare", recipe=1) == DONE and plc.state() == "Ready")
check("StartContinuous without a camera that runs free is refused", plc.command("continuous") == NOT_TRIGGERED)
plc.until(lambda: plc.inputs(0, 1)[0])
check("ready", plc.registers(2, 1)[0] == 1)

told, started = [], time.monotonic()
for part in range(1, parts + 1):
    if part == parts // 2:
        check("another recipe", plc.command("prepare", recipe=2) == DONE and plc.registers(100, 1)[0] == 2)
    if part % 2:
        assert plc.command("job", camera=1, part=70_000 + part) == DONE
    else:
        # The coil takes the identity that is in `part`.
        plc.write(11, [(70_000 + part) >> 16, (70_000 + part) & 0xFFFF])
        assert not plc.client.write_coil(1, True).isError()
        assert plc.registers(121, 1)[0] == DONE and not plc.client.read_coils(1, count=1).bits[0]
    told.append(plc.verdict())
took = time.monotonic() - started
check("every part has its verdict", [v["part"] for v in told] == list(range(70_001, 70_001 + parts)),
      parts=parts, fails=sum(v["verdict"] == "fail" for v in told), ms_per_part=round(1000 * took / parts, 1))
check("verdicts are numbered without gaps", [v["number"] for v in told] == list(range(1, parts + 1)))
check("counters add up", sum(told[-1]["counts"]) == parts, counts=told[-1]["counts"])
check("nothing was overwritten", plc.registers(117, 2) == [0, 0])

beat = plc.registers(3, 1)[0]
plc.until(lambda: plc.registers(3, 1)[0] != beat, seconds=5)
check("the heartbeat moves", True)
check("StartSingleJob", plc.command("job", part=5) == DONE)
first = plc.verdict()["number"]
plc.write(8, [WORDS["job"], 1, 0, 0, 5, plc.request])
time.sleep(0.5)
check("the request is done once", plc.registers(102, 1)[0] == first)

assert plc.command("job", part=6) == DONE
plc.until(lambda: plc.registers(102, 1)[0] == first + 1)
assert plc.command("job", part=7) == DONE
plc.until(lambda: plc.registers(102, 1)[0] == first + 2)
check("a verdict that nobody took is counted", plc.registers(117, 2) == [0, 1])
plc.verdict()

# Triggers faster than the detector, and a halt in between: each ends, none as a pass after the halt.
accepted = 0
for part in range(20):
    plc.write(11, [0, 100 + part])
    plc.client.write_coil(1, True)
    accepted += plc.registers(121, 1)[0] == DONE
assert plc.command("halt") == DONE
check("Halt", plc.state() == "Halted" and plc.registers(2, 1)[0] == 0)
plc.until(lambda: not plc.inputs(10, 1)[0])
counts = plc.registers(111, 6)
total = sum(counts[k] << 16 | counts[k + 1] for k in (0, 2, 4))
check("every accepted trigger ended", total == parts + 3 + accepted, accepted=accepted, faults=counts[4] << 16 | counts[5])
plc.client.write_coil(1, True)
check("a coil of a halted station is refused", plc.registers(121, 1)[0] == NOT_READY)
check("Reset", plc.command("reset") == DONE and plc.state() == "Initialized")
check("back to work", plc.command("prepare", recipe=1) == DONE and plc.command("job", part=9) == DONE)
plc.until(lambda: plc.registers(107, 2) == [0, 9])
check("UnprepareRecipe", plc.command("unprepare") == DONE and plc.state() == "Initialized")

# Lines of text see the same station, and get the same verdicts.
assert plc.command("prepare", recipe=1) == DONE
with socket.create_connection(("127.0.0.1", tcp), timeout=30) as line:
    lines = line.makefile("rw", newline="\n")
    lines.write("StartSingleJob part_id=\"by line\";\n")
    lines.flush()
    answer, verdict = lines.readline(), lines.readline()
    lines.write("PrepareRecipe number=2;\n")
    lines.flush()
    check("TCP: a trigger, its verdict, and a level that is too low",
          answer.startswith("ok camera=top") and verdict.startswith("verdict camera=top")
          and 'part_id="by line"' in verdict and lines.readline().startswith("error forbidden"))

for wrong, code in [((500, 1), 2), ((13, 2), 2), ((0, 126), 3)]:
    try:
        answer = plc.client.read_holding_registers(wrong[0], count=wrong[1])
        check(f"exception {code} for {wrong}", answer.isError() and answer.exception_code == code)
    except ValueError:
        # The client itself refuses more than 125.
        check(f"exception {code} for {wrong}", wrong[1] > 125)
time.sleep(0.5)
with open(events, encoding="utf-8") as file:
    rows = [json.loads(row) for row in file]
rows = [row for row in rows if row["late_verdict"] is None]
asked = {row["part_id"]: row for row in rows}
same = all(asked[str(v["part"])]["verdict"] == v["verdict"]
           and asked[str(v["part"])]["recipe_id"] == f"washer-{v['recipe']}"
           and abs((asked[str(v["part"])]["score"] or 0) - v["score"]) < 1e-6 for v in told)
check("registers and events say the same", same and all(row["trigger"] in ("modbus", "tcp") for row in rows), events=len(rows))
sys.exit(failed)

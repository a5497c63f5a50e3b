"""Half an hour of everything at once, with loss, and servers and DNS that die: nothing leaks, nothing else suffers.

Bulk TCP, many connections, short ones, datagrams, DNS over UDP and TCP, and pings run side by side behind a wire that
loses 1 % of all frames. Now and then the servers are killed for some seconds, or DNS falls silent. Every few minutes
all rest, and memory and descriptors are looked at.

CHILDFLOW_SOAK_MINUTES says how long (30).
"""

from __future__ import annotations

import json
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import median

import pytest

from tests.lab.engine import Engine, engine_of
from tests.lab.hosts import Wires
from tests.lab.lab import Caller, Lab
from tests.lab.lossy import leg_before
from tests.lab.processes import Result, Running
from tests.lab.serve import ACTOR, DNS, ECHO

pytestmark = pytest.mark.soak
MINUTES = float(os.environ.get("CHILDFLOW_SOAK_MINUTES", "30"))
MORE = 10_000  # the victims' ports are higher by this
GATEWAY = "192.0.0.1"
BULK = 16 << 20
OUTAGE_EVERY_S, OUTAGE_S = 45, 4
REST_EVERY_S, REST_S = 150, 6
UDP_IDLE_S = 300
LEAK_KIB_PER_HOUR = 1024


@dataclass
class Job:
    """A program that is run again and again. `judge`: whether a result without an outage is as it should be."""

    argv: tuple[str, ...]
    judge: Callable[[Result], bool]
    running: Running | None = None
    since: float = 0.0
    told: Counter[str] = field(default_factory=Counter)


@pytest.mark.timeout(MINUTES * 60 + 900)
@pytest.mark.case("E18")
def test_half_an_hour_of_everything(namespaces: None) -> None:
    lab = Lab(Wires.direct())
    outside = whole_state(lab)
    with engine_of(lab, lab.caller("ordinary"), flags=("--dns", f"{lab.server_ip(4)}:{DNS + MORE}")) as engine:
        with leg_before(engine) as leg:
            leg.lose(up=10, down=10)
            load = Load(lab, engine, leg.caller)
            load.warm_up()
            load.run(MINUTES * 60)
            print(f"{load.outages} outages; frames: {leg.counted()}")
        engine.settles(UDP_IDLE_S + 30)
    assert whole_state(lab) == outside, "I8"
    load.report()
    load.check(engine.result)
    lab.close()


def whole_state(lab: Lab) -> list[str]:
    """I8: what a run might leave behind outside."""
    looks = (("ip", "-brief", "link"), ("ip", "rule"), ("nft", "list", "ruleset"), ("cat", "/proc/self/mounts"))
    return [lab.laptop.run(*look) for look in looks]


class Load:
    def __init__(self, lab: Lab, engine: Engine, caller: Caller) -> None:
        self.lab, self.engine, self.caller = lab, engine, caller
        self.dead_until = self.dead_since = 0.0
        self.outages = Counter[str]()
        self.samples: list[tuple[float, int, int]] = []
        server = lab.server_ip(4)
        self.jobs = {
            "bulk": Job(lab.client("transfer", server, ACTOR + MORE, BULK), lambda r: all(r.json().values())),
            "bulk6": Job(
                lab.client("transfer", lab.server_ip(6), ACTOR + MORE, BULK), lambda r: all(r.json().values())
            ),
            "many": Job(lab.client("many", server, ECHO + MORE, "at-once", 30), lambda r: r.json()["right"] == 30),
            "churn": Job(lab.client("churn", server, ACTOR + MORE, 20), lambda r: r.json()["right"] == 20),
            "udp": Job(lab.client("datagrams", server, ECHO + MORE, "count", 50), lambda r: r.json()["right"] > 30),
            "dns": Job(dig(), lambda r: "198.51.100.1" in r.stdout),
            "dns-tcp": Job(dig("+tcp"), lambda r: "198.51.100.1" in r.stdout),
            "ping": Job(("ping", "-c5", "-i0.2", "-W1", server), lambda r: r.status == 0),
        }

    def warm_up(self) -> None:
        """DNS and ping keep a few sockets from their first use on."""
        victims = self._victims()
        for name in ["dns"] * 30 + ["dns-tcp"] * 3 + ["ping"] * 3:
            self.caller.direct(*self.jobs[name].argv).ok()
        self.engine.is_at_rest()
        victims.kill()

    def run(self, seconds: float) -> None:
        chance = random.Random(18)
        begin = time.monotonic()
        next_outage, next_rest = begin + OUTAGE_EVERY_S, begin + REST_EVERY_S
        victims = self._victims()
        while (now := time.monotonic()) < begin + seconds:
            self._poll(now)
            if now > next_outage:
                victims = self._outage(victims, chance)
                next_outage = time.monotonic() + OUTAGE_EVERY_S * chance.uniform(0.5, 1.5)
            if now > next_rest:
                self._rest(time.monotonic() - begin)
                next_rest = time.monotonic() + REST_EVERY_S
            time.sleep(0.1)
        self._rest(time.monotonic() - begin)
        victims.kill()

    def _victims(self) -> Running:
        return self.lab.serve("tests.lab.serve", str(self.lab.folder), str(MORE))

    def _poll(self, now: float) -> None:
        for job in self.jobs.values():
            if job.running is None and now > job.since + 0.5:
                job.running, job.since = self.caller.start(*job.argv, bare=True), now
            elif job.running and job.running.process.poll() is not None:
                self._judge(job, job.running.wait(), now)
                job.running, job.since = None, now

    def _judge(self, job: Job, result: Result, now: float) -> None:
        if "false" in result.stdout:
            job.told["WRONG BYTES"] += 1
        elif result.status == 0 and job.judge(result):
            job.told["right"] += 1
        elif job.since < self.dead_until + 5 and now > self.dead_since:
            job.told["hit by an outage"] += 1
        else:
            job.told["failed"] += 1
            print(f"failed at {time.strftime('%X')}: {result.told()[-1500:]}", flush=True)

    def _outage(self, victims: Running, chance: random.Random) -> Running:
        self.dead_since, self.dead_until = time.monotonic(), time.monotonic() + OUTAGE_S
        if chance.random() < 0.5:
            self.outages["killed"] += 1
            victims.kill()
            self._go_on_until(self.dead_until)
            return self._victims()
        self.outages["silent DNS"] += 1
        with self._silent_dns():
            self._go_on_until(self.dead_until)
        return victims

    @contextmanager
    def _silent_dns(self) -> Iterator[None]:
        rules = f"meta l4proto {{ tcp, udp }} th dport {DNS + MORE} drop"
        self.lab.server.nft(
            f"table inet silent {{\nchain input {{\ntype filter hook input priority 0;\n{rules}\n}}\n}}\n"
        )
        yield
        self.lab.server.nft("delete table inet silent\n")

    def _go_on_until(self, end: float) -> None:
        while (now := time.monotonic()) < end:
            self._poll(now)
            time.sleep(0.1)

    def _rest(self, age: float) -> None:
        """Let what runs come to its end and take a sample."""
        for job in self.jobs.values():
            if job.running:
                self._judge(job, job.running.wait(90), time.monotonic())
                job.running, job.since = None, time.monotonic()
        time.sleep(REST_S)
        sample = (age, self.engine.resident_kib(), self.engine.descriptors())
        self.samples.append(sample)
        print(f"{age / 60:5.1f} min: {sample[1]} KiB, {sample[2]} descriptors, {self.told()}", flush=True)

    def told(self) -> dict[str, dict[str, int]]:
        return {name: dict(job.told) for name, job in self.jobs.items()}

    def slope(self) -> float:
        """KiB an hour: between the medians of the middle third of the samples and of the last third."""
        third = len(self.samples) // 3
        middle, last = self.samples[third : 2 * third], self.samples[-third:]
        (t1, m1), (t2, m2) = ((median(s[0] for s in part), median(s[1] for s in part)) for part in (middle, last))
        return (m2 - m1) / (t2 - t1) * 3600

    def report(self) -> None:
        print(json.dumps(self.told(), indent=1))
        print(f"memory: {self.slope():.0f} KiB an hour; descriptors at rest: {[s[2] for s in self.samples]}")

    def check(self, result: Result) -> None:
        for name, job in self.jobs.items():
            assert job.told["WRONG BYTES"] == 0, f"I7: {name}"
            assert job.told["failed"] == 0, f"{name} failed without an outage"
            assert job.told["right"] > job.told["hit by an outage"], name
        whole = [end for end in result.events_of("flow_end") if end["bytes_down"] == BULK + 64]
        assert len(whole) >= self.jobs["bulk"].told["right"] + self.jobs["bulk6"].told["right"], "I7: the log's counts"
        assert self.slope() < LEAK_KIB_PER_HOUR


def dig(*more: str) -> tuple[str, ...]:
    return ("dig", "+short", "+time=2", "+tries=4", *more, f"@{GATEWAY}", "a.lab.test")

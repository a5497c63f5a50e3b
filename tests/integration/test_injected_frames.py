"""Hostile frames through a real kernel: a raw injector inside the sandbox sends them on tap0, childflow serves on.

A canary sends a byte to the server and back all the while (`tests/lab/engine.py` holds it to a tenth of a second). At
the end the drop counters that `-v` tells are exactly those of the frames that the kernel let through (M1 of the
catalogue says which), and nothing but the canary's connection is in the flow log.

The sandbox's kernel sends multicast listener reports of its own when it likes, so `multicast` has a little room above.
"""

from __future__ import annotations

import random
import re
import struct
from collections import Counter
from collections.abc import Sequence

import pytest

from childflow.services.fragments import MAX_DATAGRAMS
from tests.lab.engine import engine_of
from tests.lab.inject import PAUSE_S, Sent, inject
from tests.lab.lab import Caller, Lab
from tests.lab.processes import Result
from tests.lab.serve import ECHO
from tests.netstack import wire
from tests.netstack.play import CHILD_PORT, REMOTE_PORT
from tests.netstack.test_hostile_frames import CATALOGUE, Case, a34
from tests.netstack.test_mutation import SEEDS, mutate
from tests.netstack.wire import ACK, CHILD, FIN, IPV6, NEEDS_CSUM, REMOTE, RST, SYN, URG, frame, ipv4, ipv6, vnet
from tests.services.play import fragment4, fragment6
from tests.services.test_neighbours import BAD_SOLICITATIONS

REPORTS_LATER = 2  # of the sandbox's kernel, after they were counted
MENDED = {"gso without a partial checksum"}  # cut by the kernel itself, so that what arrives is an honest segment
S4, D4, S6, D6 = CHILD[4], REMOTE[4], CHILD[6], REMOTE[6]


def while_the_canary_sings(
    lab: Lab, caller: Caller, frames: Sequence[bytes], pause_s: float = PAUSE_S, settle: bool = True
) -> tuple[Sent, Result, Counter[str]]:
    """Inject `frames`; returns what the kernel said, how the run ended, and the drops that childflow counted."""
    with engine_of(lab, caller, flags=["-v"], settle=settle) as engine:
        sent = inject(engine.running, frames, pause_s)
    return sent, engine.result, drops_told(engine.result)


def drops_told(result: Result) -> Counter[str]:
    said = re.search(r"^childflow: drops: (.*)$", result.stderr, re.MULTILINE)
    assert said, result.told()
    words = [word.partition("=") for word in said[1].split() if word != "none"]
    return Counter({name: int(count) for name, _, count in words})


def check_drops(got: Counter[str], wanted: Counter[str], sent: Sent) -> None:
    least = wanted["multicast"] + sent.own_reports
    assert least <= got["multicast"] <= least + REPORTS_LATER
    assert got - Counter(multicast=got["multicast"]) == wanted - Counter(multicast=wanted["multicast"])


def check(lab: Lab, caller: Caller, cases: Sequence[Case]) -> Result:
    cases = [case for case in cases if case.name not in MENDED]
    sent, result, got = while_the_canary_sings(lab, caller, [case.raw for case in cases])
    through = [case for case, error in zip(cases, sent.errors, strict=True) if not error]
    assert through, "the kernel let nothing through"
    check_drops(got, Counter(case.drop for case in through), sent)
    assert len(result.events_of("flow_end")) == 1, "something was opened"
    return result


def family_of_case(make: object) -> object:
    name = make.__name__  # type: ignore[attr-defined]
    return pytest.param(make, id=name, marks=pytest.mark.case(name.upper()))


@pytest.mark.parametrize("make", [family_of_case(make) for make in CATALOGUE if make is not a34])
def test_each_case_of_the_catalogue(lab: Lab, make: object) -> None:
    check(lab, lab.caller("ordinary"), make())  # type: ignore[operator]


def test_the_whole_catalogue_at_once(lab: Lab, caller: Caller) -> None:
    check(lab, caller, [case for make in CATALOGUE if make is not a34 for case in make()])


# --- what only a kernel lets through: large frames that lie about themselves


def large4(flags: int = ACK, port: int = CHILD_PORT, length: int = 4000, **fields: object) -> bytes:
    return wire.tcp(S4, D4, port, REMOTE_PORT, 1, 1, flags, text=bytes(length), checksum="partial", **fields)  # type: ignore[arg-type]


def cut_to(packet: bytes, total: int) -> bytes:
    """The IPv4 `packet` with another total length, its checksum right."""
    head = packet[:2] + struct.pack("!H", total) + packet[4:10] + bytes(2) + packet[12:20]
    return head[:10] + struct.pack("!H", wire.plain_checksum(head)) + head[12:] + packet[20:]


TSO4, TSO6 = vnet(NEEDS_CSUM, 1, 54, 1460, 34, 16), vnet(NEEDS_CSUM, 4, 74, 1440, 54, 16)


def tso4(segment: bytes, head: bytes = TSO4, **fields: object) -> bytes:
    return frame(ipv4(segment, 6, **fields), head=head)  # type: ignore[arg-type]


def lies() -> list[Case]:
    """M1's list. A segment that is right but for its virtio header belongs to no connection, and is told so."""
    segment6 = wire.tcp(S6, D6, CHILD_PORT, REMOTE_PORT, 1, 1, ACK, text=bytes(4000), checksum="partial")
    cases = [Case(f"gso_size {n}", tso4(large4(), vnet(NEEDS_CSUM, 1, 54, n, 34, 16)), "no_flow") for n in (1, 8, 1460)]
    cases += [
        Case(f"hdr_len {n}", tso4(large4(), vnet(NEEDS_CSUM, 1, n, 1460, 34, 16)), "no_flow")
        for n in (0, 14, 2000, 4054)
    ]
    return [
        *cases,
        Case("checksum inside the payload", tso4(large4(), vnet(NEEDS_CSUM, 1, 54, 1460, 100, 20)), "bad_vnet_header"),
        Case("odd place of the checksum", tso4(large4(), vnet(NEEDS_CSUM, 1, 54, 1460, 34, 17)), "bad_vnet_header"),
        Case("total length 40", frame(cut_to(ipv4(large4(), 6), 40), head=TSO4), "no_flow"),
        Case("doff 15", tso4(large4(doff=15)), "no_flow"),
        Case("IP options", tso4(large4(), vnet(NEEDS_CSUM, 1, 58, 1460, 38, 16), options=b"\x94\4\0\0"), "no_flow"),
        Case("MF", tso4(large4(length=4001), fragment=0x2000), "bad_fragment"),
        Case("RST, FIN and URG", tso4(large4(RST | FIN | URG, urgent=9)), "no_flow"),
        Case("SYN and FIN", tso4(large4(SYN | FIN)), "no_flow"),
        Case("IPv6 of length 0", frame(ipv6(segment6, 6, length=0), head=TSO6), "bad_ip_header"),
        Case("IPv6", frame(ipv6(segment6, 6), head=TSO6), "no_flow"),
        Case("14 bytes", frame(b"")[:24], "bad_ip_header"),
        Case("IHL 0 of IPv6's length", frame(bytes(60), kind=IPV6), "bad_ip_header"),
    ]


@pytest.mark.case("A03", "A10", "A25", "A30", "A31", "A32")
def test_large_frames_that_lie_about_themselves(lab: Lab, caller: Caller) -> None:
    check(lab, caller, lies())


@pytest.mark.case("A30")
def test_segments_of_one_byte_cost_what_the_bytes_cost(lab: Lab) -> None:
    """A thousand frames of 64 KB, each claimed to be 60,000 segments; the canary sings on."""
    head = vnet(NEEDS_CSUM, 1, 54, 1, 34, 16)
    raw = tso4(large4(length=60_000), head)
    check(lab, lab.caller("ordinary"), [Case("gso_size 1", raw, "no_flow")] * 1000)


@pytest.mark.case("A34")
def test_udp_segmentation_is_left_to_the_sandboxs_kernel(lab: Lab) -> None:
    """It is not offered, so 4000 bytes come as three datagrams, each a datagram like any other; lies about it come to
    nothing."""
    caller, server = lab.caller("ordinary"), bytes(map(int, lab.server_ip(4).split(".")))
    text = wire.udp(S4, server, CHILD_PORT, ECHO, bytes(4000), checksum="partial")
    honest = frame(ipv4(text, 17, dst=server), head=vnet(NEEDS_CSUM, 5, 42, 1400, 34, 6))
    sent, result, got = while_the_canary_sings(lab, caller, [honest, *(case.raw for case in a34())])
    assert sent.errors[0] == 0
    assert got["bad_vnet_header"] == 0
    (udp,) = [e for e in result.events_of("flow_end") if (e["protocol"], e["remote_ip"]) == ("udp", lab.server_ip(4))]
    assert udp["bytes_up"] == 4000


# --- what Python reads: fragments, neighbour discovery


@pytest.mark.case("A21", "A22", "A27")
def test_fragments_that_are_refused(lab: Lab, caller: Caller) -> None:
    cases = []
    for kind, make in ((wire.IPV4, fragment4), (IPV6, fragment6)):
        for ident, (first, second, why) in enumerate(
            (
                ((0, bytes(512), True), (504, b"x" * 16, True), "fragment_overlap"),
                ((0, bytes(512), True), (0, b"x" * 512, True), "fragment_overlap"),
                ((0, bytes(512), True), (128, b"x" * 64, True), "fragment_overlap"),
                ((0, bytes(1400), True), (65512, bytes(1400), False), "fragment_overflow"),
            )
        ):
            cases.append((frame(make(*first, ident=ident), kind=kind), None))
            cases.append((frame(make(*second, ident=ident), kind=kind), why))
            cases.append((frame(make(*first, ident=ident), kind=kind), "bad_fragment"))
    nd_in_pieces = [fragment6(0, b"\x87" + bytes(15), True, ident=9, next_header=58)]
    nd_in_pieces.append(fragment6(16, bytes(16), False, ident=9, next_header=58))
    cases += [(frame(nd_in_pieces[0]), None), (frame(nd_in_pieces[1]), "bad_nd")]
    sent, result, got = while_the_canary_sings(lab, caller, [raw for raw, _ in cases])
    assert not any(sent.errors)
    check_drops(got, Counter(why for _, why in cases if why), sent)
    assert len(result.events_of("flow_end")) == 1


@pytest.mark.case("A24")
def test_flood_of_fragments_harms_nobody_else(lab: Lab) -> None:
    """Ten thousand first pieces of ten thousand datagrams, as fast as the device's queue takes them beside the canary's
    own: all but the youngest 256 make room, one for one."""
    pieces = [frame(fragment4(0, bytes(512), True, ident=i)) for i in range(10_000)]
    sent, result, got = while_the_canary_sings(lab, lab.caller("ordinary"), pieces, 0.00002)
    assert not any(sent.errors)
    check_drops(got, Counter(fragment_limit=10_000 - MAX_DATAGRAMS), sent)
    assert len(result.events_of("flow_end")) == 1


@pytest.mark.case("A28", "C17")
def test_neighbour_discovery_that_is_refused(lab: Lab, caller: Caller) -> None:
    """Router and neighbour advertisements and redirects among them: the gateway learns nothing from a child."""
    plain = [packet for what, packet in BAD_SOLICITATIONS.items() if what != "cut" and packet[6:7] == b"\x3a"]
    check(lab, caller, [Case(f"nd {i}", frame(packet), "bad_nd") for i, packet in enumerate(plain)])


# --- anything


@pytest.mark.case("A40")
@pytest.mark.parametrize("seed", range(3))
def test_mutated_frames_reach_every_service_and_break_none(lab: Lab, caller: Caller, seed: int) -> None:
    """Frames of every kind with anything changed, some of them to the gateway's DNS and to the server; what gets as far
    as Python is answered or refused there, and is never a fault of ours."""
    chance = random.Random(seed)
    server = bytes(map(int, lab.server_ip(4).split(".")))
    seeds = [*SEEDS, *(raw.replace(D4, server) for raw in SEEDS)]
    frames = [mutate(chance, chance.choice(seeds)) for _ in range(1500)]
    sent, result, got = while_the_canary_sings(lab, caller, frames, 0.0002, settle=False)
    assert Counter(sent.errors)[0] > len(frames) // 2
    assert len(got) > 15, got
    assert "internal error" not in result.stderr, result.told()

"""Seeds for the C targets: the frames of group A as the tests write them, and short stories of both sides.

`python -m tests.fuzz seed` adds them to the corpora.
"""

from __future__ import annotations

from tests.netstack import test_hostile_frames, test_mutation

# harness/story.h, enum step
(OPEN, SAY, _, ANSWER, _, CONNECTED, HOST_SENDS, HOST_ENDS, HOST_TAKES, CLOCK, DATAGRAM, HOST_DATAGRAM, HOST_ERROR,
 FAULT, TAP, RAW, API, HONEST, TRANSFER, FLOOD, EVENTS, ESTABLISH, HOLD, HELD) = range(24)  # fmt: skip
SITUATIONS = range(4)
HONEST_CONFIG = bytes((1, 0, 1, 0))


def frame() -> list[bytes]:
    """Each hostile frame in a fresh stack; the honest ones in every situation."""
    hostile = [bytes((0,)) + case.raw for case in test_hostile_frames.CASES]
    honest = [bytes((how,)) + raw for raw in test_mutation.honest()[:44] for how in SITUATIONS]
    return [one for one in [*hostile, *honest] if len(one) <= 2_000]


def step(kind: int, *fields: int) -> bytes:
    return bytes((kind, *fields)).ljust(8, b"\0")


def story(*steps: bytes, config: bytes = HONEST_CONFIG) -> bytes:
    return config + b"".join(steps)


OPENED = [step(OPEN, 0, 7, 0, 7, 11), step(ANSWER, 0, 2)]
CLOSE = [step(HONEST, 0, 0, 0, 1), step(HOST_ENDS, 0, 0), step(HONEST, 0), step(CLOCK, 0, 8)]


def sequence() -> list[bytes]:
    """Stories under four configurations: all well; no offload; MTU 68 and little memory; few sockets."""
    configs = (HONEST_CONFIG, bytes((0, 0, 1, 0)), bytes((1, 4, 2 + 16, 1)), bytes((0, 2, 4, 2)))
    stories = [*_streams(), *_beginnings(), *_datagrams(), *_faults(), *_held()]
    return [story(*steps, config=config) for steps in stories for config in configs]


def _streams() -> list[list[bytes]]:
    bulk = [
        [step(ESTABLISH, slot), step(TRANSFER, slot, 5, down, up), *CLOSE]
        for slot in (0, 1) for up in (4, 7, 12) for down in (0, 7, 12)
    ]  # fmt: skip
    stand, sent = step(ESTABLISH, 0), step(HOST_SENDS, 0, 12)
    return [
        *bulk,
        [stand, step(HOST_TAKES, 0, 0, 0), step(SAY, 0, 0, 0, 12, 11), step(HOST_TAKES, 0, 1)],
        [stand, step(SAY, 0, 0, 4, 7, 11), step(SAY, 0, 0, 6, 7, 11), step(HONEST, 0)],
        [stand, step(SAY, 0, 0, 0, 0, 0), step(HOST_SENDS, 0, 7), *[step(CLOCK, 0, 7)] * 4, step(HONEST, 0)],
        [stand, sent, *[step(SAY, 0, 0, 16, 0, 11)] * 4, step(HONEST, 0)],
        [stand, sent, step(SAY, 0, 0, 16, 0, 11, 5 + 8), step(CLOCK, 0, 6), step(HONEST, 0)],
        [step(TAP, 0, 0, 2), stand, step(TRANSFER, 0, 3, 12, 12), step(TAP, 0, 1), step(HONEST, 0)],
    ]


def _beginnings() -> list[list[bytes]]:
    failed = [[*OPENED, step(CONNECTED, 0, 1, 0, error)] for error in range(8)]
    denied = [[step(OPEN, slot, 1), step(ANSWER, 0, 4, how)] for slot in (0, 1) for how in range(7)]
    return [
        *failed, *denied,
        [*OPENED, step(CONNECTED, 0, 0), step(HONEST, 0), *CLOSE],
        [step(FLOOD, 0, 39, 0, 1), step(FLOOD, 0, 39, 0, 0), *[step(ANSWER, 0, 2)] * 9, step(CLOCK, 0, 11)],
        [step(EVENTS, 0, 1), step(FLOOD, 0, 20, 0, 1), step(CLOCK, 0, 11), step(EVENTS, 0, 0)],
    ]  # fmt: skip


def _datagrams() -> list[list[bytes]]:
    errors = [step(HOST_ERROR, 0, 0, 1, 4, shape, 3 + 16 * shape) for shape in range(16)]
    return [
        [step(DATAGRAM, 0, 0, 4, 1), step(ANSWER, 0, 2), step(HOST_DATAGRAM, 0, 0, 0, 7, 3), step(CLOCK, 0, 13)],
        [step(DATAGRAM, 1, 2, 4, 0, 3), step(ANSWER, 0, 2), *errors],
        [step(DATAGRAM, 0, 1, 4, 1), step(API, 0, 2, 1, 8), step(DATAGRAM, 0, 0, 13, 1), step(ANSWER, 0, 4, 4)],
    ]


def _faults() -> list[list[bytes]]:
    after = [step(OPEN, 1, 7, 0, 7, 11), step(ANSWER, 0, 2), step(CONNECTED, 1), step(TRANSFER, 0, 3, 7, 7)]
    return [
        [step(ESTABLISH, 0), step(FAULT, 0, call, n, error), *after]
        for call in range(14) for n in (0, 1) for error in (1, 9)
    ]  # fmt: skip


def _held() -> list[list[bytes]]:
    """Held streams and peers, passed, denied or left; and both let out to another address of either family."""
    stream = [step(OPEN, 0, 7, 0, 7, 11), step(HOLD, 0), step(ANSWER, 0, 0), step(HONEST, 0, 0, 0)]
    says, ends = (
        [step(SAY, 0, 0, 0, 7, 11), step(TRANSFER, 0, 3, 7, 12)],
        [step(HONEST, 0, 0, 5, 1), step(HOST_ENDS, 0)],
    )
    peer = [step(DATAGRAM, 0, 0, 4, 1), step(HOLD, 0), step(DATAGRAM, 0, 0, 5, 1)]
    elsewhere = [
        [
            step(DATAGRAM, 0, 0, 4, 1),
            step(ANSWER, 0, 2, 0, 1, slot),
            step(DATAGRAM, 0, 0, 5, 1),
            *back,
            step(CLOCK, 0, 13),
        ]
        for slot in (0, 1, 4, 5)
        for back in ([step(HOST_DATAGRAM, 0, slot, 0, 4)], [step(HOST_ERROR, 0, slot, 0, 4, 2, 0x33)])
    ]
    return [
        *[[*stream, *says, *end, step(HELD, 0, how)] for how in (0, 1, 2) for end in ([], ends)],
        [*stream, *says, step(FAULT, 0, 3, 1, 9), step(HELD, 0, 2), step(HONEST, 0)],
        [*stream, *says, step(SAY, 0, 3, 0, 0), step(HELD, 0, 2)],
        [*stream, *says, step(HOST_ENDS, 0, 1, 4), step(HELD, 0, 2)],
        *[[*stream, step(HONEST, 0, 0, 0, 1), step(HELD, 0, how)] for how in (0, 1, 2)],
        *[[*peer, step(HELD, 0, how, 5)] for how in (0, 1, 2)],
        [*peer, step(HELD, 0, 2, 0, 1, 1), step(HOST_DATAGRAM, 0, 1, 0, 4)],
        [
            step(OPEN, 0, 7, 0, 7, 11),
            step(ANSWER, 0, 2, 0, 1, 1),
            step(CONNECTED, 0),
            step(TRANSFER, 0, 3, 7, 7),
            *CLOSE,
        ],
        *elsewhere, *_one_host_for_two(),
    ]  # fmt: skip


def _one_host_for_two() -> list[list[bytes]]:
    """Two addresses that one child port writes to are one host outside; or one is what the other stands for."""
    to_slot_4 = [step(ANSWER, 0, 2, 0, 1, 4)]
    first, second, third = (step(DATAGRAM, slot, 0, 4, 1) for slot in (0, 1, 4))
    back = [step(HOST_DATAGRAM, 0, 4, 0, 4)]
    return [
        [first, *to_slot_4, second, *to_slot_4, *back, first, *back, second, *back, step(CLOCK, 0, 12), first],
        [first, *to_slot_4, third, step(ANSWER, 0, 2), *back, third, *back, first],
        [third, step(ANSWER, 0, 2, 0, 1, 0), *back, first, step(ANSWER, 0, 2), step(HOST_DATAGRAM, 0, 0, 0, 4), third],
    ]

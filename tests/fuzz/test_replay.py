"""The fuzzers' corpora, replayed: the C targets under ASan and UBSan, the parsers as they are; and for each a bounded
run of mutations in a fixed order, so that `make test` needs no fuzzer. `make fuzz` looks further."""

from __future__ import annotations

import os
import random
import struct
import subprocess
import time

import pytest

from . import build, corpus, targets

MUTATIONS = {"frame": 1500, "sequence": 1500}
PARSER_MUTATIONS = 1500
SLOWEST_S = 1.0  # of CPU for one input; a parser takes less than a millisecond, a story some, with the sanitizers


@pytest.mark.case("A40")
@pytest.mark.parametrize("target", targets.C_TARGETS)
def test_corpus_of_the_stack(target):
    program = build.build("replay")[target]
    inputs = corpus.inputs(target)
    assert inputs, "there is no corpus"
    stream = b"".join(struct.pack("=I", len(one)) + one for one in inputs)
    done = subprocess.run(
        [program, str(MUTATIONS[target]), "1"],
        input=stream,
        capture_output=True,
        check=False,
        env={**os.environ, "ASAN_OPTIONS": "detect_leaks=1:allocator_may_return_null=1:quarantine_size_mb=16"},
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")[-6000:]
    said = done.stdout.decode()
    assert said.startswith(f"{len(inputs)} inputs, {MUTATIONS[target]} mutated")
    assert int(said.split()[-2]) < SLOWEST_S * 1000, f"milliseconds of CPU for one input: {said}"


@pytest.mark.case("A38", "A40")
@pytest.mark.parametrize("target", targets.PARSERS)
def test_corpus_of_a_parser(target):
    one = targets.parser(target)
    inputs = corpus.inputs(target)
    assert inputs, "there is no corpus"
    chance = random.Random(1)
    for data in [*inputs, *(_mutated(chance, chance.choice(inputs)) for _ in range(PARSER_MUTATIONS))]:
        start = time.process_time()
        try:
            one(data)
        except Exception as error:
            raise AssertionError(f"{target}: {data.hex()}") from error
        assert time.process_time() - start < SLOWEST_S, data.hex()


def _mutated(chance: random.Random, data: bytes) -> bytes:
    made = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(made) + 1)
        match chance.randrange(4):
            case 0:
                made[at:at] = chance.randbytes(chance.randint(1, 4))
            case 1:
                del made[at : at + chance.randint(1, 4)]
            case 2 if at < len(made):
                made[at] ^= 1 << chance.randrange(8)
            case _ if at < len(made):
                made[at] = chance.choice((0, 1, 4, 6, 0x3F, 0x40, 0x7F, 0x80, 0xC0, 0xFF))
    return bytes(made)

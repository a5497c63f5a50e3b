"""Loss, duplicates and reordering between child and stack, with a virtual clock: the text arrives whole, and how long
it takes says whether losses were found by what the child reports or by a timer."""

from __future__ import annotations

import pytest

from childflow.netstack.stack import Limits

from . import wire
from .lossy import OPTIONS, LossyChild, Wire
from .play import text_of

DOWN = 4 << 20


def download(play, child: LossyChild, size: int, limit_ms: float) -> None:
    sent = 0

    def done() -> bool:
        nonlocal sent
        if sent < size:
            sent += play.host.sends(text_of(min(size - sent, 1 << 20), sent), all_of_it=False)
            if sent == size:
                play.host.half_closes()
        return child.eof

    child.runs(done, limit_ms)
    assert bytes(child.received) == text_of(size)


@pytest.mark.case("B30")
@pytest.mark.parametrize(
    ("loss", "limit_ms"), [(0, 60), (0.01, 120), (0.05, 400), (0.2, 3_000), (0.4, 60_000)], ids=str
)
def test_download_through_loss_is_whole_and_needs_few_timeouts(stage, offload, loss, limit_ms):
    play = stage(offload=offload)
    play.establish(options=OPTIONS, window=4096)
    child = LossyChild(play, down=Wire(lose=loss), up=Wire())
    download(play, child, DOWN, limit_ms)
    print(f"loss {loss}: {child.elapsed_ms:.1f} ms, {child.segments_down * 1460 / DOWN:.3f} of the text sent")
    assert child.segments_down * 1460 / DOWN < 1.1 + 3 * loss


def upload(play, child: LossyChild, size: int, limit_ms: float) -> None:
    child.text = text_of(size)
    came = bytearray()

    def done() -> bool:
        came.extend(play.host.reads())
        return len(came) == size

    child.runs(done, limit_ms)
    assert bytes(came) == text_of(size)


@pytest.mark.case("B30")
@pytest.mark.parametrize(
    ("loss", "limit_ms"), [(0, 60), (0.01, 120), (0.05, 400), (0.2, 2_000), (0.4, 10_000)], ids=str
)
def test_upload_through_loss_is_whole_and_reported_gap_by_gap(stage, loss, limit_ms):
    play = stage()
    play.establish(options=OPTIONS)
    child = LossyChild(play, down=Wire(), up=Wire(lose=loss))
    upload(play, child, 1460 * 700, limit_ms)
    sent = child.segments_up / 700
    print(f"loss {loss}: {child.elapsed_ms:.1f} ms, {sent:.3f} of the text sent")
    assert sent < 1.1 + 6 * loss  # this child sends again more than it must


@pytest.mark.case("B30")
@pytest.mark.parametrize("loss", [0.05, 0.5])
def test_download_needs_no_more_than_some_acks(stage, loss):
    play = stage()
    play.establish(options=OPTIONS, window=4096)
    download(play, LossyChild(play, down=Wire(), up=Wire(lose=loss)), DOWN, 500)


@pytest.mark.case("B30", "B21")
@pytest.mark.parametrize("seed", range(6))
def test_both_ways_through_a_wire_that_does_everything(stage, offload, seed):
    play = stage(offload=offload)
    play.establish(options=OPTIONS, window=4096)
    bad = Wire(lose=0.05, duplicate=0.1, reorder=0.1)
    child = LossyChild(play, down=bad, up=bad, seed=seed)
    child.text = text_of(1460 * 100)
    download(play, child, 1 << 20, 5_000)
    came = bytearray(play.host.reads())

    def done() -> bool:
        came.extend(play.host.reads())
        return len(came) == len(child.text)

    child.runs(done, 10_000)
    assert bytes(came) == child.text


@pytest.mark.case("B30")
@pytest.mark.parametrize("loss", [0.01, 0.05])
def test_download_without_sack_is_whole(stage, loss):
    play = stage()
    play.establish(options=wire.mss(1460) + wire.NOP + wire.wscale(7), window=4096)
    download(play, LossyChild(play, down=Wire(lose=loss), up=Wire(), sack=False), 1 << 20, 60_000)


@pytest.mark.case("B30")
def test_download_through_loss_with_only_a_small_ring(stage):
    """At the memory limit a flow has a page: slow, but it goes on through loss as well."""
    play = stage(limits=Limits(flow_window=65536, buffer_limit=65536))
    play.establish(options=OPTIONS, window=4096, port=40_001)
    play.host.sends(bytes(70_000), all_of_it=False)  # holds the one large ring: its child acknowledges nothing
    play.establish(options=OPTIONS, window=4096)
    download(play, LossyChild(play, down=Wire(lose=0.05), up=Wire(lose=0.05)), 1 << 18, 60_000)

"""The table of sequences: turns in the order of the stamps, expiry, and bounds."""

from __future__ import annotations

import asyncio
from collections import Counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from frontend.tracking import Tracker, TrackerConfig
from service.errors import (
    BadImageError,
    OutOfOrderError,
    SequenceNotFoundError,
    SequencesFullError,
    TooLargeError,
)
from service.masks import PackedMask
from service.sessions import SessionConfig, Sessions

BYTES = 100 * (4 * 8 + 2 * 16 + 4 * 16) + 10 * 24  # of 100 tracks with 16 values each, and a keyframe of 10


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Heard:
    """An observer that keeps what it hears."""

    def __init__(self) -> None:
        self.state = (0, 0, 0)
        self.counts: Counter[str] = Counter()

    def sessions(self, count: int, nbytes: int, reserved: int) -> None:
        self.state = (count, nbytes, reserved)

    def session_closed(self, reason: str) -> None:
        self.counts[reason] += 1

    def session_refused(self) -> None:
        self.counts["refused"] += 1


class Rig:
    def __init__(self, **config: Any) -> None:
        self.clock, self.heard = Clock(), Heard()
        self.table = Sessions(SessionConfig(**config), self.heard, self.clock)

    def open(self, max_tracks: int = 100, **settings: Any) -> Any:
        extractor: Any = SimpleNamespace(config=SimpleNamespace(max_keypoints=10), descriptor_dim=16)
        return self.table.open(Tracker(TrackerConfig(max_tracks=max_tracks)), extractor, **settings)


def test_sequences_are_found_by_ids_that_cannot_be_guessed() -> None:
    rig = Rig()
    first, second = rig.open(camera_id="left"), rig.open()
    assert rig.table.get(first.id) is first
    assert rig.table.all() == [first, second]
    assert len(first.id) >= 22
    assert first.camera_id == "left"
    assert rig.heard.state == (2, 0, 2 * BYTES)
    rig.table.close(first.id)
    assert first.gone.is_set()
    assert rig.heard.state == (1, 0, BYTES)
    for call in (rig.table.get, rig.table.close):
        with pytest.raises(SequenceNotFoundError, match=first.id):
            call(first.id)
    assert rig.heard.counts == {"deleted": 1}


def test_a_sequence_expires_without_frames_and_asking_does_not_keep_it() -> None:
    rig = Rig(ttl_s=60.0)
    brief, lasting, longer = rig.open(ttl_s=10.0), rig.open(), rig.open(ttl_s=1e9)
    assert (brief.expires_in_s, lasting.expires_in_s, longer.expires_in_s) == (10, 60, 60)
    rig.clock.now += 9
    turn = brief.queue(1)
    assert brief.expires_in_s == 10
    rig.clock.now += 50
    rig.table.expire()  # not while its frame is on its way
    assert rig.table.get(brief.id) is brief
    turn.release()
    assert brief.expires_in_s == 10
    rig.clock.now += 9
    rig.table.expire()
    assert rig.table.all() == [brief]
    assert lasting.gone.is_set()
    rig.clock.now += 1
    with pytest.raises(SequenceNotFoundError):
        rig.table.get(brief.id)
    assert rig.heard.state == (0, 0, 0)
    assert rig.heard.counts == {"expired": 3}


def test_bounds_hold() -> None:
    rig = Rig(max_sequences=3, max_bytes=4 * BYTES - 1, ttl_s=50.0)
    first = rig.open()
    rig.clock.now += 20
    rig.open()
    with pytest.raises(TooLargeError, match="fewer max_tracks"):
        rig.open(max_tracks=500)
    with pytest.raises(SequencesFullError, match=f"{2 * BYTES} of {4 * BYTES - 1} bytes") as caught:
        rig.open(max_tracks=250)
    assert caught.value.retry_after == 30
    rig.open()
    with pytest.raises(SequencesFullError, match="3 of 3 sequences"):
        rig.open()
    rig.table.close(first.id)
    rig.open()
    assert rig.heard.state == (3, 0, 3 * BYTES)
    assert rig.heard.counts == {"refused": 2, "deleted": 1}


def frame(stamp_ns: int) -> Any:
    """What the table reads of a frame that has been tracked."""
    return SimpleNamespace(stamp_ns=stamp_ns, track_ids=[], image_size=(16, 8))


def test_a_frame_that_fails_leaves_the_sequence_as_it_was() -> None:
    async def use() -> None:
        session = Rig().open()
        for stamp in (100, 100, 90):  # again, and an earlier one
            turn = session.queue(stamp)
            await turn.come()
            for late in (stamp, stamp - 1):
                with pytest.raises(OutOfOrderError, match=f"after {stamp} ns|another frame with the stamp"):
                    session.queue(late)
            turn.release()
            assert (session.last_stamp_ns, session.frames) == (None, 0)
        turn = session.queue(95)
        await turn.come()
        turn.release()
        session.tracked(frame(95))
        with pytest.raises(OutOfOrderError, match="expected one after 95 ns"):
            session.queue(95)
        # one that gives up before its turn takes nothing from the one whose turn it is
        running, waiting = session.queue(100), session.queue(110)
        await running.come()
        waiting.release()
        with pytest.raises(OutOfOrderError, match="expected one after 100 ns"):
            session.queue(99)

    asyncio.run(use())


def test_masks_count_and_fit_or_leave_the_sequence_as_it_was() -> None:
    rig = Rig(max_bytes=2 * BYTES + 16)
    first, second = rig.open(), rig.open()
    mask = PackedMask.of(np.ones((8, 16), np.bool_))
    rig.table.set_mask(first, mask)
    rig.table.set_mask(first, mask)  # in place of itself
    assert (first.nbytes, first.reserved) == (16, BYTES + 16)
    assert rig.heard.state == (2, 16, 2 * BYTES + 16)
    with pytest.raises(SequencesFullError, match=f"mask takes 16 bytes, {2 * BYTES + 16} of {2 * BYTES + 16} bytes"):
        rig.table.set_mask(second, mask)
    with pytest.raises(TooLargeError, match="masks and tracks"):
        rig.table.set_mask(first, PackedMask.of(np.ones((1024, 1024), np.bool_)))
    assert (first.masks, second.masks) == ({"image": mask}, {})
    first.tracked(frame(1))
    with pytest.raises(BadImageError, match="mask is 8 x 8; expected 16 x 8, as the frames before"):
        rig.table.set_mask(first, PackedMask.of(np.ones((8, 8), np.bool_)))
    rig.table.set_mask(first, None)
    rig.table.set_mask(second, mask)
    rig.table.close(second.id)
    assert rig.heard.state == (1, 0, BYTES)


def test_each_camera_of_a_pair_has_its_mask() -> None:
    rig = Rig(max_bytes=BYTES + 24)
    session = rig.open()
    mask, right = (PackedMask.of(np.ones(shape, np.bool_)) for shape in ((8, 16), (8, 8)))
    rig.table.set_mask(session, mask)
    rig.table.set_mask(session, right, "right")
    assert session.masks == {"image": mask, "right": right}
    assert rig.heard.state == (1, 24, BYTES + 24)
    with pytest.raises(TooLargeError, match=f"may come to {BYTES + 32} bytes"):
        rig.table.set_mask(session, mask, "right")
    session.tracked(frame(1))
    rig.table.set_mask(session, right, "right")  # no right image has come
    session.tracked(frame(2), (8, 8))
    session.tracked(frame(3))  # nor one with this frame
    wide = PackedMask.of(np.ones((4, 8), np.bool_))
    with pytest.raises(BadImageError, match="right mask is 8 x 4; expected 8 x 8, as the right images before"):
        rig.table.set_mask(session, wide, "right")
    rig.table.set_mask(session, None)
    assert session.masks == {"right": right}
    rig.table.set_mask(session, None, "right")
    rig.table.set_mask(session, None, "right")
    assert rig.heard.state == (1, 0, BYTES)


def test_turns_come_in_the_order_of_stamps() -> None:
    async def use() -> list[int]:
        session = Rig().open()
        done: list[int] = []

        async def take(turn: Any) -> None:
            await turn.come()
            await asyncio.sleep(0)
            done.append(turn.stamp_ns)
            turn.release()
            session.tracked(frame(turn.stamp_ns))
            assert session.last_stamp_ns == turn.stamp_ns

        turns = [session.queue(stamp) for stamp in (5, 9, 2, 7)]
        tasks = [asyncio.create_task(take(turn)) for turn in turns if turn.stamp_ns != 7]
        await asyncio.sleep(0.01)
        assert done == [2, 5]  # 9 waits for 7
        for stamp in (5, 7, 9):
            with pytest.raises(OutOfOrderError, match=f"the stamp {stamp} ns"):
                session.queue(stamp)
        late = session.queue(6)  # later than what has been tracked
        turns[3].release()
        turns[3].release()
        await asyncio.sleep(0.01)
        assert done == [2, 5]
        await asyncio.gather(*tasks[:1], take(late))
        await asyncio.gather(*tasks)
        with pytest.raises(OutOfOrderError):
            session.queue(8)
        session.gone.set()
        with pytest.raises(SequenceNotFoundError):
            await session.queue(10).come()
        return done

    assert asyncio.run(use()) == [2, 5, 6, 9]

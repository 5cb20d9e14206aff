"""Places in the queue, and who is told to come back later."""

from __future__ import annotations

import pytest

from service.admission import Admission
from service.errors import OverloadedError


def test_whoever_finds_an_empty_queue_is_let_in() -> None:
    admission = Admission(max_queue=10, max_wait_s=4.0, always=1)
    (slow,) = admission.reserve(1, admission.images)
    slow.release(served=True)
    admission.images.worked(30.0)
    first = admission.reserve(2, admission.images)  # as a pair of images has
    with pytest.raises(OverloadedError, match="2 images are waiting") as refused:
        admission.reserve(1, admission.images)
    assert refused.value.retry_after == 4  # nobody waits for longer
    for slot in first:
        slot.release()
    assert admission.images.pace.seconds == 30.0


def test_places_that_cost_nothing_are_not_counted() -> None:
    admission = Admission(max_queue=1000, max_wait_s=4.0, always=1)
    for served, left in ((1, 0), (1, 80), (1, 0)):
        slots = admission.reserve(served + left, admission.images)
        for slot in slots[:left]:
            slot.release()
        slots[left].release(served=True)
        admission.images.worked(0.25)
    assert admission.images.pace.seconds == pytest.approx(0.25)

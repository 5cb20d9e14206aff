"""Room that requests wait for."""

from __future__ import annotations

import asyncio

import pytest

from service.room import Room


async def settled() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


class Holder:
    """A request that holds room until it is told to leave."""

    def __init__(self, room: Room, nbytes: int) -> None:
        self.inside, self._leave = False, asyncio.Event()
        self.task = asyncio.create_task(self._hold(room, nbytes))

    async def _hold(self, room: Room, nbytes: int) -> None:
        async with room.hold(nbytes):
            self.inside = True
            await self._leave.wait()

    async def leave(self) -> None:
        self._leave.set()
        await self.task


@pytest.mark.anyio
async def test_room_is_given_in_the_order_of_asking() -> None:
    room = Room(100)
    holders = [Holder(room, nbytes) for nbytes in (60, 30, 50, 10)]
    await settled()
    # the last would fit, but comes after one that does not
    assert [holder.inside for holder in holders] == [True, True, False, False]
    assert room.used == 90
    await holders[1].leave()
    await settled()
    assert [holder.inside for holder in holders[2:]] == [False, False]
    await holders[0].leave()
    await settled()
    assert room.used == 60
    for holder in holders[2:]:
        await holder.leave()
    assert room.used == 0


@pytest.mark.anyio
async def test_who_leaves_before_it_is_let_in_takes_nothing() -> None:
    room = Room(100)
    first, gone, last = (Holder(room, nbytes) for nbytes in (90, 50, 10))
    await settled()
    gone.task.cancel()
    await settled()
    assert [first.inside, gone.inside, last.inside] == [True, False, True]
    last.task.cancel()  # and who leaves inside gives back
    await settled()
    assert room.used == 90
    await first.leave()
    assert room.used == 0


@pytest.mark.anyio
async def test_a_piece_of_any_size_is_let_in_alone() -> None:
    room = Room(100)
    large = Holder(room, 500)
    small = Holder(room, 1)
    await settled()
    assert (large.inside, small.inside) == (True, False)
    await large.leave()
    await settled()
    assert small.inside
    await small.leave()

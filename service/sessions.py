"""Open sequences: trackers with their state, bounded in number, memory and time.

The table lives in the process's memory; a restart loses it, and its ids are then unknown. A sequence reserves, when it
is opened, the memory that its tracks may ever come to: a frame is never refused for want of memory, and nothing is
pushed out to make room. Everything here runs on the event loop, but for trackers, which run in threads, each in one at
a time.
"""

from __future__ import annotations

import asyncio
import bisect
import math
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from frontend.extractor import SuperPoint
from frontend.tracking import Tracker
from frontend.types import TrackedFrame
from service.errors import OutOfOrderError, SequenceNotFoundError, SequencesFullError, TooLargeError
from service.masks import ImageName, PackedMask, check_size, mask_name

Clock = Callable[[], float]


class Observer(Protocol):
    """What the table tells of itself."""

    def sessions(self, count: int, nbytes: int, reserved: int) -> None:
        """Its content has changed: sequences, bytes that tracks and masks take, and bytes that they may come to."""

    def session_closed(self, reason: str) -> None:
        """A sequence is gone: "expired" or "deleted"."""

    def session_refused(self) -> None:
        """There was no room for one, or for a mask of it."""


@dataclass(frozen=True)
class SessionConfig:
    """Bounds of the table.

    Attributes:
        ttl_s: seconds without a frame after which a sequence expires; it may ask for less.
        max_sequences: open at a time.
        max_bytes: that their tracks and masks may come to, together.
    """

    ttl_s: float = 300.0
    max_sequences: int = 256
    max_bytes: int = 1_024_000_000


def not_open(sequence_id: str) -> SequenceNotFoundError:
    """The refusal of an id."""
    return SequenceNotFoundError(f"sequence {sequence_id[:64]!r} is not open, or no longer")


class Turn:
    """A frame's place among those of its sequence, from its admission until it is tracked or given up.

    Args:
        session: that it belongs to.
        stamp_ns: of the frame.
    """

    def __init__(self, session: Session, stamp_ns: int) -> None:
        self._session = session
        self.stamp_ns = stamp_ns
        self.first = asyncio.Event()

    async def come(self) -> None:
        """Wait until all earlier frames are done; what is not later than this one is refused from then on.

        Raises:
            SequenceNotFoundError: the sequence has been closed meanwhile.
        """
        while not self._session.is_first(self):
            await self.first.wait()
        self._session.begin(self)

    def release(self) -> None:
        """Give the place to the next; a second call does nothing."""
        self._session.release(self)


class Session:
    """A sequence that is open.

    Args:
        tracker: with its settings and cameras.
        extractor: of its frames.
        camera_id: echoed.
        ttl_s: seconds without a frame after which it expires.
        tracks_bytes: that its tracks may come to.
        clock: seconds that never go back.

    Attributes:
        id: random, not to be guessed.
        frames: that have been tracked.
        last_stamp_ns: of the last frame that has been tracked; None before the first.
        image_sizes: (width, height) of its frames' images, and of the last right one; none before the first.
        masks: where keypoints of those may be; none for anywhere.
        gone: set once it has expired or was deleted.
    """

    def __init__(
        self,
        tracker: Tracker,
        extractor: SuperPoint,
        *,
        camera_id: str | None,
        ttl_s: float,
        tracks_bytes: int,
        clock: Clock,
    ) -> None:
        self.id = secrets.token_urlsafe(16)
        self.tracker, self.extractor, self.camera_id = tracker, extractor, camera_id
        self.ttl_s, self._most_bytes = ttl_s, tracks_bytes
        self.frames = self.tracks = self._tracks_bytes = 0
        self.last_stamp_ns: int | None = None
        self.image_sizes: dict[ImageName, tuple[int, int]] = {}
        self.masks: dict[ImageName, PackedMask] = {}
        self.gone = asyncio.Event()
        self._observations = 0
        self._clock = clock
        self._used = clock()
        self._turns: list[Turn] = []
        self._running_ns: int | None = None

    @property
    def nbytes(self) -> int:
        """Bytes that its state takes."""
        return self._tracks_bytes + self._mask_bytes

    @property
    def reserved(self) -> int:
        """Bytes that its state may come to, with the masks that it has now."""
        return self._most_bytes + self._mask_bytes

    @property
    def _mask_bytes(self) -> int:
        return sum(mask.nbytes for mask in self.masks.values())

    @property
    def mean_track_length(self) -> float:
        """Frames of a track; 0 without tracks."""
        return self._observations / self.tracks if self.tracks else 0.0

    @property
    def expires_in_s(self) -> float:
        """Seconds until it expires, unless another frame comes."""
        return self._used + self.ttl_s - self._clock()

    @property
    def expired(self) -> bool:
        """Whether its time is over; not while a frame is on its way."""
        return not self._turns and self.expires_in_s <= 0

    def queue(self, stamp_ns: int) -> Turn:
        """A turn for a frame; turns come in the order of the stamps.

        Raises:
            OutOfOrderError: a frame with this stamp or a later one is or has been tracked, or one with this waits.
        """
        latest = self.last_stamp_ns if self._running_ns is None else self._running_ns
        if latest is not None and stamp_ns <= latest:
            raise OutOfOrderError(f"frame has the stamp {stamp_ns} ns; expected one after {latest} ns")
        place = bisect.bisect_left(self._turns, stamp_ns, key=lambda turn: turn.stamp_ns)
        if place < len(self._turns) and self._turns[place].stamp_ns == stamp_ns:
            raise OutOfOrderError(f"another frame with the stamp {stamp_ns} ns waits; expected rising stamps")
        turn = Turn(self, stamp_ns)
        self._used = self._clock()
        self._turns.insert(place, turn)
        self._call_first()
        return turn

    def is_first(self, turn: Turn) -> bool:
        """Whether all earlier frames are done."""
        return self._turns[0] is turn

    def begin(self, turn: Turn) -> None:
        """See :meth:`Turn.come`."""
        if self.gone.is_set():
            raise not_open(self.id)
        self._running_ns = turn.stamp_ns

    def release(self, turn: Turn) -> None:
        """See :meth:`Turn.release`."""
        if turn in self._turns:
            if self.is_first(turn):
                self._running_ns = None
            self._turns.remove(turn)
            self._used = self._clock()
            self._call_first()

    def tracked(self, frame: TrackedFrame, right_size: tuple[int, int] | None = None) -> None:
        """Count a frame.

        Args:
            frame: tracked.
            right_size: (width, height) of its right image; None without one.
        """
        self.frames += 1
        self.last_stamp_ns = frame.stamp_ns
        self.tracks = self.tracker.num_tracks
        self._observations += len(frame.track_ids)
        self._tracks_bytes = self.tracker.nbytes
        self.image_sizes["image"] = frame.image_size
        if right_size is not None:
            self.image_sizes["right"] = right_size

    def _call_first(self) -> None:
        for turn in self._turns[1:]:
            turn.first.clear()
        if self._turns:
            self._turns[0].first.set()


class Sessions:
    """The table of open sequences.

    Args:
        config: bounds.
        observer: is told of what changes.
        clock: seconds that never go back.
    """

    def __init__(self, config: SessionConfig, observer: Observer, clock: Clock = time.monotonic) -> None:
        self.config = config
        self._observer = observer
        self._clock = clock
        self._sessions: dict[str, Session] = {}

    def open(
        self, tracker: Tracker, extractor: SuperPoint, *, camera_id: str | None = None, ttl_s: float | None = None
    ) -> Session:
        """Open a sequence.

        Args:
            tracker: new.
            extractor: of its frames.
            camera_id: echoed.
            ttl_s: of this one, at most that of the table.

        Raises:
            TooLargeError: its tracks may come to more memory than all sequences together.
            SequencesFullError: there is no room.
        """
        config = self.config
        needed = tracker.config.most_bytes(extractor.config.max_keypoints, extractor.descriptor_dim)
        if needed > config.max_bytes:
            raise TooLargeError(
                f"tracks may come to {needed} bytes; expected at most {config.max_bytes}: ask for fewer max_tracks"
            )
        self.expire()
        reserved = sum(session.reserved for session in self._sessions.values())
        if len(self._sessions) >= config.max_sequences or reserved + needed > config.max_bytes:
            self._observer.session_refused()
            wait = min(session.expires_in_s for session in self._sessions.values())
            raise SequencesFullError(
                f"{len(self._sessions)} of {config.max_sequences} sequences are open, "
                f"{reserved} of {config.max_bytes} bytes are reserved; close some, or wait until some expire",
                retry_after=max(1, math.ceil(wait)),
            )
        session = Session(
            tracker,
            extractor,
            camera_id=camera_id,
            ttl_s=min(config.ttl_s if ttl_s is None else ttl_s, config.ttl_s),
            tracks_bytes=needed,
            clock=self._clock,
        )
        self._sessions[session.id] = session
        self.tell()
        return session

    def get(self, sequence_id: str) -> Session:
        """A sequence that is open.

        Raises:
            SequenceNotFoundError: there is none, or no longer.
        """
        self.expire()
        session = self._sessions.get(sequence_id)
        if session is None:
            raise not_open(sequence_id)
        return session

    def set_mask(self, session: Session, mask: PackedMask | None, of: ImageName = "image") -> None:
        """Give a sequence a mask, in place of the one that it has; None takes that away.

        Args:
            session: that it is of.
            mask: where keypoints may be.
            of: the images that it is of.

        Raises:
            BadImageError: it has another size than the images before.
            TooLargeError: the sequence may come to more memory with it than all sequences together.
            SequencesFullError: there is no room for it; the sequence keeps the one that it has.
        """
        if mask is None:
            session.masks.pop(of, None)
        else:
            if of in session.image_sizes:
                before = "the right images before" if of == "right" else "the frames before"
                check_size(mask_name(of), mask.size, session.image_sizes[of], before)
            replaced = session.masks[of].nbytes if of in session.masks else 0
            needed, most = session.reserved - replaced + mask.nbytes, self.config.max_bytes
            if needed > most:
                raise TooLargeError(f"masks and tracks may come to {needed} bytes; expected at most {most}")
            others = sum(one.reserved for one in self._sessions.values()) - replaced
            if others + mask.nbytes > most:
                self._observer.session_refused()
                reason = f"mask takes {mask.nbytes} bytes, {others} of {most} bytes are reserved"
                raise SequencesFullError(f"{reason}; close some sequences, or wait until some expire", retry_after=1)
            session.masks[of] = mask
        self.tell()

    def all(self) -> list[Session]:
        """Those that are open, the oldest first."""
        self.expire()
        return list(self._sessions.values())

    def close(self, sequence_id: str) -> None:
        """Forget a sequence.

        Raises:
            SequenceNotFoundError: there is none, or no longer.
        """
        self._remove(self.get(sequence_id), "deleted")
        self.tell()

    def expire(self) -> None:
        """Remove what has expired."""
        expired = [session for session in self._sessions.values() if session.expired]
        for session in expired:
            self._remove(session, "expired")
        if expired:
            self.tell()

    def tell(self) -> None:
        """Tell the observer of the table as it is."""
        every = self._sessions.values()
        nbytes = sum(session.nbytes for session in every)
        self._observer.sessions(len(every), nbytes, sum(session.reserved for session in every))

    def _remove(self, session: Session, reason: str) -> None:
        del self._sessions[session.id]
        session.gone.set()
        self._observer.session_closed(reason)

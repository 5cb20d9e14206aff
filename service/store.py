"""Features kept on the server, so that an image that is matched often is sent and extracted once.

The store lives in the process's memory, with a bound on entries and bytes; a restart loses it. Nothing is pushed out to
make room: a full store refuses new features, since an id that a client holds should work until it expires.
"""

from __future__ import annotations

import dataclasses
import math
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from frontend.types import Features
from service.errors import FeaturesNotFoundError, StoreFullError, TooLargeError

Clock = Callable[[], float]


class Observer(Protocol):
    """What the store tells of itself; called under its lock, so quick."""

    def stored(self, entries: int, nbytes: int) -> None:
        """Its content has changed: sets of features, and bytes of their arrays."""

    def removed(self, reason: str) -> None:
        """A set of features is gone: "expired" or "deleted"."""

    def store_refused(self) -> None:
        """It was full."""


@dataclass(frozen=True)
class StoreConfig:
    """Bounds of a store.

    Attributes:
        ttl_s: seconds without use after which features expire.
        max_entries: sets of features.
        max_bytes: of their arrays, together.
    """

    ttl_s: float = 3600.0
    max_entries: int = 10_000
    max_bytes: int = 512_000_000


@dataclass(frozen=True, eq=False)
class StoredFeatures:
    """One set of features in the store.

    Attributes:
        feature_id: random, not to be guessed.
        collection: that it belongs to.
        packed: the features with descriptors as float16, which halves their memory; arrays of its own, not views.
    """

    feature_id: str
    collection: str
    packed: Features

    @property
    def model(self) -> str:
        """The model that made them."""
        return self.packed.model

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return _nbytes(self.packed)

    def features(self) -> Features:
        """The features with float32 descriptors, brought back to unit norm after their rounding to float16."""
        descriptors = self.packed.descriptors.astype(np.float32)
        descriptors /= np.maximum(np.linalg.norm(descriptors, axis=1, keepdims=True), np.finfo(np.float32).tiny)
        return dataclasses.replace(self.packed, descriptors=descriptors)


@dataclass
class _Entry:
    stored: StoredFeatures
    expires: float


class FeatureStore:
    """Features by id and by collection; safe to use from any thread.

    Each use of features starts their time to live again, and moves them to the end of the queue of those that expire:
    its head is always the next one, so no call looks at more than those that it removes.

    Args:
        config: bounds.
        observer: is told of what changes.
        clock: seconds that never go back.
    """

    def __init__(self, config: StoreConfig, observer: Observer, clock: Clock = time.monotonic) -> None:
        self.config = config
        self._observer = observer
        self._clock = clock
        self._lock = threading.Lock()
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._collections: dict[str, dict[str, None]] = {}
        self._nbytes = 0

    def put(self, features: Features, collection: str) -> StoredFeatures:
        """Keep features.

        Args:
            features: any number of keypoints; copied, descriptors to float16.
            collection: made where it does not exist.

        Raises:
            StoreFullError: there is no room, and nothing that has expired.
            TooLargeError: they alone are more than the store may hold.
        """
        sigmas = None if features.sigmas is None else features.sigmas.copy()
        packed = dataclasses.replace(
            features,
            keypoints=features.keypoints.copy(),
            scores=features.scores.copy(),
            sigmas=sigmas,
            descriptors=features.descriptors.astype(np.float16),
        )
        stored = StoredFeatures(secrets.token_urlsafe(16), collection, packed)
        with self._lock:
            self._require_room(stored.nbytes)
            self._entries[stored.feature_id] = _Entry(stored, self._clock() + self.config.ttl_s)
            self._collections.setdefault(collection, {})[stored.feature_id] = None
            self._nbytes += stored.nbytes
            self._tell()
        return stored

    def require_room(self) -> None:
        """Refuse before any work is done where not even features without keypoints can be stored.

        Raises:
            StoreFullError: as many are stored as may be, or their bytes are used up.
        """
        with self._lock:
            self._require_room(0)

    def get(self, feature_id: str) -> StoredFeatures:
        """Features by their id; a use.

        Raises:
            FeaturesNotFoundError: there are none, or no longer.
        """
        with self._lock:
            self._expire()
            return self._used(self._found(feature_id))

    def collection(self, name: str) -> list[StoredFeatures]:
        """The features of a collection, in the order they were stored; a use of each. Empty for an unknown one."""
        with self._lock:
            self._expire()
            return [self._used(self._entries[feature_id]) for feature_id in self._collections.get(name, ())]

    def delete(self, feature_id: str) -> None:
        """Forget features.

        Raises:
            FeaturesNotFoundError: there are none, or no longer.
        """
        with self._lock:
            self._expire()
            self._remove(self._found(feature_id).stored, "deleted")
            self._tell()

    def expire(self) -> None:
        """Remove what has expired; each other call does it, too."""
        with self._lock:
            self._expire()

    def _found(self, feature_id: str) -> _Entry:
        entry = self._entries.get(feature_id)
        if entry is None:
            raise FeaturesNotFoundError(f"features {feature_id[:64]!r} are not stored, or no longer")
        return entry

    def _used(self, entry: _Entry) -> StoredFeatures:
        entry.expires = self._clock() + self.config.ttl_s
        self._entries.move_to_end(entry.stored.feature_id)
        return entry.stored

    def _expire(self) -> None:
        now, changed = self._clock(), False
        while self._entries and (head := next(iter(self._entries.values()))).expires <= now:
            self._remove(head.stored, "expired")
            changed = True
        if changed:
            self._tell()

    def _remove(self, stored: StoredFeatures, reason: str) -> None:
        del self._entries[stored.feature_id]
        members = self._collections[stored.collection]
        del members[stored.feature_id]
        if not members:
            del self._collections[stored.collection]
        self._nbytes -= stored.nbytes
        self._observer.removed(reason)

    def _require_room(self, nbytes: int) -> None:
        config = self.config
        if nbytes > config.max_bytes:
            raise TooLargeError(f"features have {nbytes} bytes; the store holds at most {config.max_bytes}")
        self._expire()
        entries, free = len(self._entries), config.max_bytes - self._nbytes
        if entries < config.max_entries and (free > 0 if nbytes == 0 else free >= nbytes):
            return
        self._observer.store_refused()
        # when enough will have expired, if nobody uses them
        wait = 0.0
        for entry in self._entries.values():
            entries, free, wait = entries - 1, free + entry.stored.nbytes, entry.expires - self._clock()
            if entries < config.max_entries and free >= max(nbytes, 1):
                break
        raise StoreFullError(
            f"the store is full: {len(self._entries)} of {config.max_entries} sets, "
            f"{self._nbytes} of {config.max_bytes} bytes; delete some, or wait until some expire",
            retry_after=max(1, math.ceil(wait)),
        )

    def _tell(self) -> None:
        self._observer.stored(len(self._entries), self._nbytes)


def _nbytes(features: Features) -> int:
    arrays = (features.keypoints, features.scores, features.descriptors, features.sigmas)
    return sum(array.nbytes for array in arrays if array is not None)

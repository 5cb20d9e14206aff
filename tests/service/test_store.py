"""The store of features: what comes back, what expires, and that its bounds hold."""

from __future__ import annotations

import threading
from collections import Counter

import numpy as np
import pytest

from frontend.types import Features
from service.errors import FeaturesNotFoundError, StoreFullError, TooLargeError
from service.store import FeatureStore, StoreConfig

DIM = 8
PER_KEYPOINT = 2 * 4 + 4 + 4 + 2 * DIM  # keypoints, scores, sigmas, float16 descriptors


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Heard:
    """An observer that keeps what it hears."""

    def __init__(self) -> None:
        self.entries = self.nbytes = 0
        self.counts: Counter[str] = Counter()

    def stored(self, entries: int, nbytes: int) -> None:
        self.entries, self.nbytes = entries, nbytes

    def removed(self, reason: str) -> None:
        self.counts[reason] += 1

    def store_refused(self) -> None:
        self.counts["refused"] += 1


def features(count: int = 10, sigmas: bool = True, seed: int = 0) -> Features:
    rng = np.random.default_rng(seed)
    descriptors = rng.normal(size=(count, DIM)).astype(np.float32)
    descriptors /= np.linalg.norm(descriptors, axis=1, keepdims=True)
    return Features(
        keypoints=rng.uniform(0, 1000, (count, 2)).astype(np.float32),
        scores=np.sort(rng.random(count, np.float32))[::-1],
        descriptors=descriptors,
        image_size=(640, 480),
        model="some",
        sigmas=rng.random(count, np.float32) if sigmas else None,
    )


class Rig:
    def __init__(self, **config: float) -> None:
        self.clock, self.heard = Clock(), Heard()
        self.store = FeatureStore(StoreConfig(**config), self.heard, self.clock)  # type: ignore[arg-type]


@pytest.mark.parametrize("given", [features(), features(sigmas=False), features(0)])
def test_features_come_back(given: Features) -> None:
    store = Rig().store
    stored = store.put(given, "here")
    found = store.get(stored.feature_id).features()
    for name in ("keypoints", "scores"):
        np.testing.assert_array_equal(getattr(found, name), getattr(given, name))
    if given.sigmas is None:
        assert found.sigmas is None
    else:
        np.testing.assert_array_equal(found.sigmas, given.sigmas)
    assert (found.image_size, found.model) == (given.image_size, given.model)
    assert found.descriptors.dtype == np.float32
    # rounding to float16 moves a component of at most 1 by at most 2^-12
    np.testing.assert_allclose(found.descriptors, given.descriptors, atol=2**-11)
    np.testing.assert_allclose(np.linalg.norm(found.descriptors, axis=1), 1, atol=1e-6)


def test_the_store_keeps_copies_not_views_of_a_batch() -> None:
    rig, given = Rig(), features()
    stored = rig.store.put(given, "here")
    given.keypoints[:] = -1
    found = rig.store.get(stored.feature_id).packed
    assert (found.keypoints >= 0).all()
    assert all(array.base is None for array in (found.keypoints, found.scores, found.descriptors, found.sigmas))


def test_ids_are_not_to_be_guessed() -> None:
    store = Rig().store
    ids = {store.put(features(1), "here").feature_id for _ in range(100)}
    assert len(ids) == 100
    assert all(len(feature_id) == 22 for feature_id in ids)  # 128 bits in base 64


def test_features_expire_when_they_have_not_been_used() -> None:
    rig = Rig(ttl_s=10)
    first, second = (rig.store.put(features(seed=seed), "here").feature_id for seed in (0, 1))
    rig.clock.now += 9
    rig.store.get(first)
    rig.clock.now += 1
    with pytest.raises(FeaturesNotFoundError, match=second):
        rig.store.get(second)
    assert (rig.heard.entries, rig.heard.nbytes) == (1, 10 * PER_KEYPOINT)
    assert [stored.feature_id for stored in rig.store.collection("here")] == [first]
    rig.clock.now += 9.9
    assert rig.store.get(first)
    rig.clock.now += 10
    rig.store.expire()
    assert (rig.heard.entries, rig.heard.nbytes, rig.heard.counts["expired"]) == (0, 0, 2)
    assert rig.store.collection("here") == []


def test_matching_a_collection_is_a_use_of_its_features() -> None:
    rig = Rig(ttl_s=10)
    kept, other = rig.store.put(features(), "map"), rig.store.put(features(), "other")
    rig.clock.now += 9
    rig.store.collection("map")
    rig.clock.now += 9
    assert rig.store.get(kept.feature_id) is kept
    with pytest.raises(FeaturesNotFoundError):
        rig.store.get(other.feature_id)


def test_collections_are_apart_and_in_order() -> None:
    store = Rig().store
    ids = [store.put(features(), name).feature_id for name in ("a", "b", "a", "a")]
    store.get(ids[0])  # a use does not change the order
    assert [stored.feature_id for stored in store.collection("a")] == [ids[0], ids[2], ids[3]]
    store.delete(ids[2])
    assert [stored.feature_id for stored in store.collection("a")] == [ids[0], ids[3]]
    assert [stored.feature_id for stored in store.collection("b")] == [ids[1]]
    assert store.collection("c") == []
    with pytest.raises(FeaturesNotFoundError):
        store.delete(ids[2])


def test_a_store_with_as_many_entries_as_it_may_hold_refuses() -> None:
    rig = Rig(ttl_s=10, max_entries=2)
    rig.store.put(features(), "here")
    rig.clock.now += 4
    second = rig.store.put(features(), "here")
    for refused in (rig.store.require_room, lambda: rig.store.put(features(), "here")):
        with pytest.raises(StoreFullError, match="2 of 2 sets") as error:
            refused()
        assert error.value.retry_after == 6  # when the first expires
    assert (rig.heard.entries, rig.heard.counts["refused"]) == (2, 2)
    rig.store.delete(second.feature_id)
    rig.store.require_room()
    rig.store.put(features(), "here")
    rig.clock.now += 6
    rig.store.put(features(), "here")  # the first has expired


def test_a_store_whose_bytes_are_used_up_refuses() -> None:
    rig = Rig(ttl_s=10, max_bytes=30 * PER_KEYPOINT)
    rig.store.put(features(5), "here")
    rig.clock.now += 1
    rig.store.put(features(15), "here")
    rig.clock.now += 1
    rig.store.put(features(10), "here")
    assert rig.heard.nbytes == 30 * PER_KEYPOINT
    with pytest.raises(StoreFullError, match="bytes") as error:
        rig.store.put(features(5), "here")
    assert error.value.retry_after == 8
    with pytest.raises(StoreFullError) as error:
        rig.store.put(features(6), "here")  # the first alone does not make room for these
    assert error.value.retry_after == 9
    with pytest.raises(StoreFullError):
        rig.store.require_room()
    with pytest.raises(TooLargeError, match="at most 960"):
        rig.store.put(features(31), "here")
    rig.clock.now += 8
    rig.store.put(features(5), "here")
    assert (rig.heard.entries, rig.heard.nbytes) == (3, 30 * PER_KEYPOINT)


def test_many_threads_leave_the_accounts_right() -> None:
    rig = Rig(max_entries=50)
    failures: list[BaseException] = []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        mine: list[str] = []
        try:
            for _ in range(200):
                if mine and rng.random() < 0.45:
                    rig.store.delete(mine.pop(int(rng.integers(len(mine)))))
                    continue
                try:
                    mine.append(rig.store.put(features(int(rng.integers(1, 5))), str(rng.integers(3))).feature_id)
                except StoreFullError:
                    rig.store.collection("0")
            for feature_id in mine:
                rig.store.delete(feature_id)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert (rig.heard.entries, rig.heard.nbytes) == (0, 0)
    assert all(rig.store.collection(name) == [] for name in "012")

"""Masks of sequences and of their frames, over REST and the stream, and masks of both clients."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import pytest
from clients import BOTH
from live import Live, live
from moving import CAMERA, HEIGHT, RIG, STEP, WIDTH, check_same, view, views
from problems import check_problem

from frontend import SuperPoint
from frontend.errors import ConfigError, ImageError
from frontend.image import decode_image
from frontend.tracking import Tracker
from service.client import AsyncClient, BadImage, Client, Refused, Retry, SequenceFrame, SequenceLost, calls
from service.client.calls import Context
from service.client.images import encoded_mask

MASK = np.zeros((HEIGHT, WIDTH), np.bool_)
MASK[:, : WIDTH // 2] = True
UPPER = np.zeros_like(MASK)
UPPER[: HEIGHT // 2] = True
PNG = encoded_mask(MASK)
SMALL = encoded_mask(np.ones((60, 80), np.uint8))
ONCE = Retry(attempts=1)


@pytest.fixture(scope="module")
def server() -> Iterator[Live]:
    with live(warmup=(f"{WIDTH}x{HEIGHT}",), max_queue=64) as made:
        yield made


@pytest.fixture(scope="module")
def client(server: Live) -> Iterator[Client]:
    with Client(server.base, retry=ONCE) as made:
        yield made


def allowed(keypoints: np.ndarray, mask: np.ndarray = MASK) -> bool:
    x, y = np.rint(keypoints).astype(int).T
    return len(x) > 0 and bool(mask[y, x].all())


def expected_tracks(images: list[bytes]) -> list[Any]:
    extractor = SuperPoint.from_pretrained(device="cpu")
    tracker = Tracker(None, CAMERA)
    made = [extractor.extract(decode_image(image, "image"), mask=MASK) for image in images]
    return [tracker.update(features, n * STEP) for n, features in enumerate(made)]


def test_frames_and_streams_obey_the_mask_of_their_sequence(client: Client) -> None:
    images = views(4)
    expected = expected_tracks(images)
    with client.sequence(camera=CAMERA, mask=MASK) as sequence:
        frames = [sequence.track(image, n * STEP) for n, image in enumerate(images[:2])]
        with sequence.stream() as stream:
            for n in (2, 3):
                stream.send(images[n], n * STEP)
            frames += [stream.receive() for _ in range(2)]
            for got, want in zip(frames, expected, strict=True):
                assert isinstance(got, SequenceFrame)
                assert allowed(got.keypoints)
                check_same(got, want)
            sequence.set_mask(None)
            stream.send(view(12), 4 * STEP)
            assert not allowed(stream.receive().keypoints)
            sequence.set_mask(UPPER)
            stream.send(view(15), 5 * STEP)
            assert allowed(stream.receive().keypoints, UPPER)


def test_a_frames_mask_holds_beside_the_sequences(client: Client) -> None:
    with client.sequence() as sequence:
        assert allowed(sequence.track(view(0), 0, mask=UPPER).keypoints, UPPER)
        assert not allowed(sequence.track(view(3), 1).keypoints, UPPER)  # it was of that frame alone
        sequence.set_mask(MASK)
        assert allowed(sequence.track(view(6), 2, mask=UPPER).keypoints, MASK & UPPER)
        assert sequence.track(view(9), 3, mask=~MASK).keypoints.shape == (0, 2)


@pytest.fixture
def prepared(server: Live, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Names and masks of all images that the service prepares."""
    found: list[Any] = []
    prepare = server.core.decoder.prepare
    monkeypatch.setattr(server.core.decoder, "prepare", lambda *given: found.append(given[2:]) or prepare(*given))
    return found


def test_masks_of_left_images_are_not_of_right_ones(client: Client, prepared: list[Any]) -> None:
    with client.sequence(mask=MASK) as sequence:
        # of the right image another half is seen, and another size would be refused
        found = sequence.track(view(26), 0, right=view(0), mask=UPPER)
        assert allowed(found.keypoints, MASK & UPPER)
        assert found.stereo is not None
    assert {name: len(masks) for name, masks in prepared} == {"image": 2, "right": 0}


def test_right_images_obey_a_mask_of_their_own(client: Client, prepared: list[Any]) -> None:
    pair = {"image": view(26), "right": view(29)}  # three pixels farther to the right
    with client.sequence(camera=CAMERA, stereo=RIG, right_mask=MASK) as sequence, sequence.stream() as stream:

        def frames(stamp_ns: int) -> list[SequenceFrame]:
            """The pair, over REST and over the stream."""
            found = sequence.track(pair["image"], stamp_ns, right=pair["right"])
            stream.send(pair["image"], stamp_ns + 1, right=pair["right"])
            return [found, stream.receive()]

        def seen(frame: SequenceFrame) -> np.ndarray:
            assert frame.stereo is not None
            return frame.stereo.keypoints

        for frame in frames(0):
            assert not allowed(frame.keypoints)
            assert allowed(seen(frame))
        sequence.set_mask(UPPER)
        for frame in frames(2):
            assert allowed(frame.keypoints, UPPER)
            assert allowed(seen(frame), MASK)
        sequence.set_mask(None)
        sequence.set_mask(UPPER, camera="right")
        for frame in frames(4):
            assert not allowed(frame.keypoints, UPPER)
            assert allowed(seen(frame), UPPER)
            assert not allowed(seen(frame), MASK)
        sequence.set_mask(None, camera="right")
        for frame in frames(6):
            assert not allowed(seen(frame), UPPER)
    assert [len(masks) for name, masks in prepared if name == "right"] == [1, 1, 1, 1, 1, 1, 0, 0]


def test_masks_of_right_images_that_cannot_be_used_are_refused(server: Live, client: Client) -> None:
    with client.sequence() as sequence, httpx.Client(base_url=server.base, timeout=30) as http:
        path = f"/v1/sequences/{sequence.id}/mask"
        right = f"{path}?camera=right"
        assert http.put(right, content=SMALL).status_code == 204
        expected = "the sequence's right mask is 80 x 60; expected 160 x 120, as the right image"
        with pytest.raises(BadImage, match=expected):
            sequence.track(view(3), 0, right=view(0))
        assert len(sequence.track(view(3), 1).keypoints)  # without a right image it is of no account
        assert http.put(right, content=PNG).status_code == 204
        assert sequence.track(view(6), 2, right=view(3)).stereo is not None
        refused = http.put(right, content=SMALL)
        check_problem(
            refused, 422, "bad_image", "right mask is 80 x 60; expected 160 x 120, as the right images before"
        )
        black = http.put(right, content=encoded_mask(np.zeros_like(MASK)))
        check_problem(black, 422, "bad_image", "right mask: is black everywhere")
        for method, content in (("PUT", PNG), ("DELETE", None)):
            check_problem(http.request(method, f"{path}?camera=up", content=content), 400, "bad_request", "camera")
            refused = http.request(method, f"{path}?camrea=right", content=content)
            check_problem(refused, 400, "bad_request", "there is no parameter 'camrea'; expected: camera")
        # what has no content needs no format of ours
        assert http.delete(right, headers={"accept": "image/png"}).status_code == 204
        assert http.put(f"{path}?camera=left", content=PNG).status_code == 204
        assert allowed(sequence.track(view(9), 3).keypoints)


def test_masks_of_sequences_that_cannot_be_used_are_refused(server: Live, client: Client) -> None:
    with client.sequence() as sequence, httpx.Client(base_url=server.base, timeout=30) as http:
        path = f"/v1/sequences/{sequence.id}/mask"
        black = encoded_mask(np.zeros_like(MASK))
        check_problem(http.put(path, content=black), 422, "bad_image", "mask: is black everywhere")
        check_problem(http.put(path, content=b"x"), 422, "bad_image", "mask: is not an image")
        check_problem(http.put(path), 400, "bad_request", "empty")
        check_problem(http.put(path, files={"image": PNG}), 400, "bad_request", "0 files 'mask'")
        large = PNG[:16] + (30_000).to_bytes(4, "big") * 2 + PNG[24:]
        check_problem(http.put(path, content=large), 413, "too_large", "mask is 30000 x 30000 pixels")
        for method in ("PUT", "DELETE"):
            refused = http.request(method, "/v1/sequences/nobody/mask", content=PNG if method == "PUT" else None)
            check_problem(refused, 404, "sequence_not_found", "nobody")
        # before the first frame any size may be right
        assert http.put(path, files={"mask": SMALL}).status_code == 204
        with pytest.raises(BadImage, match="the sequence's mask is 80 x 60; expected 160 x 120, as the image"):
            sequence.track(view(0), 0)
        with sequence.stream() as stream:
            stream.send(view(0), 0)
            refused = stream.receive()
            assert isinstance(refused, Refused)
            assert "80 x 60" in refused.fault.detail
        assert http.put(path, content=PNG).status_code == 204
        assert allowed(sequence.track(view(0), 1).keypoints)
        problem = http.put(path, content=SMALL)
        check_problem(problem, 422, "bad_image", "mask is 80 x 60; expected 160 x 120, as the frames before")
        assert allowed(sequence.track(view(3), 2).keypoints)  # the one that it has stays
        frames = f"/v1/sequences/{sequence.id}/frames?stamp_ns=3"
        refused = http.post(frames, files={"image": view(6), "mask": SMALL})
        check_problem(refused, 422, "bad_image", "mask is 80 x 60; expected 160 x 120, as the image")
        assert http.post(frames, files={"image": view(6), "mask": PNG}).json()["index"] == 2
        assert [http.delete(path).status_code for _ in range(2)] == [204, 204]


def test_masks_count_in_the_memory_of_sequences(server: Live, client: Client) -> None:
    reserved = "superpoint_sequence_reserved_bytes"
    with client.sequence() as sequence:
        before, kept = server.metric(reserved), sequence.status().bytes
        for mask in (MASK, UPPER):  # the second takes the place of the first
            sequence.set_mask(mask)
            assert server.metric(reserved) - before == sequence.status().bytes - kept == WIDTH * HEIGHT // 8
        sequence.set_mask(MASK, camera="right")  # the third beside it
        assert server.metric(reserved) - before == sequence.status().bytes - kept == 2 * WIDTH * HEIGHT // 8
        for camera in ("left", "right"):
            sequence.set_mask(None, camera=camera)
        assert (server.metric(reserved), sequence.status().bytes) == (before, kept)


def test_a_sequence_without_its_mask_is_not_left_open(client: Client) -> None:
    before = [found.id for found in client.sequences()]
    with pytest.raises(BadImage), client.sequence(mask=b"no image"):
        pass
    with pytest.raises(ImageError, match="cannot be read"), client.sequence(mask=Path("nowhere.png")):
        pass
    with pytest.raises(BadImage), client.sequence(mask=MASK, right_mask=b"no image"):
        pass
    assert [found.id for found in client.sequences()] == before


def test_the_asynchronous_client_has_masks(server: Live) -> None:
    async def use() -> None:
        async with AsyncClient(server.base, retry=ONCE) as client:
            async with client.sequence(mask=MASK) as sequence:
                assert allowed((await sequence.track(view(0), 0)).keypoints)
                await sequence.set_mask(None)
                assert allowed((await sequence.track(view(3), 1, mask=UPPER)).keypoints, UPPER)
            with pytest.raises(SequenceLost):
                await sequence.set_mask(MASK)
            async with client.sequence(mask=UPPER, right_mask=MASK) as sequence:
                found = await sequence.track(view(3), 0, right=view(0))
                assert allowed(found.keypoints, UPPER)
                assert found.stereo is not None
                assert allowed(found.stereo.keypoints)
                await sequence.set_mask(None, camera="right")
            for masks in ({"mask": b"no image"}, {"mask": MASK, "right_mask": b"no image"}):
                with pytest.raises(BadImage):
                    async with client.sequence(**masks):
                        pass
            assert sequence.id not in [found.id for found in await client.sequences()]

    asyncio.run(use())


@pytest.mark.parametrize("ask", BOTH)
def test_clients_send_masks_with_images(server: Live, tmp_path: Path, ask: Any) -> None:
    file = tmp_path / "mask.png"
    file.write_bytes(PNG)
    for mask in (MASK, MASK.astype(np.uint8), PNG, file):
        # the quality is of images alone: JPEG smears a mask's edges
        found = ask(server.base, lambda client, mask=mask: client.features(view(0), mask=mask), quality=50)
        assert allowed(found.keypoints)
    found = ask(server.base, lambda client: client.match(view(0), view(3), mask0=MASK, mask1=UPPER))
    assert allowed(found.features0.keypoints)
    assert allowed(found.features1.keypoints, UPPER)
    stored = ask(server.base, lambda client: client.features(view(0), mask=MASK, store=True, collection="masked"))
    found = ask(server.base, lambda client: client.match(stored, view(3), mask1=UPPER))
    assert allowed(found.features0.keypoints)
    many = ask(server.base, lambda client: client.match_many(view(3), mask=UPPER, collection="masked"))
    assert allowed(many.features.keypoints, UPPER)


def test_masks_of_pixels_become_black_and_white() -> None:
    for mask in (MASK, MASK.astype(np.uint8), MASK.astype(np.uint16), np.where(MASK, 0.1, 0.0)):
        found = cv2.imdecode(np.frombuffer(encoded_mask(mask), np.uint8), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(found, MASK * 255)
    with pytest.raises(ImageError, match=r"mask has shape \(3,\)"):
        encoded_mask(np.zeros(3, np.bool_))
    context = Context()
    for build in (
        lambda: calls.match(context, "id0", b"image", mask0=PNG),
        lambda: calls.match_many(context, "id0", mask=PNG),
    ):
        with pytest.raises(ConfigError, match=r"mask0? is given with stored features; expected it with an image"):
            build()

"""Masks over HTTP: keypoints lie where they are not black, and those that cannot be used are refused."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import cv2
import httpx
import numpy as np
import pytest
from problems import check_problem
from test_features_routes import FIRST, SECOND, metric
from test_image_sizes import TINY, extractor, with_size

from frontend import SuperPoint, read_image
from frontend.extractor import ExtractorConfig
from service.app import create_app
from service.core import Core
from service.decoding import Decoder
from service.masks import PackedMask, mask_of, together
from service.settings import Settings
from service.wire import MSGPACK, decode

IMAGE = read_image(FIRST)
HEIGHT, WIDTH = IMAGE.shape[:2]
PARAMS = {"max_keypoints": 128}


def png(pixels: np.ndarray) -> bytes:
    return bytes(cv2.imencode(".png", pixels)[1])


def left(share: float = 0.5, value: int = 255, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """A mask of the left part, (H, W) uint8."""
    mask = np.zeros((height, width), np.uint8)
    mask[:, : int(width * share)] = value
    return mask


FILES = {"image": FIRST.read_bytes(), "mask": png(left())}
SECOND_HEIGHT, SECOND_WIDTH = read_image(SECOND).shape[:2]
SECOND_MASK = png(left(height=SECOND_HEIGHT, width=SECOND_WIDTH))


async def post(client: httpx.AsyncClient, url: str, **kwargs: Any) -> Any:
    response = await client.post(url, headers={"accept": MSGPACK}, **kwargs)
    assert response.status_code == 200, response.text
    return decode(response.content, MSGPACK)


def inside(document: Any, width: int = WIDTH) -> bool:
    """Whether keypoints there are, all of the left half."""
    return len(document["keypoints"]) > 0 and bool((np.rint(document["keypoints"][:, 0]) < width // 2).all())


@pytest.mark.anyio
async def test_keypoints_lie_where_the_mask_is_not_black(client: httpx.AsyncClient) -> None:
    found = await post(client, "/v1/features", files=FILES, params=PARAMS)
    assert inside(found)
    model = SuperPoint.from_pretrained(device="cpu")
    model = model.configured(type(model.config)(**{**model.config.__dict__, **PARAMS}))
    expected = model.extract(IMAGE, mask=left())
    np.testing.assert_allclose(found["keypoints"], expected.keypoints, atol=1e-2)
    assert len(found["keypoints"]) == 128  # all of them are spent there
    anywhere = await post(client, "/v1/features", content=FILES["image"], params=PARAMS)
    assert not inside(anywhere)
    # other values than black and white, colours, and a network that sees another size
    coloured = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    coloured[..., 2] = left(value=1)
    same = await post(client, "/v1/features", files={**FILES, "mask": png(coloured)}, params=PARAMS)
    np.testing.assert_array_equal(same["keypoints"], found["keypoints"])
    assert inside(await post(client, "/v1/features", files=FILES, params={**PARAMS, "resize": 320}))


@pytest.mark.anyio
async def test_masks_of_a_batch_do_not_mix(client: httpx.AsyncClient) -> None:
    right = png(255 - left())
    bodies = [FILES, {"image": FILES["image"]}, {**FILES, "mask": right}, FILES]
    found = await asyncio.gather(*(post(client, "/v1/features", files=one, params=PARAMS) for one in bodies))
    assert [inside(one) for one in found] == [True, False, False, True]
    assert (np.rint(found[2]["keypoints"][:, 0]) >= WIDTH // 2).all()
    assert found[1]["keypoints"][:, 0].min() < WIDTH // 2 < found[1]["keypoints"][:, 0].max()


@pytest.mark.anyio
async def test_stored_features_keep_the_mask_that_they_were_made_with(client: httpx.AsyncClient) -> None:
    made = await post(client, "/v1/features", files=FILES, params={**PARAMS, "store": True})
    name = made["feature_id"]
    assert inside(decode((await client.get(f"/v1/features/{name}", headers={"accept": MSGPACK})).content, MSGPACK))
    files = {"image1": SECOND.read_bytes(), "mask1": SECOND_MASK}
    found = await post(client, "/v1/match", files=files, params={**PARAMS, "features0": name})
    assert inside(found["image0"])
    assert inside(found["image1"], SECOND_WIDTH)
    files = {"image1": files["image1"], "mask0": FILES["mask"]}
    refused = await client.post("/v1/match", files=files, params={"features0": name})
    check_problem(refused, 400, "bad_request", "mask0 is given with stored features; expected it with a file 'image0'")
    for url, params in (
        ("/v1/match", {"features0": name, "features1": name}),
        ("/v1/match/many", {"features": name}),
    ):
        refused = await client.post(url, files={"mask": FILES["mask"]}, params=params)
        check_problem(refused, 400, "bad_request", "expected none, nor masks")


@pytest.mark.anyio
async def test_each_image_of_a_match_has_its_own(client: httpx.AsyncClient) -> None:
    images = {"image0": FIRST.read_bytes(), "image1": SECOND.read_bytes()}
    for index, mask in enumerate((FILES["mask"], SECOND_MASK)):
        found = await post(client, "/v1/match", files={**images, f"mask{index}": mask}, params=PARAMS)
        kept = [inside(found["image0"]), inside(found["image1"], SECOND_WIDTH)]
        assert kept == [index == 0, index == 1]
    await post(client, "/v1/features", content=images["image1"], params={**PARAMS, "store": True})
    found = await post(client, "/v1/match/many", files=FILES, params=PARAMS)
    assert inside(found["image"])
    assert len(found["results"]) == 1


@pytest.mark.anyio
async def test_masks_that_cannot_be_used_are_refused(client: httpx.AsyncClient) -> None:
    size = f"expected {WIDTH} x {HEIGHT}, as the image"
    for mask, status, code, part in (
        (png(np.ones((60, 80), np.uint8)), 422, "bad_image", f"mask is 80 x 60; {size}"),
        (png(left().T.copy()), 422, "bad_image", f"mask is {HEIGHT} x {WIDTH}; {size}"),
        (png(np.zeros((HEIGHT, WIDTH), np.uint8)), 422, "bad_image", "mask: is black everywhere; expected a mask"),
        (b"no image", 422, "bad_image", "mask: is not an image"),
        (b"", 422, "bad_image", "mask: is empty"),
        (with_size(TINY, 30_000, 20_000), 413, "too_large", "mask is 30000 x 20000 pixels; expected at most 1"),
    ):
        check_problem(await client.post("/v1/features", files={**FILES, "mask": mask}), status, code, part)
    files = {"image0": FILES["image"], "image1": FILES["image"], "mask1": png(np.ones((60, 80), np.uint8))}
    check_problem(await client.post("/v1/match", files=files), 422, "bad_image", f"mask1 is 80 x 60; {size}")
    check_problem(await client.post("/v1/features", files={"mask": FILES["mask"]}), 400, "bad_request", "'image'")
    twice = [("image", FILES["image"]), ("mask", FILES["mask"]), ("mask", FILES["mask"])]
    check_problem(await client.post("/v1/features", files=twice), 400, "bad_request", "2 files 'mask'; expected one")
    files = {"image0": FILES["image"], "image1": FILES["image"], "mask": FILES["mask"]}
    check_problem(await client.post("/v1/match", files=files), 400, "bad_request", "'mask'", "mask0, mask1")
    assert await metric(client, "superpoint_queue_depth") == 0
    assert await metric(client, "superpoint_decoded_bytes") == 0


@pytest.mark.anyio
async def test_a_mask_counts_as_an_image_of_its_own(
    client: httpx.AsyncClient, core: Core, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = []
    hold = core.decoded.hold
    monkeypatch.setattr(core.decoded, "hold", lambda nbytes: held.append(nbytes) or hold(nbytes))
    for files in ({"image": FILES["image"]}, FILES):
        await post(client, "/v1/features", files=files, params=PARAMS)
    sequence = (await client.post("/v1/sequences")).json()["id"]
    assert (await client.put(f"/v1/sequences/{sequence}/mask", content=FILES["mask"])).status_code == 204
    await post(client, f"/v1/sequences/{sequence}/frames?stamp_ns=1", content=FILES["image"])
    one = 12 * WIDTH * HEIGHT
    assert held == [one, 2 * one, one, one + WIDTH * HEIGHT]
    assert core.decoded.used == 0


def test_the_description_lists_masks() -> None:
    description = create_app(Settings(device="cpu")).openapi()
    for path, names in (
        ("/v1/features", {"image", "mask"}),
        ("/v1/match", {"image0", "image1", "mask0", "mask1"}),
        ("/v1/match/many", {"image", "mask"}),
        ("/v1/sequences/{sequence_id}/frames", {"image", "right", "mask"}),
    ):
        content = description["paths"][path]["post"]["requestBody"]["content"]
        schema = content["multipart/form-data"]["schema"]
        assert set(schema["properties"]) == names
        assert not [name for name in schema["required"] if name.startswith("mask")]
        assert all("black" in schema["properties"][name]["description"] for name in names if name.startswith("mask"))
    content = description["paths"]["/v1/sequences/{sequence_id}/mask"]["put"]["requestBody"]["content"]
    assert set(content) == {"multipart/form-data", "application/octet-stream", "image/*"}


@pytest.mark.parametrize("shape", [(9, 8), (13, 11), (480, 640)])
def test_a_packed_mask_is_the_mask(shape: tuple[int, int]) -> None:
    mask = np.random.default_rng(0).random(shape) < 0.5
    packed = PackedMask.of(mask)
    np.testing.assert_array_equal(packed.unpacked(), mask)
    assert packed.unpacked().dtype == np.bool_
    assert (packed.size, packed.nbytes) == ((shape[1], shape[0]), -(-mask.size // 8))
    decoder = Decoder(1.0)
    assert decoder.mask_nbytes(extractor(), packed) == mask.size


def test_labels_of_16_bits_are_all_allowed() -> None:
    labels = np.zeros((30, 40), np.uint16)
    labels[:, 10:], labels[:, 20:], labels[:, 30:] = 1, 256, 20000
    decoder = Decoder(1.0)
    np.testing.assert_array_equal(decoder.mask(extractor(), png(labels), "mask").unpacked(), labels != 0)
    using = SuperPoint.of(SimpleNamespace(), config=ExtractorConfig())
    prepared = decoder.prepare(using, png(np.zeros((30, 40), np.uint8)), "image", [("mask", png(labels))])
    assert prepared.mask is not None
    np.testing.assert_array_equal(prepared.mask, labels != 0)


def test_masks_hold_together() -> None:
    first, second = mask_of(left(), "a"), mask_of(left(0.25), "b")
    assert together([]) is None
    assert together([first]) is first
    np.testing.assert_array_equal(together([first, second]), second)

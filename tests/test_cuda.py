"""The GPU's path against the CPU's: run where there is a CUDA device, skipped elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from frontend.cli.main import main
from frontend.cuda_backend import SEEN
from frontend.extractor import ExtractorConfig, SuperPoint
from frontend.homography import warp_points
from frontend.homography_estimation import estimate_homography
from frontend.image import read_image
from frontend.keypoints import non_maximum_suppression, sample_descriptors, triton_kernels
from frontend.matching import match_features
from frontend.pipeline import MatchPipeline, PipelineConfig
from frontend.refinement import gather_patches
from frontend.training.datasets import PairConfig, WarpedPairs
from frontend.training.device_views import finish_views
from frontend.training.labels import LabelledPhoto
from frontend.types import Features, Status

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")

SAMPLES = Path(__file__).parents[1] / "frontend" / "samples"
MODELS = ("superpoint-edge", "superpoint-slim", "superpoint-vgg")


@pytest.fixture(scope="module")
def images() -> list[np.ndarray]:
    return [read_image(SAMPLES / f"rocket_{n}.jpg") for n in range(2)]


def agreement(a: Features, b: Features) -> tuple[float, float]:
    """Share of a's keypoints that b has within half a pixel, and the least cosine of the descriptors of those."""
    distance = np.linalg.norm(a.keypoints[:, None] - b.keypoints[None], axis=2)
    nearest = distance.argmin(axis=1)
    near = distance.min(axis=1) <= 0.5
    cosines = (a.descriptors * b.descriptors[nearest]).sum(axis=1)[near]
    return float(near.mean()), float(np.quantile(cosines, 0.005))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("precision", "share", "cosine"), [("float32", 0.99, 0.999), ("fp16", 0.95, 0.99)])
def test_features_are_those_of_the_cpu(
    images: list[np.ndarray], model: str, precision: str, share: float, cosine: float
) -> None:
    reference = SuperPoint.from_pretrained(model, device="cpu", runtime="torch", precision="float32")
    extractor = SuperPoint.from_pretrained(model, device="cuda", precision=precision)
    assert extractor.device.type == "cuda"
    for image in images:
        near, alike = agreement(reference.extract(image), extractor.extract(image))
        assert near >= share, (near, alike)
        assert alike >= cosine, (near, alike)


@pytest.mark.parametrize("model", MODELS)
def test_a_batch_gives_what_its_images_give_alone(images: list[np.ndarray], model: str) -> None:
    extractor = SuperPoint.from_pretrained(model, device="cuda", precision="float32")
    sizes = [images[0], images[1], images[0][:240, :320], images[0][:, ::-1], images[1][:240, :320]]
    together = extractor.extract_batch([np.ascontiguousarray(image) for image in sizes])
    for image, found in zip(sizes, together, strict=True):
        near, alike = agreement(extractor.extract(np.ascontiguousarray(image)), found)
        assert near >= 0.99
        assert alike >= 0.999
        assert found.image_size == (image.shape[1], image.shape[0])


@pytest.fixture(autouse=True)
def with_triton() -> None:
    """Without it PyTorch's operators would be compared with themselves."""
    assert triton_kernels(torch.device("cuda:0")) is not None


@pytest.mark.parametrize("model", MODELS)
def test_auto_is_half_precision(model: str) -> None:
    assert SuperPoint.from_pretrained(model, device="cuda").precision == "fp16"


def test_graphs_give_what_calls_without_them_give(images: list[np.ndarray]) -> None:
    extractor = SuperPoint.from_pretrained("superpoint-slim", device="cuda")
    small = np.ascontiguousarray(images[1][:240, :320])
    first = [extractor.extract(image) for image in (*images, small)]
    for _ in range(SEEN + 2):
        for image, expected in zip((*images, small), first, strict=True):
            found = extractor.extract(image)
            near, alike = agreement(expected, found)
            assert near >= 0.99
            assert alike >= 0.999
    graphs = extractor.backend._graphs  # type: ignore[attr-defined]
    assert len(graphs._graphs) == 4 or len(graphs._graphs) == 6  # two for each of the sizes
    assert not graphs._refused


def test_without_triton(images: list[np.ndarray], monkeypatch: pytest.MonkeyPatch) -> None:
    expected = SuperPoint.from_pretrained("superpoint-vgg", device="cuda").extract(images[0])
    for module in ("keypoints", "cuda_backend"):
        monkeypatch.setattr(f"frontend.{module}.triton_kernels", lambda device: None)
    extractor = SuperPoint.from_pretrained("superpoint-vgg", device="cuda")
    for _ in range(SEEN + 2):
        near, alike = agreement(expected, extractor.extract(images[0]))
        assert near >= 0.99
        assert alike >= 0.999
    assert not extractor.backend._graphs._refused  # type: ignore[attr-defined]


def test_pixels_of_other_types(images: list[np.ndarray]) -> None:
    extractor = SuperPoint.from_pretrained("superpoint-slim", device="cuda", precision="float32")
    gray = cv2.cvtColor(images[0], cv2.COLOR_BGR2GRAY)
    kinds = [
        gray,
        gray.astype(np.uint16) * 257,
        (gray / 255).astype(np.float32),
        cv2.cvtColor(gray, cv2.COLOR_GRAY2BGRA),
    ]
    for found in extractor.extract_batch(kinds)[1:]:
        near, alike = agreement(extractor.extract(gray), found)
        assert near >= 0.99
        assert alike >= 0.999


def test_other_settings_do_not_take_each_others_graphs(images: list[np.ndarray]) -> None:
    extractor = SuperPoint.from_pretrained("superpoint-slim", device="cuda")
    few = extractor.configured(ExtractorConfig(max_keypoints=50))
    for _ in range(SEEN + 2):
        assert len(few.extract(images[0])) == 50
        assert len(extractor.extract(images[0])) > 500


@pytest.mark.parametrize("radius", [1, 3, 4])
def test_suppression_is_that_of_the_cpu(radius: int) -> None:
    torch.manual_seed(radius)
    maps = (torch.rand(3, 120, 168) * 200).round() / 200  # with ties
    maps[maps < 0.4] = 0
    expected = non_maximum_suppression(maps, radius)
    assert torch.equal(non_maximum_suppression(maps.cuda(), radius).cpu(), expected)
    assert expected.count_nonzero() > 100


def test_patches_and_descriptors_are_those_of_the_cpu() -> None:
    torch.manual_seed(0)
    images = torch.rand(3, 1, 72, 104)
    corners = torch.tensor([[0, 0], [103, 0], [0, 71], [103, 71.0]]).expand(3, 4, 2)
    keypoints = torch.cat([corners, (torch.rand(3, 60, 2) * torch.tensor([103.0, 71.0])).round()], dim=1)
    for size in (15, 17):
        cut = gather_patches(images.cuda(), keypoints.cuda(), size)
        assert torch.equal(cut.cpu(), gather_patches(images, keypoints, size))
    for dim, layout in ((96, torch.contiguous_format), (256, torch.channels_last)):
        maps = torch.randn(3, dim, 9, 13).contiguous(memory_format=layout)
        expected = sample_descriptors(maps, keypoints + 0.3, (104, 72))
        found = sample_descriptors(maps.cuda(), keypoints.cuda() + 0.3, (104, 72))
        torch.testing.assert_close(found.cpu(), expected, atol=1e-5, rtol=0)
        half = sample_descriptors(maps.cuda().half(), keypoints.cuda() + 0.3, (104, 72))
        torch.testing.assert_close(half.cpu(), expected, atol=2e-3, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_pooling_is_that_of_pytorch(dtype: torch.dtype) -> None:
    kernels = triton_kernels(torch.device("cuda:0"))
    assert kernels is not None
    for shape in ((2, 64, 30, 42), (1, 3, 8, 8)):
        x = torch.randn(shape, device="cuda").to(dtype)
        assert torch.equal(kernels.halve(x), torch.nn.functional.max_pool2d(x, 2))


def test_results_of_earlier_calls_stay(images: list[np.ndarray]) -> None:
    extractor = SuperPoint.from_pretrained("superpoint-slim", device="cuda")
    for _ in range(SEEN + 1):
        extractor.extract(images[0])
    batches = [extractor.preprocess([image]) for image in images]
    maps = [extractor.forward(batch) for batch in batches]
    found = [extractor.postprocess(m, batch) for m, batch in zip(maps, batches, strict=True)]
    for image, one, batch in zip(images, found, batches, strict=True):
        expected = extractor.extract(image)
        np.testing.assert_allclose(extractor.collect(one, batch)[0].keypoints, expected.keypoints, atol=1e-3)


def test_matches_are_those_of_the_cpu(images: list[np.ndarray]) -> None:
    extractor = SuperPoint.from_pretrained("superpoint-edge", device="cuda")
    pair = extractor.extract_batch(images)
    for matcher, least in (("mnn", 0.995), ("lightglue", 0.98)):
        on_cpu = match_features(pair[0], pair[1], matcher=matcher, device="cpu").matches
        on_gpu = match_features(pair[0], pair[1], matcher=matcher, device="cuda").matches
        common = {tuple(m) for m in on_cpu.tolist()} & {tuple(m) for m in on_gpu.tolist()}
        assert len(common) >= least * max(len(on_cpu), len(on_gpu)) > 100


def test_homographies_are_found_among_outliers(rng: np.random.Generator) -> None:
    H = np.array([[0.9, 0.1, 30.0], [-0.08, 1.1, -12.0], [1e-4, -5e-5, 1.0]])
    points = rng.uniform(0, 640, (1000, 2))
    there = warp_points(points, H) + rng.normal(0, 0.4, points.shape)
    there[:500] = rng.uniform(0, 640, (500, 2))
    found = [estimate_homography(points, there, device=device) for device in ("cpu", "cuda")]
    corners = np.array([[0, 0], [640, 0], [640, 480], [0, 480.0]])
    for result in found:
        assert result.H is not None
        assert np.abs(warp_points(corners, result.H) - warp_points(corners, H)).max() < 0.5
    assert (found[0].inliers != found[1].inliers).sum() <= 2
    unrelated = estimate_homography(points, rng.uniform(0, 640, points.shape), device="cuda")
    assert unrelated.status == Status.NO_MODEL


@pytest.mark.parametrize("matcher", ["mnn", "lightglue"])
def test_pipeline(images: list[np.ndarray], matcher: str) -> None:
    results = [
        MatchPipeline(
            SuperPoint.from_pretrained("superpoint-edge", device=device), PipelineConfig(matcher=matcher)
        ).match(*images)
        for device in ("cpu", "cuda")
    ]
    assert all(result.geometry.status == Status.OK for result in results)
    corners = np.array([[0, 0], [639, 0], [639, 426], [0, 426.0]])
    cpu, gpu = (warp_points(corners, result.geometry.H) for result in results)
    assert np.abs(cpu - gpu).max() < 1.5


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from frontend.cli.match import main as match

    picture = tmp_path / "out.png"
    assert match([*(str(SAMPLES / f"rocket_{n}.jpg") for n in (0, 1)), "--device", "cuda", "-o", str(picture)]) == 0
    assert "inliers" in capsys.readouterr().out
    assert cv2.imread(str(picture)) is not None


def some_photos(make_scene: Callable[..., np.ndarray]) -> list[LabelledPhoto]:
    photos = []
    for seed in range(4):
        image = cv2.cvtColor(make_scene(240, 320, seed), cv2.COLOR_BGR2GRAY)
        points = np.random.default_rng(seed).uniform(10, 230, (200, 2))
        photos.append(LabelledPhoto(image, points, np.full(200, 0.5, np.float32)))
    return photos


def test_views_made_on_the_gpu_are_those_made_on_the_cpu(make_scene: Callable[..., np.ndarray]) -> None:
    config = PairConfig(size=(128, 96), on_device=True)
    data = WarpedPairs(0, config=config, photos=some_photos(make_scene))
    batch = torch.utils.data.default_collate([data[n] for n in range(16)])
    cpu = finish_views(batch, config.size)["image"]
    gpu = finish_views({key: value.cuda() for key, value in batch.items()}, config.size)["image"].cpu()
    difference = (cpu.int() - gpu.int()).abs().float()
    assert difference.mean() < 0.1
    assert difference.quantile(0.999) <= 8  # a quantised coefficient may fall to the other side


def run(*arguments: object) -> None:
    assert main([str(argument) for argument in arguments]) == 0


def test_training_from_labels_to_matcher(tmp_path: Path, make_scene: Callable[..., np.ndarray]) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for seed in range(3):
        cv2.imwrite(str(photos / f"{seed}.png"), make_scene(240, 320, seed))
    common = ("--device", "cuda", "--workers", 1, "--warmup-steps", 1)
    run("train", "magicpoint", "--out", tmp_path / "m", "--steps", 4, "--batch-size", 4, *common)
    labels = ("--homographies", 4, "--side", 320, "--device", "cuda")
    run("label", photos, "--model", "superpoint-slim", "--out", tmp_path / "labels", *labels)
    pairs = ("--images", photos, "--labels", tmp_path / "labels", "--steps", 4, "--batch-size", 2, "--ema", 0.9)
    run("train", "superpoint", "--model", "slim", "--out", tmp_path / "s", *pairs, *common)
    run("train", "superpoint", "--model", "vgg", "--encoder", "dbb", "--out", tmp_path / "d", *pairs, *common)
    features = ("--model", "superpoint-slim", "--device", "cuda")
    run("make-views", tmp_path / "views", "--images", photos, "--views", 3, *features)
    small = ("--keypoints", 64, "--strongest", 128, "--dim", 32, "--layers", 2, "--steps", 4, "--batch-size", 2)
    run("train", "lightglue", "--views", tmp_path / "views", "--out", tmp_path / "g", *small, *common)
    for name in ("m/magicpoint", "s/superpoint", "d/superpoint", "g/lightglue"):
        assert (tmp_path / f"{name}.safetensors").is_file()

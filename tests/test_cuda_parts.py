"""What of the GPU's path can be tested without a GPU: kernels in Triton's interpreter, and the fused network."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import weakref
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from frontend import cuda_backend
from frontend.backends import _finds_the_same
from frontend.cuda_backend import SEEN, CudaBackend, FusedConv, fused
from frontend.errors import ShapeError
from frontend.extraction import ExtractorConfig
from frontend.extractor import SuperPoint
from frontend.image import read_image, to_gray_bytes
from frontend.model import ModelConfig, SuperPointNet
from frontend.torch_backend import TorchBackend
from frontend.training.datasets import SyntheticShapes
from frontend.training.tasks import MagicPointTask
from frontend.training.trainer import TrainConfig, Trainer
from frontend.weights import load_network

ROOT = Path(__file__).parents[1]


def test_kernels_compute_what_pytorch_computes() -> None:
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    script = Path(__file__).with_name("interpreted_kernels.py")
    done = subprocess.run([sys.executable, str(script)], env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "the same\n"), done.stderr[-2000:]


class HostBackend(CudaBackend):
    """The backend with everything of it but pinned memory and graphs, on a CPU."""

    def _here(self) -> Any:
        return nullcontext()

    def host(self, found: Any) -> Any:
        return TorchBackend.host(self, found)

    def synchronize(self) -> None:
        pass


@pytest.fixture
def on_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """cuDNN's fused operator, pinned memory and graphs replaced by what they stand for."""

    def convolution(x: Tensor, weight: Tensor, bias: Tensor, *settings: Any) -> Tensor:
        return functional.conv2d(x.float(), weight.float(), bias.float(), *settings).relu().to(x.dtype)

    monkeypatch.setattr(torch, "cudnn_convolution_relu", convolution)
    monkeypatch.setattr(cuda_backend._Pinned, "take", lambda _, shape, dtype: torch.empty(tuple(shape), dtype=dtype))
    monkeypatch.setattr(cuda_backend._Pinned, "reading", lambda _: None)
    monkeypatch.setattr(cuda_backend._Graphs, "run", lambda _, name, function, *inputs: function(*inputs))
    monkeypatch.setattr(cuda_backend._Halve, "forward", lambda _, x: functional.max_pool2d(x, 2))


@pytest.mark.usefixtures("on_host")
@pytest.mark.parametrize(
    ("model", "convolutions", "poolings"),
    [("superpoint-edge", 22, 0), ("superpoint-slim", 19, 0), ("superpoint-vgg", 14, 1)],
)
def test_the_fused_network_finds_the_same(model: str, convolutions: int, poolings: int) -> None:
    image = read_image(ROOT / "frontend" / "samples" / "rocket_0.jpg")[:240, :321]  # padded at the right
    _, network = load_network(model)
    backend = HostBackend(network, "cpu", "float32")
    parts = [type(module) for module in backend._run.modules()]
    assert parts.count(FusedConv) == convolutions
    assert parts.count(cuda_backend._Halve) == poolings
    assert not any(isinstance(module, FusedConv) for module in network.modules())
    assert _finds_the_same(backend, network)
    expected = SuperPoint(network, runtime="torch", device="cpu").extract(image)
    found = SuperPoint.of(backend).extract_batch([image, image])[1]
    np.testing.assert_allclose(found.keypoints, expected.keypoints, atol=0.01)
    np.testing.assert_allclose(found.descriptors, expected.descriptors, atol=1e-3)
    assert found.image_size == (321, 240)


@pytest.mark.usefixtures("on_host")
def test_a_network_whose_answers_differ_is_not_taken_for_the_same() -> None:
    _, network = load_network("superpoint-slim")
    backend = HostBackend(network, "cpu", "float32")
    with torch.no_grad():
        next(module for module in backend._run.modules() if isinstance(module, FusedConv)).weight.mul_(0.2)
    assert not _finds_the_same(backend, network)


@pytest.mark.usefixtures("on_host")
def test_bytes_and_floats_of_one_image_are_the_same_to_the_backend() -> None:
    image = read_image(ROOT / "frontend" / "samples" / "rocket_0.jpg")[:96, :128]
    _, network = load_network("superpoint-slim")
    extractor = SuperPoint.of(HostBackend(network, "cpu", "float32"), config=ExtractorConfig(max_keypoints=100))
    gray = extractor.prepare(image).gray
    assert gray.dtype == np.uint8
    as_float = gray * np.float32(1 / 255)
    alone = extractor.preprocess([image]).images
    mixed = extractor.preprocess([image, as_float]).images
    assert torch.equal(mixed[0], alone[0])
    assert torch.equal(mixed[1], alone[0])
    resized = extractor.configured(ExtractorConfig(resize=64)).prepare(image).gray
    assert resized.dtype == np.float32
    deep = extractor.prepare(image.astype(np.uint16) * 256).gray
    assert deep.dtype == np.float32


def test_what_cannot_be_fused_stays() -> None:
    from frontend.encoders import ConvBlock
    from frontend.encoders.slim import SeparableBlock

    network = nn.Sequential(
        ConvBlock(4, 4, norm="bn"),  # not folded
        ConvBlock(4, 4, norm="none", relu=False),
        SeparableBlock(4, norm="none"),
        nn.MaxPool2d(3, 2, 1),
    ).eval()
    parts = [type(module).__name__ for module in fused(network, torch.float32).modules()]  # type: ignore[arg-type]
    depthwise = [m for m in network.modules() if isinstance(m, ConvBlock) and m.conv.groups > 1]
    assert depthwise
    assert parts.count("FusedConv") == sum(
        isinstance(m, ConvBlock) and m.conv.groups == 1 and isinstance(m.relu, nn.ReLU) for m in network[2].modules()
    )
    assert parts.count("MaxPool2d") == 1


class Graphs(cuda_backend._Graphs):
    """Graphs that are no graphs: a capture keeps the function, a replay calls it on the held inputs."""

    def __init__(self) -> None:
        super().__init__(torch.device("cpu"))
        self.captured: list[tuple[int, ...]] = []
        self.fails: Exception | None = None

    def _capture(self, function: Any, inputs: Any) -> Any:
        if self.fails is not None:
            raise self.fails
        self.captured.append(tuple(inputs[0].shape))
        held = [x.clone() for x in inputs]
        return cuda_backend._Graph(held, function(*held), function)

    def _replay(self, graph: Any, inputs: Any) -> Any:
        for target, source in zip(graph.inputs, inputs, strict=True):
            target.copy_(source)
        graph.outputs.copy_(graph.graph(*graph.inputs))
        return graph.outputs.clone()

    def _forget(self) -> None:
        self._graphs.clear()
        self._seen.clear()


def double(x: Tensor) -> Tensor:
    return 2 * x


def test_a_shape_is_captured_when_it_comes_again_and_results_stay() -> None:
    graphs = Graphs()
    results = [graphs.run("double", double, torch.full((3,), float(n))) for n in range(SEEN + 3)]
    assert [float(r[0]) for r in results] == [2.0 * n for n in range(SEEN + 3)]
    assert graphs.captured == [(3,)]
    graphs.run("double", double, torch.ones(4))
    graphs.run("double", double, torch.ones(3, dtype=torch.float64))
    assert graphs.captured == [(3,)]  # another shape, another type


def test_what_cannot_be_captured_is_tried_once(capsys: pytest.CaptureFixture[str]) -> None:
    graphs = Graphs()
    graphs.fails = RuntimeError("operation not permitted when stream is capturing\nmore")
    for n in range(2 * SEEN + 4):
        for size in (3, 4):
            assert float(graphs.run("double", double, torch.full((size,), float(n)))[0]) == 2.0 * n
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "operation not permitted" in said
    graphs.fails = None
    for _ in range(SEEN + 1):  # another function may well be captured
        graphs.run("other", double, torch.ones(3))
    assert graphs.captured == [(3,)]


def test_graphs_give_way_where_memory_runs_out() -> None:
    graphs = Graphs()
    for _ in range(SEEN + 1):
        graphs.run("double", double, torch.ones(3))
    calls = []

    def hungry(x: Tensor) -> Tensor:
        calls.append(len(graphs._graphs))
        if graphs._graphs:
            raise torch.cuda.OutOfMemoryError("no more")
        return 3 * x

    assert float(graphs.run("hungry", hungry, torch.ones(5))[0]) == 3.0
    assert calls == [1, 0]

    tried = []

    def starving(x: Tensor) -> Tensor:
        tried.append(0)
        raise torch.cuda.OutOfMemoryError("no more")

    with pytest.raises(torch.cuda.OutOfMemoryError):
        graphs.run("starving", starving, torch.ones(5))
    assert len(tried) == 2


def test_nothing_of_a_graph_is_held_when_memory_is_made_free() -> None:
    """Whether a replay or a capture ran out of it."""

    class Held(Graphs):
        alive: list[bool]

        def _replay(self, graph: Any, inputs: Any) -> Any:
            self.graph = weakref.ref(graph)
            raise torch.cuda.OutOfMemoryError("no more")

        def _forget(self) -> None:
            super()._forget()
            self.alive = [self.graph() is not None]

    replaying = Held()
    for _ in range(SEEN + 1):
        assert float(replaying.run("double", double, torch.ones(3))[0]) == 2.0
    assert replaying.alive == [False]

    class Full(Held):
        def _capture(self, function: Any, inputs: Any) -> Any:
            graph = cuda_backend._Graph([], None, function)
            self.graph = weakref.ref(graph)
            raise torch.cuda.OutOfMemoryError("no more")

    capturing = Full()
    for _ in range(SEEN + 1):
        assert float(capturing.run("double", double, torch.ones(3))[0]) == 2.0
    assert capturing.alive == [False]


def test_a_shape_whose_capture_does_not_fit_runs_without() -> None:
    graphs = Graphs()
    graphs.fails = torch.cuda.OutOfMemoryError("no more")
    captures = 0
    capture = graphs._capture

    def counting(function: Any, inputs: Any) -> Any:
        nonlocal captures
        captures += 1
        return capture(function, inputs)

    graphs._capture = counting  # type: ignore[method-assign]
    for n in range(8 * SEEN):
        assert float(graphs.run("double", double, torch.full((3,), float(n)))[0]) == 2.0 * n
    assert captures == 1


def test_a_convolution_stays_fused_where_memory_was_what_lacked(monkeypatch: pytest.MonkeyPatch) -> None:
    from frontend.encoders import ConvBlock

    conv = cuda_backend.FusedConv(ConvBlock(2, 2, norm="none"), torch.float32)

    def fails(*_: Any) -> Tensor:
        raise RuntimeError("GET was unable to find an engine to execute this computation")

    monkeypatch.setattr(torch, "cudnn_convolution_relu", fails)
    with monkeypatch.context() as full:
        full.setattr(nn.functional, "conv2d", fails)
        with pytest.raises(RuntimeError, match="unable to find an engine"):
            conv(torch.ones(1, 2, 4, 4))
        assert not conv.apart
    assert conv(torch.ones(1, 2, 4, 4)).shape == (1, 2, 4, 4)
    assert conv.apart


def test_more_shapes_than_there_is_room_for_are_not_captured_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_backend, "GRAPHS", 4)
    graphs = Graphs()
    for _ in range(60):
        for size in range(1, 7):
            assert graphs.run("double", double, torch.ones(size)).shape == (size,)
    assert len(graphs._graphs) <= 4
    assert len(graphs.captured) < 60  # of 360 calls


def test_no_frame_of_the_caller_is_kept() -> None:
    for shape in ((96, 128), (96, 128, 1), (96, 128, 3)):
        image = np.full(shape, 7, np.uint8)
        gray = to_gray_bytes(image)
        image[:] = 99
        assert gray.shape == (96, 128)
        assert set(np.unique(gray)) == {7}
    with pytest.raises(ShapeError, match="expected uint8"):
        to_gray_bytes(np.zeros((8, 8), np.float32))


def test_a_run_that_moves_to_another_device_gets_that_device_s_optimiser(tmp_path: Path) -> None:
    data = SyntheticShapes(0, (32, 32))
    config = TrainConfig(steps=2, batch_size=1, workers=0, device="cpu")
    network = SuperPointNet(ModelConfig(encoder="compact(width=0.25)"))
    Trainer(MagicPointTask(data), network, dataclasses.replace(config, stop=1), tmp_path, {}).run()
    state = torch.load(tmp_path / "checkpoint.pt", weights_only=False)
    state["optimiser"]["param_groups"][0]["fused"] = True  # as a GPU would have it
    state["described"]["stop"] = 0
    torch.save(state, tmp_path / "checkpoint.pt")
    trainer = Trainer(MagicPointTask(data), network, config, tmp_path, {})
    trainer.run()
    assert trainer.step == 2
    assert trainer.optimiser.param_groups[0]["fused"] is None

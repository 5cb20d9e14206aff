"""Exported files against the extractor in PyTorch: other sizes and batches than those they were traced with."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import openvino
import pytest
import torch
from processes import refused, start_on_a_full_disk
from runtime_networks import network, unfolded

from frontend.cli.main import main
from frontend.converters import original_state_dict
from frontend.errors import ConfigError
from frontend.export import FORMATS, ExportConfig, export_network
from frontend.extraction import Batch, ExtractorConfig, Geometry, candidates
from frontend.extractor import SuperPoint
from frontend.model import SuperPointNet, heatmap
from frontend.runtime.parity import scene
from frontend.torch_backend import TorchBackend
from frontend.weights import load_network, save_network

ROOT = Path(__file__).resolve().parent.parent.parent
SETTINGS = ExtractorConfig(max_keypoints=60, detection_threshold=0.001)


def images(height: int, width: int, seeds: tuple[int, ...]) -> np.ndarray:
    return np.stack([scene(height, width, seed) for seed in seeds])[:, None]


def reference(preset: str, given: np.ndarray, config: ExtractorConfig = SETTINGS):  # type: ignore[no-untyped-def]
    backend = TorchBackend(network(preset), "cpu")
    size = (given.shape[3], given.shape[2])
    batch = Batch(torch.from_numpy(given), [Geometry(size, size, (1.0, 1.0))] * len(given))
    return backend.host(backend.postprocess(backend.forward(batch), batch, config))


def same_features(expected, keypoints: np.ndarray, scores: np.ndarray, descriptors: np.ndarray) -> None:  # type: ignore[no-untyped-def]
    (points, values, valid), rows, _ = expected
    assert keypoints.shape == points.shape
    np.testing.assert_allclose(scores, values, atol=1e-4)
    np.testing.assert_array_equal(scores > 0, valid)
    for i in range(len(points)):
        count = int(valid[i].sum())
        assert count > 20
        # equal scores may come in another order
        apart = np.linalg.norm(points[i, :count, None] - keypoints[i, :count], axis=2)
        nearest = apart.argmin(axis=1)
        assert (apart.min(axis=1) < 0.05).mean() >= 0.99
        assert (rows[i, :count] * descriptors[i, nearest]).sum(axis=1).min() >= 0.999


def run_onnx(path: Path, *given: np.ndarray) -> dict[str, np.ndarray]:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()]
    outputs = [value.name for value in session.get_outputs()]
    return dict(zip(outputs, session.run(None, dict(zip(names, given, strict=True))), strict=True))


@pytest.mark.parametrize("preset", ["edge", "edge-twice", "vgg"])
def test_an_extractor_as_onnx_and_openvino(preset: str, tmp_path: Path) -> None:
    for ending, kind in ((".onnx", "onnx"), (".xml", "openvino")):
        config = ExportConfig(kind, postprocessing=True, extractor=SETTINGS)
        export_network(network(preset), tmp_path / f"whole{ending}", config)
    model = onnx.load(tmp_path / "whole.onnx")
    assert not {node.op_type for node in model.graph.node} & {"NonZero", "Loop", "If"}
    assert model.opset_import[0].version == 17
    assert {p.key: p.value for p in model.metadata_props}["max_keypoints"] == "60"
    compiled = openvino.Core().compile_model(str(tmp_path / "whole.xml"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for given in (images(64, 96, (1, 2)), images(120, 88, (3,))):
        expected = reference(preset, given)
        for got in (run_onnx(tmp_path / "whole.onnx", given), compiled([given])):
            same_features(expected, got["keypoints"], got["scores"], got["descriptors"])
            if preset != "vgg":
                np.testing.assert_allclose(np.sort(got["sigmas"]), np.sort(expected.sigmas), rtol=1e-2)


def test_more_keypoints_than_an_image_has_places(tmp_path: Path) -> None:
    settings = ExtractorConfig(max_keypoints=300, detection_threshold=0.0, border=0)
    export_network(network("vgg"), tmp_path / "a.onnx", ExportConfig(postprocessing=True, extractor=settings))
    given = images(24, 32, (1,))
    got = run_onnx(tmp_path / "a.onnx", given)
    assert got["keypoints"].shape == (1, 300, 2)
    assert (got["scores"] > 0).sum() == reference("vgg", given, settings).keypoints.valid.sum() < 100


def test_a_pair_with_its_matches(tmp_path: Path) -> None:
    export_network(network("edge"), tmp_path / "pair.onnx", ExportConfig(matching=True, extractor=SETTINGS))
    first = images(72, 104, (1, 2))
    second = np.roll(first, (8, 16), (2, 3))
    got = run_onnx(tmp_path / "pair.onnx", first, second)
    for i, given in enumerate((first, second)):
        names = (f"keypoints{i}", f"scores{i}", f"descriptors{i}")
        same_features(reference("edge", given), *(got[name] for name in names))
    for b in range(2):
        a, c = got["descriptors0"][b], got["descriptors1"][b]
        similarity = np.where((got["scores0"][b] > 0)[:, None] & (got["scores1"][b] > 0), a @ c.T, -2)
        expected = [
            j if similarity[:, j := int(row.argmax())].argmax() == i and row.max() > -2 else -1
            for i, row in enumerate(similarity)
        ]
        np.testing.assert_array_equal(got["matches"][b], expected)
        assert (np.array(expected) >= 0).sum() > 10
        cosines = [similarity[i, j] if j >= 0 else 0 for i, j in enumerate(expected)]
        np.testing.assert_allclose(got["match_scores"][b], cosines, atol=1e-5)


@pytest.mark.parametrize("preset", ["vgg", "edge-twice"])
def test_a_torch_program(preset: str, tmp_path: Path) -> None:
    config = ExportConfig("torch-export", postprocessing=True, extractor=SETTINGS)
    export_network(network(preset), tmp_path / "whole.pt2", config)
    program = torch.export.load(tmp_path / "whole.pt2").module()
    given = images(72, 64, (1, 2, 3))
    with torch.no_grad():
        got = [value.numpy() for value in program(torch.from_numpy(given))]
    same_features(reference(preset, given), *got[:3])


@pytest.mark.parametrize("preset", ["slim", "edge-twice", "vgg"])
@pytest.mark.parametrize("border", [0, 4])
def test_padding_has_no_keypoints_where_the_graph_knows_the_size(preset: str, border: int, tmp_path: Path) -> None:
    settings = replace(SETTINGS, border=border)
    config = ExportConfig(postprocessing=True, extractor=settings, true_size=True)
    export_network(network(preset), tmp_path / "whole.onnx", config)
    model = onnx.load(tmp_path / "whole.onnx")
    assert not {node.op_type for node in model.graph.node} & {"NonZero", "Loop", "If"}
    extractor = SuperPoint(network(preset), device="cpu", config=settings)
    for height, width in ((61, 91), (64, 96), (57, 90)):
        image = scene(height, width, 5)
        expected = extractor.extract(image)
        padded = np.pad(image, ((0, -height % 8), (0, -width % 8)), "edge")[None, None]
        # the second of the batch is all image
        both, sizes = np.concatenate([padded, padded]), np.array([[width, height], padded.shape[:1:-1]])
        got = run_onnx(tmp_path / "whole.onnx", both, sizes)
        (points, scores, descriptors) = (got[name][0] for name in ("keypoints", "scores", "descriptors"))
        count = int((scores > 0).sum())
        assert count == len(expected) > 20
        assert (points >= 0).all()
        assert (points <= (width - 1, height - 1)).all()
        np.testing.assert_allclose(scores[:count], expected.scores, atol=1e-4)
        apart = np.linalg.norm(points[:count, None] - expected.keypoints, axis=2)
        assert apart.min(axis=1).max() < 0.05
        assert (descriptors[:count] * expected.descriptors[apart.argmin(axis=1)]).sum(axis=1).min() > 0.999
        whole = extractor.extract(padded[0, 0])
        assert int((got["scores"][1] > 0).sum()) == len(whole)
        np.testing.assert_allclose(got["scores"][1][: len(whole)], whole.scores, atol=1e-4)


def test_a_pair_of_any_sizes_that_the_graph_knows(tmp_path: Path) -> None:
    config = ExportConfig(matching=True, extractor=SETTINGS, true_size=True)
    export_network(network("slim"), tmp_path / "pair.onnx", config)
    extractor = SuperPoint(network("slim"), device="cpu", config=SETTINGS)
    given = [scene(61, 90, 1), scene(77, 59, 2)]
    padded = [np.pad(g, ((0, -g.shape[0] % 8), (0, -g.shape[1] % 8)), "edge")[None, None] for g in given]
    got = run_onnx(tmp_path / "pair.onnx", *padded, *(np.array([g.shape[::-1]]) for g in given))
    for i, image in enumerate(given):
        expected = extractor.extract(image)
        scores = got[f"scores{i}"][0]
        assert int((scores > 0).sum()) == len(expected) > 20
        np.testing.assert_allclose(scores[: len(expected)], expected.scores, atol=1e-4)
    assert (got["matches"] >= 0).sum() > 3
    # the other formats take it, too
    program = export_network(network("slim"), tmp_path / "pair.pt2", replace(config, format="torch-export"))[0]
    inputs = [torch.from_numpy(np.ascontiguousarray(a)) for a in (*padded, *(np.array([g.shape[::-1]]) for g in given))]
    with torch.no_grad():
        found = torch.export.load(program).module()(*inputs)
    np.testing.assert_allclose(found[1].numpy(), got["scores0"], atol=1e-4)
    export_network(network("slim"), tmp_path / "pair.xml", replace(config, format="openvino"))
    compiled = openvino.Core().compile_model(str(tmp_path / "pair.xml"), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    np.testing.assert_allclose(compiled([a.numpy() for a in inputs])["scores1"], got["scores1"], atol=1e-4)


def declared(path: Path) -> dict[str, list[int | str]]:
    """Shapes of a graph's inputs and outputs as the file states them."""
    graph = onnx.load(path).graph
    return {
        value.name: [side.dim_param or side.dim_value for side in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }


def test_graphs_declare_their_shapes(tmp_path: Path) -> None:
    config = ExportConfig(matching=True, extractor=SETTINGS, true_size=True)
    features = {"keypoints": [60, 2], "scores": [60], "descriptors": [60, 96], "sigmas": [60]}
    sided = {f"{name}{i}": shape for i in (0, 1) for name, shape in features.items()}
    export_network(network("slim"), tmp_path / "pair.onnx", config)
    assert declared(tmp_path / "pair.onnx") == {
        **{f"image{i}": ["batch", 1, f"height{i}", f"width{i}"] for i in (0, 1)},
        **{f"size{i}": ["batch", 2] for i in (0, 1)},
        **{name: ["batch", *shape] for name, shape in {**sided, "matches": [60], "match_scores": [60]}.items()},
    }
    export_network(network("slim"), tmp_path / "one.onnx", replace(config, matching=False, postprocessing=True))
    assert declared(tmp_path / "one.onnx") == {
        "image": ["batch", 1, "height", "width"],
        "size": ["batch", 2],
        **{name: ["batch", *shape] for name, shape in features.items()},
    }
    export_network(network("slim"), tmp_path / "dense.onnx", ExportConfig())
    assert declared(tmp_path / "dense.onnx") == {
        "image": ["batch", 1, "height", "width"],
        "heat": ["batch", "height", "width"],
        "descriptors": ["batch", "rows", "columns", 96],
    }
    assert declared(tmp_path / "dense-refiner.onnx") == {
        "patches": ["count", 1, 13, 13],
        "scores": ["count"],
        "position": ["count", 4],
        "local": ["count", 96],
    }
    export_network(network("vgg"), tmp_path / "fixed.onnx", replace(config, size=(64, 96), batch=3, true_size=False))
    assert declared(tmp_path / "fixed.onnx") == {
        **{f"image{i}": [3, 1, 64, 96] for i in (0, 1)},
        **{
            f"{n}{i}": [3, *s]
            for i in (0, 1)
            for n, s in {**features, "descriptors": [60, 256]}.items()
            if n != "sigmas"
        },
        **{"matches": [3, 60], "match_scores": [3, 60]},
    }


def test_the_document_names_what_the_graphs_have(tmp_path: Path) -> None:
    table: dict[str, dict[str, tuple[str, int]]] = {}
    graph = ""
    row = r"\|(.*?)\| `(\w+)` \| (\w+) \((.+?)\) \| .+ \|"
    for line in (ROOT / "docs" / "runtimes.md").read_text().splitlines():
        if cells := re.fullmatch(row, line):
            graph = cells[1].strip() or graph
            table.setdefault(graph, {})[cells[2]] = (cells[3], len(cells[4].split(", ")))
    assert list(table) == ["dense maps", "`NAME-refiner`", "`--with-postprocessing`", "`--with-matching`"]
    config = ExportConfig(matching=True, extractor=SETTINGS, true_size=True)
    export_network(network("slim"), tmp_path / "dense.onnx", ExportConfig())
    export_network(network("slim"), tmp_path / "one.onnx", replace(config, matching=False, postprocessing=True))
    export_network(network("slim"), tmp_path / "pair.onnx", config)
    for rows, name in zip(table.values(), ("dense", "dense-refiner", "one", "pair"), strict=True):
        model = onnx.load(tmp_path / f"{name}.onnx")
        stated = {}
        for value in (*model.graph.input, *model.graph.output):
            kind = onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name
            stated[value.name] = (kind, len(value.type.tensor_type.shape.dim))
        if name == "pair":
            # what both images have is told with the graph for one
            both = {f"{name}{i}": facts for i in (0, 1) for name, facts in table["`--with-postprocessing`"].items()}
            assert stated == {**both, **rows}
        else:
            assert stated == rows


def test_dense_maps_and_the_refiner_beside_them_of_one_size(tmp_path: Path) -> None:
    config = ExportConfig(size=(64, 96), batch=1)
    written = export_network(network("edge"), tmp_path / "net.onnx", config)
    assert [path.name for path in written] == ["net.onnx", "net-refiner.onnx"]
    shape = [d.dim_value for d in onnx.load(written[0]).graph.input[0].type.tensor_type.shape.dim]
    assert shape == [1, 1, 64, 96]
    given = images(64, 96, (4,))
    with torch.no_grad():
        maps = network("edge")(torch.from_numpy(given))
    got = run_onnx(written[0], given)
    np.testing.assert_allclose(got["heat"], heatmap(maps.logits).numpy(), atol=1e-4)
    refined = run_onnx(written[1], np.full((5, 1, 17, 17), 0.5, np.float32), np.full(5, 0.5, np.float32))
    assert refined["position"].shape == (5, 4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--size", "480"), "export size is '480'; expected HEIGHTxWIDTH"),
        (("--size", "60x64"), "export size is 60x64; expected multiples of 8"),
        (("--size", "64x64", "--dynamic"), "--dynamic with --size or --batch"),
        (("--format", "weights-float16", "--dynamic"), "--dynamic has no effect: --format weights-float16 has weights"),
        (("--format", "superpoint-v1", "--dynamic"), "--dynamic has no effect: --format superpoint-v1 has weights"),
        (("--format", "openvino"), "expected a name that ends in .xml"),
        (("--batch", "-1"), "--batch is -1; expected 1 or more, or 0 for any number"),
        (("--precision", "int8"), "--calibration is missing"),
        (("--precision", "int8", "--with-postprocessing"), "--with-postprocessing has no effect: --precision int8"),
        (("--calibration", "photos"), "--calibration without --precision int8"),
        (("--with-size",), "--with-size has no effect: without --with-postprocessing"),
        (("--nms-radius", "8"), "--nms-radius has no effect: without --with-postprocessing"),
        (("--format", "superpoint-v1", "--max-keypoints", "9"), "--max-keypoints has no effect: without --with-post"),
    ],
)
def test_the_command_refuses(arguments: tuple[str, ...], message: str, tmp_path: Path, capsys) -> None:
    save_network(tmp_path / "net.safetensors", unfolded("vgg"))
    base = ["export", "--model", str(tmp_path / "net.safetensors"), "--out", str(tmp_path / "a.onnx")]
    assert main([*base, *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "a.onnx").exists()


def test_the_command_writes(tmp_path: Path, capsys) -> None:
    save_network(tmp_path / "net.safetensors", unfolded("vgg"))
    out = tmp_path / "new" / "a.onnx"
    command = ["export", "--model", str(tmp_path / "net.safetensors"), "--out", str(out), "--with-postprocessing"]
    assert main([*command, "--max-keypoints", "9"]) == 0
    assert capsys.readouterr().out == f"wrote {out}\n"
    assert run_onnx(out, images(64, 64, (0,)))["keypoints"].shape == (1, 9, 2)
    assert main([*command, "--with-size"]) == 0
    assert run_onnx(out, images(64, 64, (0,)), np.array([[61, 59]]))["keypoints"].shape == (1, 1024, 2)


@pytest.mark.parametrize("kind", ["torch-export", "openvino", "superpoint-v1"])
def test_a_file_that_finds_no_room_is_told_with_its_name(kind: str, tmp_path: Path) -> None:
    save_network(tmp_path / "net.safetensors", unfolded("vgg"))
    target = tmp_path / "out" / f"net{FORMATS[kind]}"
    options = ["--model", str(tmp_path / "net.safetensors"), "--format", kind, "--out", str(target)]
    told = refused(start_on_a_full_disk(100_000, "export", *options))
    assert told.startswith(f"superpoint export: {target}: ")
    assert list(target.parent.iterdir()) == []


def test_the_recipe_for_tensorrt_says_how_many_keypoints_it_can_have() -> None:
    most = 3840
    for passes, said in ((1, most), (2, 3072)):
        assert candidates(said, passes) <= most < candidates(said + 1, passes)
        assert re.search(rf"\b{said}\b", (ROOT / "docs" / "tensorrt.md").read_text())


def test_the_recipe_for_tensorrt_names_what_the_graph_has(tmp_path: Path) -> None:
    text = (ROOT / "docs" / "tensorrt.md").read_text()
    export_network(network("edge"), tmp_path / "whole.onnx", ExportConfig(postprocessing=True))
    export_network(network("edge"), tmp_path / "pair.onnx", ExportConfig(matching=True))
    inputs = {}
    for name in ("whole", "pair"):
        graph = onnx.load(tmp_path / f"{name}.onnx").graph
        inputs[name] = [value.name for value in graph.input]
        for value in graph.output:
            assert f"`{value.name}`" in text
    used = re.findall(r"--(?:min|opt|max)Shapes=(\S+)", text)
    assert len(used) == 6
    for shapes, names in zip(used, [inputs["whole"]] * 3 + [inputs["pair"]] * 3, strict=True):
        assert [part.partition(":")[0] for part in shapes.split(",")] == names


def test_settings_out_of_range_are_refused() -> None:
    with pytest.raises(ConfigError, match="export format is 'tflite'; expected one of: onnx, openvino, torch-export"):
        ExportConfig("tflite")
    with pytest.raises(ConfigError, match="takes the images' size without post-processing; expected both or neither"):
        ExportConfig(true_size=True)


@pytest.mark.parametrize("preset", ["vgg", "vgg-refined"])
def test_the_paper_s_network_in_the_layout_that_others_load(tmp_path: Path, preset: str) -> None:
    """Loaded again, as other implementations' files are, it computes the same; without the refiner."""
    save_network(tmp_path / "net.safetensors", unfolded(preset))
    target = tmp_path / "net.pth"
    options = ["--model", str(tmp_path / "net.safetensors"), "--format", "superpoint-v1", "--out", str(target)]
    assert main(["export", *options]) == 0
    state = torch.load(target, weights_only=True)
    assert state["conv1a.weight"].shape == (64, 1, 3, 3)
    assert state["convDb.bias"].shape == (256,)
    assert len(state) == 24
    _, again = load_network(target)
    assert again.refiner is None
    given = torch.from_numpy(images(48, 64, (3,)))
    with torch.inference_mode():
        expected, got = network(preset)(given), again.eval()(given)
    for a, b in zip(expected, got, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4 * float(a.abs().max()), rtol=0)


def test_what_has_no_such_layout_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_network(tmp_path / "net.safetensors", unfolded("slim"))
    options = ["export", "--model", str(tmp_path / "net.safetensors"), "--format", "superpoint-v1"]
    assert main([*options, "--out", str(tmp_path / "net.pth")]) == 2
    assert "a network of encoder 'slim' has no superpoint_v1 layout" in capsys.readouterr().err
    assert main([*options, "--out", str(tmp_path / "net.pth"), "--size", "64x64"]) == 2
    assert "weights alone" in capsys.readouterr().err
    assert main([*options, "--out", str(tmp_path / "net.onnx")]) == 2
    assert ".pth" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="folded"):
        original_state_dict(unfolded("vgg"))
    # the same names, but of sizes that nobody else can load
    narrow = SuperPointNet(replace(unfolded("vgg").config, encoder="vgg(channels=[32, 32, 64, 64])"))
    with pytest.raises(ConfigError, match=r"encoder 'vgg\(channels=\[32, 32, 64, 64\]\)' has no superpoint_v1 layout"):
        original_state_dict(narrow.eval().fold())
    assert not list(tmp_path.glob("*.pth"))

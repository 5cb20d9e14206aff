"""Ratios and checks of rows that are known, and ``superpoint bench`` from the command line with a tiny network."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import pytest
import torch

from frontend.cli.main import main
from frontend.evaluation.latency import Row
from frontend.evaluation.latency_models import ImageSource
from frontend.evaluation.latency_peers import SIFT, XFEAT
from frontend.evaluation.latency_process import Memory
from frontend.evaluation.latency_ratios import Ratio, has_parity, ratios, stage_ratios
from frontend.evaluation.latency_report import Check, checks, format_report, to_json
from frontend.evaluation.latency_suite import Exponent, Parity, Suite, SuiteConfig
from frontend.model import ModelConfig, SuperPointNet
from frontend.weights import save_network

USUAL = "usual SuperPoint (vgg)"


def row(method: str, ms: float, stage: str = "end_to_end", runtime: str = "torch", **facts: object) -> Row:
    values = {"precision": "float32", "size": "640x480", "batch": 1, "keypoints": 1024, **facts}
    return Row(method, runtime, stage=stage, ms_median=ms, ms_p95=1.1 * ms, ms_min=ms, samples=9, **values)  # type: ignore[arg-type]


@pytest.fixture
def suite(tmp_path: Path) -> Suite:
    suite = Suite(SuiteConfig(("superpoint-edge", "vgg")), ImageSource(), tmp_path)
    suite.rows = [
        row("superpoint-edge", 40.0),
        row("superpoint-edge", 9.0, "network"),
        row("superpoint-edge", 10.0, runtime="openvino"),
        row("superpoint-edge", 8.0, "network", "openvino"),
        row("superpoint-edge", 1.0, "refinement", "openvino"),
        row("superpoint-edge", 0.9, "keypoints", "openvino"),
        row("superpoint-edge", 5.0, runtime="openvino", precision="int8"),
        row("superpoint-edge", 30.0, runtime="openvino", size="1280x720"),
        row("vgg", 200.0),
        row("vgg", 100.0, "network"),
        row("vgg", 11.0, "keypoints"),
        row(USUAL, 620.0, ours=False),
        row(SIFT, 50.0, ours=False),
        row(XFEAT, 19.0, ours=False),
        row("ORB (OpenCV)", 4.0, ours=False),
        row("mutual nearest neighbours, 256-d", 4.0, "matching", size=""),
        row("homography, default", 8.0, "homography", size=""),
        row("homography, USAC_MAGSAC (OpenCV)", 1.0, "homography", size="", ours=False),
        row("superpoint-match", 900.0, "process", batch=2),
    ]
    label = "superpoint-edge (openvino float32)"
    suite.exponents = [Exponent(label, "end_to_end", "pixels", 1.05, (1.0, 2.0), (1.0, 2.0))]
    suite.parities = [
        Parity("a (openvino float32)", "float32", 0.995, 0.9995),
        Parity("a (openvino int8)", "int8", 0.992, 0.985),
        Parity("a (openvino bf16)", "bf16", 0.992, 0.985),
    ]
    suite.memories = [Memory("superpoint-edge", "torch", "float32", "640x480", 500, 90.0, 150.0, 160.0, 1.4, 0.1)]
    return suite


def test_ratios_are_of_the_fastest_runtime(suite: Suite) -> None:
    found = {(r.method, r.peer): r.times for r in ratios(suite.rows, 1024)}
    assert found == {
        ("superpoint-edge (openvino float32)", SIFT): 5.0,
        ("superpoint-edge (openvino float32)", XFEAT): 1.9,
        ("superpoint-edge (openvino float32)", "ORB (OpenCV)"): 0.4,
        # the fastest, which nothing shows to find the same keypoints
        ("superpoint-edge (openvino int8)", SIFT): 10.0,
        ("superpoint-edge (openvino int8)", XFEAT): 3.8,
        ("superpoint-edge (openvino int8)", "ORB (OpenCV)"): 0.8,
        ("vgg (torch float32)", USUAL): 3.1,
        ("vgg (torch float32)", SIFT): 0.25,
        ("vgg (torch float32)", XFEAT): 0.095,
        ("vgg (torch float32)", "ORB (OpenCV)"): 0.02,
    }
    said = [str(r) for r in ratios(suite.rows, 1024)]
    assert f"superpoint-edge (openvino float32): 5.0x faster than {SIFT}" in said
    assert "superpoint-edge (openvino float32): 2.5x slower than ORB (OpenCV)" in said
    assert f"superpoint-edge (openvino int8): 10.0x faster than {SIFT} (parity not shown)" in said


def test_ratios_of_matching_learned_matching_and_homographies(suite: Suite) -> None:
    suite.rows += [
        row("BFMatcher with cross check (OpenCV)", 10.0, "matching", size="", ours=False),
        row("match_mnn (kornia)", 2.0, "matching", size="", ours=False),
        row("LightGlue for superpoint-edge", 100.0, "learned matching", size=""),
        row("LightGlue (kornia, random weights)", 250.0, "learned matching", size="", ours=False),
    ]
    assert stage_ratios(suite.rows) == [
        Ratio("mutual nearest neighbours, 256-d", "BFMatcher with cross check (OpenCV)", 2.5, "matching"),
        Ratio("mutual nearest neighbours, 256-d", "match_mnn (kornia)", 0.5, "matching"),
        Ratio("LightGlue for superpoint-edge", "LightGlue (kornia, random weights)", 2.5, "learned matching"),
        Ratio("homography, default", "homography, USAC_MAGSAC (OpenCV)", 0.125, "homography"),
    ]
    machine = {"cpu": "X", "cores": 2, "flags": [], "versions": {}, "load_1min": None, "gpu": None}
    lines = [line.strip() for line in format_report(suite, machine, None).splitlines()]
    ours = "mutual nearest neighbours, 256-d"
    assert f"matching, {ours}: 2.5x faster than BFMatcher with cross check (OpenCV)" in lines
    assert f"matching, {ours}: 2.0x slower than match_mnn (kornia)" in lines
    assert "homography, default: 8.0x slower than homography, USAC_MAGSAC (OpenCV)" in lines
    stages = [entry["stage"] for entry in json.loads(to_json(suite, machine, None, []))["ratios"]]
    assert set(stages) == {"end_to_end", "matching", "learned matching", "homography"}


def against(suite: Suite, peer: str) -> Check:
    return next(check for check in checks(suite) if check.name == f"the fastest released network against {peer}")


@pytest.mark.parametrize(
    ("same", "cosine", "counts"),
    [(0.99, 0.98, True), (0.989, 0.9999, False), (0.999, 0.979, False), (math.nan, math.nan, False)],
)
def test_only_what_passed_parity_counts(suite: Suite, same: float, cosine: float, counts: bool) -> None:
    name = "superpoint-edge (openvino int8)"
    if not math.isnan(same):
        suite.parities.append(Parity(name, "int8", same, cosine))
    exact, fastest = "5.00x by superpoint-edge (openvino float32)", f"10.00x by {name}"
    assert against(suite, "OpenCV's SIFT").value == (fastest if counts else f"{exact}; parity not shown: {fastest}")
    assert against(suite, "XFeat").holds is counts


def test_half_precision_has_to_be_nearer_than_int8(suite: Suite) -> None:
    for precision, counts in (("bf16", False), ("int8", True)):
        suite.rows.append(row("near", 3.0, runtime="openvino", precision=precision))
        suite.parities.append(Parity(f"near (openvino {precision})", precision, 0.999, 0.9985))
        assert has_parity(suite.rows[-1], suite.parities) is counts


def test_float32_that_failed_parity_does_not_count(suite: Suite) -> None:
    suite.parities.append(Parity("superpoint-edge (openvino float32)", "float32", 0.9, 1.0))
    sift = against(suite, "OpenCV's SIFT")
    assert (
        sift.value
        == "1.25x by superpoint-edge (torch float32); parity not shown: 10.00x by superpoint-edge (openvino int8)"
    )
    assert sift.holds is False


def test_nothing_that_counts_is_not_measured(suite: Suite) -> None:
    suite.rows = [entry for entry in suite.rows if entry.precision == "int8" or not entry.ours]
    sift = against(suite, "OpenCV's SIFT")
    assert sift.value == "not measured; parity not shown: 10.00x by superpoint-edge (openvino int8)"
    assert sift.holds is None


def test_the_empty_cache_is_beside_the_warm_process(suite: Suite) -> None:
    suite.rows.append(row("superpoint-match", 7000.0, "process, empty cache", batch=2))
    machine = {"cpu": "X", "cores": 2, "flags": [], "versions": {}, "load_1min": None, "gpu": None}
    lines = [line.split() for line in format_report(suite, machine, None).splitlines()]
    warm = lines.index(["process", "superpoint-match", "900", "990"])
    assert lines[warm + 1] == ["process,", "empty", "cache", "superpoint-match", "7000", "7700"]
    found = {check.name: check for check in checks(suite)}
    assert found["superpoint-match on a VGA pair, whole process"].holds is True  # it is the warm one's


def test_checks_say_what_holds(suite: Suite) -> None:
    found = checks(suite)
    assert [check.holds for check in found] == [
        True,  # the usual SuperPoint: 3.1
        True,  # SIFT: 5
        False,  # XFeat: 1.9
        False,  # post-processing: 0.9 of 9 ms, but 11 of 100
        True,  # matching: 4 ms
        False,  # homography: 8 ms
        True,
        True,  # int8 may have 0.98
        False,  # bf16 may not
        True,  # process: 900 ms
        True,  # pixels: 1.05
        None,  # keypoints
        True,  # memory: 1.4 of 150 MiB
    ]
    assert "superpoint-edge (openvino float32) 10 %" in found[3].value
    assert "vgg (torch float32) 11 %" in found[3].value


def test_a_gpu_has_limits_of_its_own(suite: Suite) -> None:
    suite.config = dataclasses.replace(suite.config, device="cuda")
    found = {check.name: check for check in checks(suite)}
    assert found["the paper's network, one VGA image, end to end"].holds is None
    assert found["a VGA pair to its homography, warm"].holds is None
    suite.rows += [row("superpoint-vgg", 1.6), row("superpoint-vgg", 1.4, precision="fp16")]
    suite.rows += [row("superpoint-vgg, pair", 4.0, "pair", batch=2)]
    limit = "the paper's network, one VGA image, end to end"
    alone = next(check for check in checks(suite) if check.name == limit)
    assert alone.value == "superpoint-vgg (torch float32) 1.6 ms; parity not shown: superpoint-vgg (torch fp16) 1.4 ms"
    assert alone.holds is False
    suite.parities.append(Parity("superpoint-vgg (torch fp16)", "fp16", 0.999, 0.9999))
    found = {check.name: check for check in checks(suite)}
    alone = found["the paper's network, one VGA image, end to end"]
    assert (alone.value, alone.holds) == ("superpoint-vgg (torch fp16) 1.4 ms", True)
    assert found["a VGA pair to its homography, warm"].holds is False
    assert not any("SIFT" in name or "post-processing" in name for name in found)


def test_the_fastest_released_network_is_the_one_that_counts(suite: Suite) -> None:
    suite.rows.append(row("superpoint-slim", 8.0))
    found = {check.name: check for check in checks(suite)}
    xfeat = found["the fastest released network against XFeat"]
    assert xfeat.value == (
        "2.38x by superpoint-slim (torch float32); parity not shown: 3.80x by superpoint-edge (openvino int8)"
    )
    assert xfeat.holds is True


def test_report_and_document(suite: Suite) -> None:
    machine = {"cpu": "X", "cores": 2, "flags": ["avx2"], "versions": {"torch": "2"}, "load_1min": None, "gpu": None}
    suite.skipped = [("hloc", "hloc is not installed")]
    text = format_report(suite, machine, "abc")
    assert "FAILS  the fastest released network against XFeat: 1.90x by superpoint-edge (openvino float32); " in text
    assert "-      growth with keypoints, end to end: not measured" in text
    assert "hloc: hloc is not installed" in text
    lines = text.splitlines()
    start = next(i for i, line in enumerate(lines) if line.split()[:2] == ["method", "runtime"])
    assert lines[start + 1].split()[:2] == ["ORB", "(OpenCV)"]  # sorted by time
    assert lines[start + 3].split() == ["superpoint-edge", "openvino", "float32", "10.0", "11.0", "8.00", "0.90"]
    document = json.loads(to_json(suite, machine, "abc", ["superpoint", "bench"]))
    wanted = {"method", "runtime", "precision", "stage", "size", "batch", "keypoints", "ms_median", "ms_p95"}
    assert all(wanted <= set(entry) for entry in document["rows"])
    assert document["machine"] == machine
    assert document["commit"] == "abc"
    assert document["memory"][0]["flat"] is True
    assert document["checks"][2]["holds"] is False


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = ModelConfig(encoder="vgg(channels=[4, 4, 8, 8])", detector="paper", descriptor="paper", descriptor_dim=16)
    path = tmp_path / "tiny.safetensors"
    save_network(path, SuperPointNet(config).eval())
    return path


def test_command_line(tiny: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sections = "extraction,matching,keypoints,batches"
    options = ["--models", str(tiny), "--runtimes", "torch", "--precisions", "float32", "--peers", "orb"]
    options += ["--quick", "--sections", sections, "--seconds", "0.01", "--limit", "90", "--json", "-"]
    assert main(["bench", *options]) == 0
    captured = capsys.readouterr()
    document = json.loads(captured.out)
    rows = document["rows"]
    whole = [entry for entry in rows if entry["stage"] == "end_to_end"]
    assert {entry["method"] for entry in whole} == {"tiny", "usual SuperPoint (tiny)", "ORB (OpenCV)"}
    assert {entry["stage"] for entry in rows} >= {"network", "keypoints", "matching", "homography"}
    assert {entry["keypoints"] for entry in whole} == {256, 512, 1024, 2048, 4096}
    assert [entry["keypoints_found"] for entry in whole if entry["keypoints"] == 4096] == [4096]
    assert {entry["batch"] for entry in whole} == {1, 4}
    assert all(0 < entry["ms_min"] <= entry["ms_median"] <= entry["ms_p95"] for entry in rows)
    assert {entry["against"] for entry in document["exponents"]} == {"keypoints", "images"}
    assert "tiny (torch float32): " in captured.err
    assert "Must hold:" in captured.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sections", "speed"], "section is 'speed'; expected one of: extraction"),
        (["--peers", "surf"], "peer is 'surf'"),
        (["--runtimes", "tensorrt"], "tensorrt"),
        (["--keypoints", "0"], "keypoints is 0"),
        (["--memory-images", "3"], "memory_images is 3"),
        (["--json", "/no/such/folder/a.json"], "existing folder"),
        (["--models", "nothing"], "nothing"),
        (["--image", "/no/such.png"], "no such file"),
        (["--limit", "-1"], "time limit is -1.0 s"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *arguments]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("superpoint bench: ")
    assert message in lines[0]

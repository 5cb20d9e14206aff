"""The learned matcher through the commands: superpoint-match, both benchmarks, and matchers of other packages."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from processes import finished, start_python

from frontend.cli.main import main
from frontend.cli.map_export import MATCH_OPTIONS
from frontend.cli.match import build_parser
from frontend.cli.match import main as match
from frontend.evaluation.datasets import open_dataset
from frontend.evaluation.homography import run_benchmark
from frontend.evaluation.methods import MethodConfig, create_method
from frontend.extractor import SuperPoint
from frontend.image import read_image
from frontend.matching import match_features
from frontend.matching.lightglue_network import LightGlueConfig, LightGlueNet
from frontend.matching.lightglue_weights import save_matcher
from frontend.training.scene_views import project_points, scene_views
from frontend.weights import list_models, sha256_of

SAMPLES = Path(__file__).resolve().parent.parent / "frontend" / "samples"
PAIR = [str(SAMPLES / "rocket_0.jpg"), str(SAMPLES / "rocket_1.jpg")]


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of superpoint-slim, and a matcher for it that matches what looks alike."""
    folder = tmp_path_factory.mktemp("weights")
    slim = list_models()["superpoint-slim"]
    shutil.copy(slim.path, folder)
    net = LightGlueNet(LightGlueConfig(96, 96, 1, 1, "superpoint-slim")).eval()
    with torch.no_grad():
        for parameter in net.transformers.parameters():
            parameter.zero_()
        head: Any = net.log_assignment[-1]
        head.final_proj.weight.copy_(torch.eye(96) * 30)
        head.final_proj.bias.zero_()
        head.matchability.weight.zero_()
        head.matchability.bias.fill_(9.0)
    save_matcher(folder / "glue.safetensors", net)
    common = 'version = "1.2"\nlicence = "x"\ntrained_on = "x"\nrecipe = "x"\n'
    (folder / "manifest.toml").write_text(
        f'[models.superpoint-slim]\nfile = "{slim.path.name}"\nsha256 = "{slim.sha256}"\nencoder = "slim"\n'
        f"descriptor_dim = 96\n{common}"
        f'[matchers.glue]\nfile = "glue.safetensors"\nsha256 = "{sha256_of(folder / "glue.safetensors")}"\n'
        f'features = "superpoint-slim"\n{common}'
    )
    return folder


@pytest.fixture(autouse=True)
def _weights(released: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUPERPOINT_WEIGHTS_DIR", str(released))


def test_superpoint_match(released: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*more: str) -> dict[str, Any]:
        assert match([*PAIR, "--model", "superpoint-slim", "--json", str(tmp_path / "r.json"), *more]) == 0
        document: dict[str, Any] = json.loads((tmp_path / "r.json").read_text())
        return document

    plain, learned = run(), run("--matcher", "lightglue")
    assert "matcher    lightglue" in capsys.readouterr().out
    assert (plain["matcher"], learned["matcher"]) == ("mnn", "lightglue")
    assert all(0.1 < score <= 1 for score in learned["match_scores"])
    assert learned["status"] == "ok"
    # a softmax in both directions is nearly the same as each other's nearest, and not quite
    one, other = ({tuple(m) for m in document["matches"]} for document in (plain, learned))
    assert one != other
    assert len(one & other) > 0.8 * len(one) > 50
    sure = run("--matcher", "lightglue", "--min-similarity", "0.5")
    scored = zip(map(tuple, learned["matches"]), learned["match_scores"], strict=True)
    surest = [list(pair) for pair, score in scored if score > 0.5]
    assert sure["matches"] == surest
    assert 0 < len(surest) < len(learned["matches"])
    own = run("--matcher", str(released / "glue.safetensors"))
    assert own["matches"] == learned["matches"]
    np.testing.assert_allclose(learned["homography"], plain["homography"], atol=0.5, rtol=0.05)


def test_superpoint_match_takes_the_limits_of_nearest_neighbours(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*more: str) -> dict[tuple[int, int], float]:
        assert match([*PAIR, "--model", "superpoint-slim", "--json", str(tmp_path / "r.json"), *more]) == 0
        document = json.loads((tmp_path / "r.json").read_text())
        return dict(zip(map(tuple, document["matches"]), document["match_scores"], strict=True))

    plain = run()
    assert run("--ratio", "1", "--min-similarity", "-1") == plain
    least = 0.9
    alike = run("--min-similarity", str(least))
    assert alike == {pair: score for pair, score in plain.items() if score >= least}
    assert 20 < len(alike) < len(plain) - 20

    distinct = run("--ratio", "0.8")
    extractor = SuperPoint.from_pretrained("superpoint-slim", brief=True)
    first, second = (extractor.extract(read_image(Path(name))).descriptors.astype(np.float64) for name in PAIR)
    distances = np.linalg.norm(first[:, None] - second[None], axis=2)
    near, far = np.sort(distances, axis=1)[:, :2].T
    ratios = {pair: near[pair[0]] / far[pair[0]] for pair in plain}
    assert {pair for pair in plain if ratios[pair] < 0.795} <= set(distinct)
    assert set(distinct) <= {pair for pair in plain if ratios[pair] < 0.805}
    assert 20 < len(distinct) < len(plain) - 20
    both = run("--ratio", "0.8", "--min-similarity", str(least))
    assert both == {pair: score for pair, score in alike.items() if pair in distinct}
    # one image against many has them, too
    capsys.readouterr()
    assert match([PAIR[0], str(SAMPLES), "--model", "superpoint-slim", "--json", "-", "--ratio", "0.8"]) == 0
    (document,) = json.loads(capsys.readouterr().out)
    assert abs(len(document["matches"]) - len(distinct)) <= 3


def test_limits_of_nearest_neighbours_are_told_as_for_folders() -> None:
    flags = {action.dest: action for action in build_parser()._actions}
    for option in MATCH_OPTIONS:
        if option.name in ("ratio", "min_similarity"):
            assert flags[option.name].default == option.default
            assert flags[option.name].help == f"{option.help} [%(default)s]"


def test_superpoint_match_refuses_before_it_extracts(
    released: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*arguments: str) -> str:
        assert match([*PAIR, *arguments]) == 2
        return capsys.readouterr().err

    monkeypatch.setattr("frontend.extractor.SuperPoint.extract_batch", lambda *_: pytest.fail("it extracts"))
    shutil.copy(released / "superpoint-slim.safetensors", tmp_path / "mine.safetensors")
    mine = ("--model", str(tmp_path / "mine.safetensors"))
    told = refused(*mine, "--matcher", "lightglue")
    assert "no learned matcher for features of 'mine'; expected those of: superpoint-slim" in told
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"nothing")
    assert f"weights {bad} are corrupt" in refused(*mine, "--matcher", str(bad))
    assert "unknown matcher 'x" in refused(*mine, "--matcher", "x" * 300)
    learned = ("--model", "superpoint-slim", "--matcher", "lightglue")
    for limits, said in (
        (("--ratio", "0.8"), "ratio is 0.8"),
        (("--matcher", str(released / "glue.safetensors"), "--ratio", "0.8"), "ratio is 0.8"),
    ):
        told = refused(*learned, *limits)
        assert told == f"superpoint-match: {said}; a learned matcher has none, matcher 'mnn' does\n"


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    folder = tmp_path / "photographs"
    folder.mkdir()
    shutil.copy(PAIR[0], folder / "a.jpg")
    return folder


def test_eval_homography(photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = "superpoint-slim,superpoint-slim+lightglue"
    command = ["eval", "homography", str(photographs), "--methods", names, "--pairs", "viewpoint", "--resize", "320"]
    pictures = tmp_path / "pictures"
    out = tmp_path / "r.json"
    assert main([*command, "--json", str(out), "--worst", "1", "--pictures", str(pictures)]) == 0
    table = capsys.readouterr().out
    assert "mutual nearest neighbours (superpoint-slim+lightglue by lightglue)" in table
    document = json.loads(out.read_text())
    assert document["protocol"]["matchers"] == {"superpoint-slim+lightglue": "lightglue"}
    plain, learned = (document["metrics"][name]["viewpoint"] for name in names.split(","))
    assert 10 < learned["matches"] != plain["matches"] > 10
    assert learned["keypoints"] == plain["keypoints"]
    assert len(list(pictures.iterdir())) == 2


def test_labels_with_a_plus_are_no_matchers(photographs: Path) -> None:
    """As ``eval zoo`` has them: an encoder and its contexts."""
    sift = create_method("sift", MethodConfig(max_keypoints=100))
    dataset = open_dataset(photographs, pairs="viewpoint", resize=320)
    result = run_benchmark(dataset, {"compact+strip_pooling": sift}, max_keypoints=100)
    assert len(result.of("compact+strip_pooling", "viewpoint")) == 1


def test_eval_pose(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for n, name in enumerate(PAIR):
        image = cv2.imread(name)
        assert image is not None
        cv2.imwrite(str(tmp_path / f"{n}.png"), cv2.resize(image, (320, 240)))
    K = "300 0 160 0 300 120 0 0 1"
    T = "1 0 0 0.1 0 1 0 0 0 0 1 0 0 0 0 1"
    (tmp_path / "pairs_with_gt.txt").write_text(f"0.png 1.png 0 0 {K} {K} {T}\n")
    names = "superpoint-slim,superpoint-slim+lightglue"
    arguments = ["--methods", names, "--seeds", "1", "--estimators", "opencv", "--json", str(tmp_path / "r.json")]
    assert main(["eval", "pose", str(tmp_path), *arguments]) == 0
    assert "(superpoint-slim+lightglue by lightglue)" in capsys.readouterr().out
    document = json.loads((tmp_path / "r.json").read_text())
    assert document["protocol"]["matchers"] == {"superpoint-slim+lightglue": "lightglue"}
    plain, learned = (document["pairs"][name][0]["matches"] for name in names.split(","))
    assert 10 < learned != plain > 10


def test_matchers_of_other_packages(tmp_path: Path) -> None:
    (tmp_path / "theirs.py").write_text(
        "from frontend.matching import MATCHERS, match_features\n"
        "def match(features0, features1, *, ratio=None, min_similarity=None, device='cpu'):\n"
        "    return match_features(features0, features1, min_similarity=0.99)\n"
    )
    info = tmp_path / "theirs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    points = info / "entry_points.txt"
    code = (
        "import numpy as np\n"
        "from frontend.errors import RegistryError\n"
        "from frontend.matching import match_features\n"
        "from frontend.pipeline import PipelineConfig\n"
        "from frontend.types import Features\n"
        "d = np.eye(4, dtype=np.float32)\n"
        "f = Features(np.zeros((4, 2), np.float32), np.ones(4, np.float32), d, (8, 8))\n"
        "PipelineConfig()\n"
        "print(len(match_features(f, f)), end=' ')\n"
        "try:\n"
        "    print(len(match_features(f, f, matcher='theirs')))\n"
        "except RegistryError as error:\n"
        "    print(error)\n"
    )
    for module, expected in (
        ("theirs", "4 4"),
        ("nowhere", "4 matcher 'theirs' of nowhere:match fails: No module named 'nowhere'"),
    ):
        points.write_text(f"[superpoint.matchers]\ntheirs = {module}:match\n")
        assert finished(start_python("-c", code, PYTHONPATH=str(tmp_path))).strip() == expected


def test_the_released_matcher_is_right_more_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """On views of made scenes that it was not trained on, by cameras that moved, with the truth known."""
    monkeypatch.delenv("SUPERPOINT_WEIGHTS_DIR")
    extractor = SuperPoint.from_pretrained("superpoint-edge", device="cpu", precision="float32")
    right: dict[str, list[bool]] = {"mnn": [], "lightglue": []}
    for number in range(4):
        first, second = scene_views(99, number, 3)[1:]
        pair = extractor.extract(first.image), extractor.extract(second.image)
        where, seen = project_points(pair[0].keypoints, first, second)
        for matcher, results in right.items():
            found = match_features(*pair, matcher=matcher).matches
            errors = np.linalg.norm(where[found[:, 0]] - pair[1].keypoints[found[:, 1]], axis=1)
            results += ((errors < 3) & seen[found[:, 0]]).tolist()
    assert sum(right["lightglue"]) > 0.9 * sum(right["mnn"]) > 100
    assert np.mean(right["lightglue"]) > np.mean(right["mnn"]) + 0.15

"""The rules of the layout: what may be imported by what, and how long a file may be."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted(path for package in ("frontend", "service") for path in (ROOT / package).rglob("*.py"))
MAX_LINES = 420

OFFLINE = ("frontend.training", "frontend.evaluation")
# What lower layers may not import, at run time or in a function: the arrows of CONTRIBUTING.md.
FORBIDDEN = {
    "frontend.types": ("frontend.",),
    "frontend.errors": ("frontend.",),
    "frontend.registry": ("frontend.image", "frontend.model", "frontend.encoders", "frontend.extractor"),
    "frontend.image": ("frontend.keypoints", "frontend.model", "frontend.extractor", "frontend.pipeline"),
    "frontend.keypoints": ("frontend.model", "frontend.extractor", "frontend.matching", "frontend.pipeline"),
    "frontend.homography": ("frontend.model", "frontend.extractor", "frontend.matching", "frontend.pipeline"),
    "frontend.encoders": ("frontend.model", "frontend.extractor", "frontend.matching", "frontend.pipeline"),
    "frontend.model": ("frontend.extractor", "frontend.matching", "frontend.pipeline", "frontend.cli"),
    "frontend.matching": ("frontend.extractor", "frontend.pipeline", "frontend.cli"),
    "frontend.extraction": ("frontend.model", "frontend.keypoints", "frontend.runtime", "frontend.extractor"),
    "frontend.postprocess": ("frontend.model", "frontend.keypoints", "frontend.runtime", "frontend.extractor"),
    "frontend.runtime": ("frontend.extractor", "frontend.matching", "frontend.pipeline", "frontend.cli"),
    "frontend.extractor": ("frontend.pipeline", "frontend.cli", "frontend.viz"),
    "frontend.pipeline": ("frontend.cli", "frontend.viz"),
}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> set[str]:
    """Names of the modules that a file imports, wherever in it, but for type checking alone."""
    found: set[str] = set()
    nodes: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while nodes:
        node = nodes.pop()
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            nodes += node.orelse
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module or ""} | {f"{node.module}.{alias.name}" for alias in node.names}
        nodes += ast.iter_child_nodes(node)
    return found


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(package.rstrip(".") + ".")


def loaded_by(code: str) -> set[str]:
    """Modules in memory after some code has run in a fresh interpreter."""
    script = f"import json, sys\n{code}\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_files_stay_short(path: Path) -> None:
    lines = path.read_text(encoding="utf-8").count("\n")
    assert lines <= MAX_LINES, f"{path.name} has {lines} lines"


@pytest.mark.parametrize("path", SOURCES, ids=module_name)
def test_arrows_point_one_way(path: Path) -> None:
    name, imports = module_name(path), imports_of(path)
    if name == "frontend.types":  # they refuse what is no such type
        imports = {used for used in imports if not within(used, "frontend.errors")}
    for layer, forbidden in FORBIDDEN.items():
        if within(name, layer):
            wrong = {used for used in imports for other in forbidden if within(used, other) and not within(used, layer)}
            assert not wrong, f"{name} imports {sorted(wrong)}"
    commands = ("frontend.cli", *OFFLINE)
    if not any(within(name, allowed) for allowed in commands):
        wrong = {used for used in imports for other in OFFLINE if within(used, other)}
        assert not wrong, f"{name} imports {sorted(wrong)}"
    # the command line is above both packages; it imports the service when it is to serve
    if not within(name, "service") and name != "frontend.cli.serve":
        assert not {used for used in imports if within(used, "service")}


def test_the_rules_name_modules_that_exist() -> None:
    names = {module_name(path) for path in SOURCES}
    assert set(FORBIDDEN) <= names | {"frontend"}


@pytest.mark.parametrize("command", ["frontend.cli.match", "frontend.cli.main"])
def test_help_loads_nothing_heavy(command: str) -> None:
    code = (
        f"import contextlib, io\nfrom {command} import main\n"
        "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n    main(['--help'])"
    )
    loaded = loaded_by(code)
    assert command in loaded
    assert not loaded & {"torch", "cv2", "numpy"}


def test_importing_the_package_loads_no_torch() -> None:
    assert "torch" not in loaded_by("import frontend")


def test_the_path_of_a_cpu_loads_no_torch() -> None:
    """What one call needs with an exported graph at hand; runtimes are loaded when they are asked for."""
    loaded = loaded_by(
        "import frontend.cpu_backend, frontend.pipeline, frontend.runtime, frontend.tracking, frontend.viz"
    )
    assert not loaded & {"torch", "onnx", "onnxruntime", "openvino", "ncnn"}


@pytest.mark.parametrize("code", ["import frontend.pipeline, frontend.viz", "import service.app"])
def test_inference_loads_no_training(code: str) -> None:
    loaded = loaded_by(code)
    assert "frontend.pipeline" in loaded
    assert not {name for name in loaded for other in OFFLINE if within(name, other)}
    assert not {name for name in loaded if name.split(".")[0] in ("matplotlib", "kornia", "skimage", "tensorboard")}

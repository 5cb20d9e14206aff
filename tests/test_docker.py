"""What of the image can be checked without a container engine; docker/check.sh checks the rest."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from pip._vendor.packaging.requirements import Requirement

from service.settings import Settings, unknown_variables

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parent.parent
DOCKER = ROOT / "docker"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"docker_{name}", DOCKER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def instructions() -> list[tuple[str, str]]:
    """(instruction, arguments) of the Dockerfile, in its order."""
    lines = [line for line in (DOCKER / "Dockerfile").read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    return [(found[0], " ".join(found[1:])) for line in joined.splitlines() if (found := line.split())]


def stages() -> list[list[tuple[str, str]]]:
    """The instructions of each stage, from its FROM."""
    found: list[list[tuple[str, str]]] = []
    for name, rest in instructions():
        if name == "FROM":
            found.append([])
        if found:
            found[-1].append((name, rest))
    return found


def given(stage: list[tuple[str, str]], name: str) -> list[str]:
    return [rest for instruction, rest in stage if instruction == name]


def environment(stage: list[tuple[str, str]]) -> dict[str, str]:
    return dict(pair.partition("=")[::2] for line in given(stage, "ENV") for pair in shlex.split(line))


def ignored(path: str) -> bool:
    """Whether .dockerignore keeps a file out: the last pattern that meets it, or a folder above it, decides."""
    left_out = False
    parts = path.split("/")
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        pattern = line.removeprefix("!")
        for length in range(1, len(parts) + 1):
            head, tail = "/".join(parts[:length]), parts[length - 1]
            anywhere = pattern.startswith("**/") and fnmatch(tail, pattern.removeprefix("**/"))
            if anywhere or (pattern.count("/") == length - 1 and fnmatch(head, pattern)):
                left_out = not line.startswith("!")
                break
    return left_out


def compose() -> dict[str, Any]:
    loaded = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    assert isinstance(loaded, dict)
    return loaded


# --- Dockerfile


def test_base_image_is_an_argument_with_a_default() -> None:
    (name, default), (_, base) = instructions()[:2]
    assert name == "ARG"
    assert re.fullmatch(r"BASE_IMAGE=python:3\.\d+-slim-\w+", default)
    assert base == "${BASE_IMAGE} AS base"
    # every further stage starts from that one: interpreter and libraries are the same in all
    assert [stage[0][1].split()[0] for stage in stages()] == ["${BASE_IMAGE}", "base", "base"]


def test_final_stage_installs_nothing_and_is_not_root() -> None:
    final = stages()[-1]
    assert not given(final, "RUN")
    assert not given(final, "ADD")
    user, group = given(final, "USER")[-1].split(":")
    created = " ".join(given(stages()[0], "RUN"))
    assert int(user) > 0
    assert int(group) > 0
    assert f"--uid {user} --gid {group}" in created
    assert not any("--chown" in line for line in given(final, "COPY"))


def test_final_stage_serves() -> None:
    final = stages()[-1]
    variables = environment(final)
    port = variables["SUPERPOINT_PORT"]
    assert given(final, "EXPOSE") == [port]
    assert given(final, "STOPSIGNAL") == ["SIGTERM"]
    assert tuple(json.loads(given(final, "CMD")[0])) == script("check").COMMAND
    settings = Settings(
        **{
            name: variables[f"SUPERPOINT_{name.upper()}"]
            for name in Settings.model_fields
            if f"SUPERPOINT_{name.upper()}" in variables
        }
    )
    assert (settings.host, settings.port) == ("0.0.0.0", int(port))
    # whoever runs the image decides who may ask
    assert not settings.api_keys
    assert not settings.no_auth
    assert variables["HOME"] == "/tmp"


def test_healthcheck_is_in_the_image() -> None:
    final = stages()[-1]
    (check,) = given(final, "HEALTHCHECK")
    command = json.loads(check.partition("CMD ")[2])
    assert command[0] == "python"
    assert f"COPY --from=build {command[1]} {command[1]}" in [" ".join(line) for line in final]
    assert ("COPY", "docker/healthcheck.py /opt/superpoint/") in stages()[1]


def test_variables_of_a_service_of_this_name_are_no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Kubernetes sets for a Service called superpoint, and Docker for a link."""
    address = "tcp://10.96.0.12:8000"
    for name, value in {
        "PORT": address,
        "SERVICE_HOST": "10.96.0.12",
        "SERVICE_PORT": "8000",
        "SERVICE_PORT_HTTP": "8000",
        "PORT_8000_TCP": address,
        "PORT_8000_TCP_PROTO": "tcp",
        "PORT_8000_TCP_PORT": "8000",
        "PORT_8000_TCP_ADDR": "10.96.0.12",
        "NAME": "/web/superpoint",
        "ENV_LANG": "C",
    }.items():
        monkeypatch.setenv(f"SUPERPOINT_{name}", value)
    healthcheck = script("healthcheck")
    assert Settings().port == healthcheck.port() == Settings.model_fields["port"].default
    assert unknown_variables() == []
    monkeypatch.setenv("SUPERPOINT_PORT", "9000")
    monkeypatch.setenv("SUPERPOINT_PORTS", "9000")
    assert Settings().port == healthcheck.port() == 9000
    assert unknown_variables() == ["SUPERPOINT_PORTS"]


def test_labels_state_the_licence() -> None:
    labels = dict(pair.partition("=")[::2] for line in given(stages()[-1], "LABEL") for pair in shlex.split(line))
    assert labels["org.opencontainers.image.licenses"] == PROJECT["license"]
    assert labels["org.opencontainers.image.title"] == PROJECT["name"]


def test_what_is_copied_is_there_and_not_ignored() -> None:
    sources = [
        source
        for stage in stages()
        for line in given(stage, "COPY")
        if not line.startswith("--from=")
        for source in line.split()[:-1]
    ]
    assert {"frontend", "service", "weights"} <= set(sources)
    for source in sources:
        assert (ROOT / source).exists(), source
        assert not ignored(source), source


# --- .dockerignore


def test_packages_and_weights_are_sent_to_the_builder() -> None:
    files = [
        path.relative_to(ROOT).as_posix()
        for folder in ("frontend", "service", "weights")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    ]
    assert any(name.endswith(".safetensors") for name in files)
    assert [name for name in files if ignored(name)] == []
    # data that a package may come to have
    assert not ignored("service/static/index.html")


@pytest.mark.parametrize(
    "path",
    [
        ".git/config",
        ".venv/bin/python",
        ".env",
        "runs/checkpoint.pt",
        "tests/test_docker.py",
        "frontend/__pycache__/image.cpython-311.pyc",
        "service/routes/__pycache__/match.cpython-311.pyc",
    ],
)
def test_nothing_else_is_sent(path: str) -> None:
    assert ignored(path)


# --- what is installed


def test_requirements_are_those_of_the_service_without_windows() -> None:
    found = script("requirements").requirements(PROJECT, PROJECT["optional-dependencies"])
    names = {Requirement(text).name for text in found}
    wanted = {Requirement(t).name for t in (*PROJECT["dependencies"], *PROJECT["optional-dependencies"]["service"])}
    assert names == wanted - {"torch", "opencv-python"} | {"opencv-python-headless"}
    headless = next(text for text in found if text.startswith("opencv"))
    assert Requirement(headless).specifier == Requirement(PROJECT["dependencies"][2]).specifier


def default_runtimes() -> list[str]:
    """Of the image, by its build argument."""
    (default,) = (rest.partition("=")[2] for _, rest in instructions() if rest.startswith("RUNTIMES="))
    return default.split(",")


def test_runtimes_are_the_extras_without_what_only_tools_need() -> None:
    extras = PROJECT["optional-dependencies"]
    made = script("requirements").requirements
    plain = {Requirement(text).name for text in made(PROJECT, extras)}
    added = {Requirement(text).name for text in made(PROJECT, extras, default_runtimes())} - plain
    assert added == {"onnx", "onnxruntime", "openvino"}
    # an extra may name another one
    ncnn = [Requirement(text).name for text in made(PROJECT, extras, ["ncnn"])]
    assert {*ncnn} - plain == {"ncnn", "onnx", "onnxruntime", "pnnx"}
    assert len(ncnn) == len({*ncnn})


@pytest.mark.parametrize(("runtimes", "code"), [("openvino,onnx", 0), ("", 0), ("openvino,tensorrt", 2)])
def test_unknown_runtimes_stop_the_build(runtimes: str, code: int, tmp_path: Path) -> None:
    command = [sys.executable, str(DOCKER / "requirements.py"), "--runtimes", runtimes]
    files = [str(ROOT / "pyproject.toml"), str(ROOT / "constraints.txt"), str(tmp_path)]
    done = subprocess.run([*command, *files], capture_output=True, text=True, timeout=60)
    assert done.returncode == code, done.stderr
    assert ("'tensorrt'" in done.stderr) == (code != 0)
    if code == 0:
        assert ("openvino" in (tmp_path / "requirements.txt").read_text()) == bool(runtimes)


def test_every_requirement_is_pinned() -> None:
    made = script("requirements")
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [Requirement(pin) for pin in made.constraints(lines, {}, "torch")]
    exact = {pin.name for pin in pins if str(pin.specifier).startswith("==")}
    texts = made.requirements(PROJECT, PROJECT["optional-dependencies"], default_runtimes())
    needed = {Requirement(text).name for text in texts}
    # tomli is for Python 3.10 alone, which constraints.txt leaves open
    assert {"torch", *needed} - exact <= {"tomli"}


def test_torch_of_a_base_image_is_kept_with_its_numpy() -> None:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = script("requirements").constraints(lines, {"torch": "2.4.0a0+jetson", "numpy": "1.26.4"}, "torch")
    assert "torch==2.4.0a0+jetson" in pins
    assert "numpy==1.26.4" in pins
    assert not any(pin.startswith(("opencv", "torch==2.13", "numpy==2")) for pin in pins)
    assert any(pin.startswith("fastapi==") for pin in pins)


def test_another_torch_is_not_held_back_by_the_pin() -> None:
    pins = script("requirements").constraints(["torch==2.13.0", "numpy==2.4.6  # tested"], {}, "torch==2.9.1")
    assert pins == ["numpy==2.4.6"]


def test_strip_keeps_what_is_loaded(tmp_path: Path) -> None:
    gone = (
        "torch/test/a.bin",
        "torch/include/a.h",
        "torch/bin/protoc",
        "torch/lib/libjitbackend_test.so",
        "openvino/libs/libopenvino_intel_gpu_plugin.so",
        "onnxruntime/capi/libonnxruntime.so.1.32.0",
        "numpy/linalg/tests/test_a.py",
        "numpy/linalg/__pycache__/a.pyc",
        "pip/__init__.py",
        "pip-23.0.dist-info/RECORD",
    )
    kept = (
        "torch/bin/torch_shm_manager",
        "torch/lib/libtorch_cpu.so",
        "torch/testing/__init__.py",
        "openvino/libs/libopenvino_intel_cpu_plugin.so",
        "openvino/libs/libopenvino_onnx_frontend.so.2641",
        "onnxruntime/capi/onnxruntime_pybind11_state.so",
        "torch/test_of_nothing.py",
        "setuptools/__init__.py",
        "tests/__init__.py",
        "numpy/testing/__init__.py",
    )
    for name in (*gone, *kept):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    script("strip").strip(tmp_path, {"setuptools"})
    left = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    assert left == set(kept)


# --- compose.yaml and prometheus.yml


@pytest.mark.parametrize("name", ["superpoint-cpu", "superpoint-gpu", "prometheus"])
def test_containers_are_locked(name: str) -> None:
    service = compose()["services"][name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["tmpfs"][0].startswith("/tmp:")


@pytest.mark.parametrize(("name", "profile"), [("superpoint-cpu", "cpu"), ("superpoint-gpu", "gpu")])
def test_service_of_a_profile(name: str, profile: str) -> None:
    service = compose()["services"][name]
    assert service["profiles"] == [profile]
    assert (DOCKER / service["build"]["context"] / service["build"]["dockerfile"]).resolve() == DOCKER / "Dockerfile"
    arguments = {rest.partition("=")[0] for instruction, rest in instructions() if instruction == "ARG"}
    assert set(service["build"].get("args", {})) <= arguments
    fields = {f"SUPERPOINT_{field.upper()}" for field in Settings.model_fields}
    assert set(service["environment"]) <= fields | {"SUPERPOINT_THREADS"}  # the library's
    reserved = "deploy" in service
    assert (service["environment"]["SUPERPOINT_DEVICE"], reserved) == (
        ("cuda", True) if profile == "gpu" else ("cpu", False)
    )
    # time to finish what was accepted
    assert int(service["stop_grace_period"].removesuffix("s")) > Settings().shutdown_s


def test_prometheus_scrapes_the_service() -> None:
    (job,) = yaml.safe_load((DOCKER / "prometheus.yml").read_text())["scrape_configs"]
    (targets,) = job["static_configs"]
    port = given(stages()[-1], "EXPOSE")[0]
    assert job["metrics_path"] == "/metrics"
    for name in ("superpoint-cpu", "superpoint-gpu"):
        service = compose()["services"][name]
        (alias,) = service["networks"]["default"]["aliases"]
        assert targets["targets"] == [f"{alias}:{port}"]
        assert service["ports"][0].endswith(f":{port}")


@pytest.mark.parametrize(("keys", "key"), [("one", "one"), ("one,two", "one"), ("", "")])
def test_prometheus_gets_the_first_key(keys: str, key: str, tmp_path: Path) -> None:
    (job,) = yaml.safe_load((DOCKER / "prometheus.yml").read_text())["scrape_configs"]
    (file,) = job["http_headers"]["X-API-Key"]["files"]
    shell, flag, command = compose()["services"]["prometheus"]["entrypoint"]
    assert file in command
    assert "exec /bin/prometheus" in command
    local = tmp_path / "key"
    command = command.replace("$$", "$").replace(file, str(local)).replace("exec /bin/prometheus", "exec true")
    subprocess.run(
        [shell, flag, command], env={"SUPERPOINT_API_KEYS": keys, "PATH": os.defpath}, check=True, timeout=20
    )
    assert local.read_text() == key
    assert local.stat().st_mode & 0o077 == 0


# --- check.sh


def run_check(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """check.sh where there is no container engine."""
    for tool in ("bash", "dirname", "env", "timeout"):
        found = shutil.which(tool)
        assert found is not None
        (folder / tool).symlink_to(found)
    return subprocess.run(
        ["bash", str(DOCKER / "check.sh"), *arguments],
        env={"PATH": str(folder), **variables},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_check_is_skipped_without_an_engine(tmp_path: Path) -> None:
    done = run_check(tmp_path)
    assert (done.returncode, done.stdout.strip()) == (0, "skipped: no container engine")


def test_check_fails_where_the_engine_asked_for_is_missing(tmp_path: Path) -> None:
    assert run_check(tmp_path, ENGINE="podman").returncode == 2


@pytest.mark.parametrize(("fails", "calls", "code"), [("nothing", 2, 0), ("build", 1, 1), ("--run", 2, 1)])
def test_check_with_another_builder(fails: str, calls: int, code: int, tmp_path: Path) -> None:
    builder = tmp_path / "builder"
    log = tmp_path / "log"
    builder.write_text(
        f'#!/usr/bin/env bash\necho "$*" >>{log}\nstep=build; [ "$1" = --run ] && step=$1\n[ "$step" != {fails} ]\n'
    )
    builder.chmod(0o755)
    done = run_check(tmp_path, "TORCH_INDEX=", IMAGE_BUILDER=str(builder), IMAGE="tried", MAX_MB="900")
    said = log.read_text().splitlines()
    assert (done.returncode, len(said)) == (code, calls), done.stderr
    assert said[0] == "docker/Dockerfile . tried TORCH_INDEX="
    if calls == 2:
        assert said[1].startswith("--run tried -v ")
        assert said[1].endswith("-- python /check/check.py /samples 900")

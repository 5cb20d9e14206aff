"""Runs a match as the service does, and writes the bytecode of every module that was loaded for it.

All modules of torch would be twice as much. A failing import fails the build: something was stripped that is needed.
"""

from __future__ import annotations

import importlib.util
import py_compile
import sys
from importlib.resources import files
from pathlib import Path
from types import ModuleType


def run() -> None:
    """Load what serving loads."""
    import uvicorn.lifespan.on
    import uvicorn.loops.auto
    import uvicorn.protocols.websockets.auto  # noqa: F401

    import frontend.cli.serve  # noqa: F401
    from frontend.cli.match import main as match
    from frontend.runtime import available_runtimes
    from service.app import create_app
    from service.server import run  # noqa: F401
    from service.settings import Settings

    create_app(Settings()).openapi()
    samples = Path(str(files("frontend") / "samples"))
    pair = [str(samples / f"rocket_{index}.jpg") for index in (0, 1)]
    # what is fastest here, and what is taken on a GPU and for other weights
    for runtime in (*available_runtimes(), "auto"):
        if match([*pair, "--runtime", runtime]) != 0:
            raise SystemExit(f"the sample pair does not match in {runtime}")


def compile_module(module: ModuleType) -> bool:
    """Write a module's bytecode, valid whatever time stamp its source gets in the image."""
    source = getattr(getattr(module, "__spec__", None), "origin", None)
    if source is None or not source.endswith(".py") or not Path(source).is_file():
        return False
    target = importlib.util.cache_from_source(source)
    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    return py_compile.compile(source, target, doraise=True, invalidation_mode=mode) is not None


def main() -> None:
    if sys.pycache_prefix is None:
        raise SystemExit("expected PYTHONPYCACHEPREFIX, the folder for the bytecode")
    Path(sys.pycache_prefix).mkdir(parents=True, exist_ok=True)
    try:
        run()
    except (ImportError, OSError) as error:
        import torch.version

        # Jetson: some libraries of the GPU are there only when the container runs
        if torch.version.cuda is None:
            raise
        print(f"only partly precompiled: {error}", file=sys.stderr)
    print(f"{sum(compile_module(module) for module in list(sys.modules.values()))} modules precompiled")


if __name__ == "__main__":
    main()

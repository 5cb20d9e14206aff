"""Exports the released models into the installed package, for the runtimes that the image has besides PyTorch."""

from __future__ import annotations

from frontend.runtime import available_runtimes
from frontend.runtime.select import export
from frontend.runtime.store import SHIPPED, load, save
from frontend.weights import list_models, load_network


def main() -> None:
    if available_runtimes() == ("torch",):
        print("no runtime but PyTorch: nothing to export")
        return
    for name, info in list_models().items():
        if not save(info.sha256, export(load_network(name)[1]), SHIPPED):
            raise SystemExit(f"{SHIPPED} cannot be written")
        graphs = load(info.sha256)
        assert graphs is not None, name
        print(f"{name}: {sum(map(len, graphs.files.values())) / 1e6:.1f} MB of graphs")


if __name__ == "__main__":
    main()

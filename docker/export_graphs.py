"""Exports the released models and matchers into the installed package, for runtimes of the image besides PyTorch."""

from __future__ import annotations

from frontend.matching.lightglue_graph import export_graph, load_graph
from frontend.runtime import available_runtimes
from frontend.runtime.select import export
from frontend.runtime.store import SHIPPED, load, save
from frontend.weights import list_matchers, list_models, load_network


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
    for name, matcher in list_matchers().items():
        export_graph(matcher.path, matcher.sha256, SHIPPED)
        graph = load_graph(matcher.sha256)
        if graph is None:
            raise SystemExit(f"{SHIPPED} cannot be written")
        print(f"{name}: {len(graph.model) / 1e6:.1f} MB of graph")


if __name__ == "__main__":
    main()

"""Registries by decorator, open to other packages through entry points."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from frontend.errors import RegistryError

T = TypeVar("T")


class Registry(Generic[T]):
    """Named objects of one kind, registered by decorator or lazily through an entry-point group.

    What another package announces and cannot be loaded is not among them: its own name is refused with the reason.

    Args:
        kind: what is registered, for error messages ("encoder").
        group: entry-point group in which other packages announce theirs; loaded when a name is first looked up.
    """

    def __init__(self, kind: str, group: str) -> None:
        self.kind = kind
        self.group = group
        self._items: dict[str, T] = {}
        self._homes: dict[str, str] = {}
        self._problems: dict[str, str] = {}
        self._loaded = self._loading = False
        self._lock = threading.RLock()

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator that registers its object under ``name``.

        Raises:
            RegistryError: the name is taken.
        """

        def add(item: T) -> T:
            if name in self._items:
                raise RegistryError(f"{self.kind} '{name}' is registered twice")
            self._items[name] = item
            return item

        return add

    def lazy(self, name: str, module: str) -> None:
        """Announce what a module of ours registers under ``name`` when it is imported, which ``get`` does."""
        self._homes[name] = module

    def check(self, name: str) -> None:
        """Refuse an unknown name, without importing what a known one stands for.

        Raises:
            RegistryError: the name is unknown; the message lists the known ones. It is that of another package which
                cannot be loaded; the message says why, as of ``in``.
        """
        if name not in self:
            raise RegistryError(f"unknown {self.kind} '{name}'; expected one of: {', '.join(self)}")

    def _load_entry_points(self) -> None:
        with self._lock:
            # what is being loaded may look around here
            if self._loaded or self._loading:
                return
            self._loading = True
            try:
                found, self._problems = self._announced()
                self._items.update(found)
                self._loaded = True
            finally:
                self._loading = False

    def _announced(self) -> tuple[dict[str, T], dict[str, str]]:
        """What other packages have under their entry points, loaded, and why others of them cannot be."""
        found: dict[str, T] = {}
        problems: dict[str, str] = {}
        for point in entry_points(group=self.group):
            told = f"{self.kind} '{point.name}' of {point.value}"
            if point.name in self._items or point.name in self._homes or point.name in found:
                problems[point.name] = f"{told} is registered already"
                continue
            try:
                found[point.name] = point.load()
            except Exception as error:  # another package's, of whatever kind
                reason = " ".join(str(error).split()) or type(error).__name__
                problems[point.name] = f"{told} fails: {reason}"
        return found, problems

    @property
    def problems(self) -> dict[str, str]:
        """Why what other packages announce is not here, by its name, which may also be that of another."""
        self._load_entry_points()
        return dict(self._problems)

    def get(self, name: str) -> T:
        """Look a name up.

        Raises:
            RegistryError: the name is unknown; the message lists the known ones.
        """
        self.check(name)
        if name not in self._items:
            import_module(self._homes[name])
        return self._items[name]

    def __iter__(self) -> Iterator[str]:
        self._load_entry_points()
        return iter(sorted({*self._items, *self._homes}))

    def __contains__(self, name: object) -> bool:
        # other packages are asked for what this one does not know: a broken one breaks its own names alone
        if name in self._items or name in self._homes:
            return True
        self._load_entry_points()
        if name not in self._items and name in self._problems:
            raise RegistryError(self._problems[str(name)])
        return name in self._items

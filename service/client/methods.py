"""One function that builds a call, two methods that make it: with and without ``await``."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, TypeVar, overload

from service.client.calls import Call

P = ParamSpec("P")
T = TypeVar("T")
R = TypeVar("R")
X = TypeVar("X")
X_co = TypeVar("X_co", covariant=True)
S = TypeVar("S", bound="HasContext[Any]")


class HasContext(Protocol[X_co]):
    """What methods are bound to."""

    @property
    def context(self) -> X_co:
        """The first argument of the functions that build calls."""


class Method(Generic[S, X, P, T, R]):
    """A method with the parameters and the docstring of a function that builds a call.

    Args:
        build: takes the context of what the method is bound to, and its arguments.
        run: takes what the method is bound to and the built call, still to be made: it may encode images, which an
            event loop should not wait for.
    """

    def __init__(
        self, build: Callable[Concatenate[X, P], Call[T]], run: Callable[[S, Callable[[], Call[T]]], R]
    ) -> None:
        self._build = build
        self._run = run
        self.__doc__ = build.__doc__
        signature = inspect.signature(build)
        self.__signature__ = signature.replace(parameters=list(signature.parameters.values())[1:])

    @overload
    def __get__(self, bound: None, owner: type[Any]) -> Method[S, X, P, T, R]: ...

    @overload
    def __get__(self, bound: S, owner: type[Any]) -> Callable[P, R]: ...

    def __get__(self, bound: S | None, owner: type[Any]) -> Method[S, X, P, T, R] | Callable[P, R]:
        if bound is None:
            return self
        subject: S = bound

        def method(*args: P.args, **kwargs: P.kwargs) -> R:
            return self._run(subject, functools.partial(self._build, subject.context, *args, **kwargs))

        method.__doc__ = self.__doc__
        method.__name__ = self._build.__name__
        method.__signature__ = self.__signature__  # type: ignore[attr-defined]
        return method

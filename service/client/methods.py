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
        def method(bound: S, *args: P.args, **kwargs: P.kwargs) -> R:
            return run(bound, functools.partial(build, bound.context, *args, **kwargs))

        # for help() and editors: the parameters of build, with the subject of the method instead of its context
        signature = inspect.signature(build)
        subject = inspect.Parameter("self", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        parameters = [subject, *list(signature.parameters.values())[1:]]
        method.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        method.__name__, method.__doc__ = build.__name__, build.__doc__
        self._method = method

    @overload
    def __get__(self, bound: None, owner: type[Any]) -> Callable[Concatenate[S, P], R]: ...

    @overload
    def __get__(self, bound: S, owner: type[Any]) -> Callable[P, R]: ...

    def __get__(self, bound: S | None, owner: type[Any]) -> Callable[Concatenate[S, P], R] | Callable[P, R]:
        bind: Any = self._method
        found: Callable[P, R] = bind if bound is None else bind.__get__(bound, owner)
        return found

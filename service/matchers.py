"""Matchers that requests may name, and the learned ones of the served models."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from functools import partial
from typing import Literal

from frontend.errors import FrontendError
from frontend.extractor import SuperPoint
from frontend.matching import load_matcher_of
from frontend.weights import list_matchers
from service.engine import Engine
from service.errors import BadRequestError, MatcherUnavailableError

MatcherName = Literal["mnn", "lightglue"]
PLAIN: MatcherName = "mnn"
LEARNED: MatcherName = "lightglue"

_LOG = logging.getLogger("superpoint")
_LIMIT_S = 600.0


class Matchers:
    """Which matchers there are for the features of each served model; filled once, when the service starts."""

    def __init__(self) -> None:
        # a model that is served as a file has another name in its features than in requests
        self._names: dict[str, str] = {}
        self._usable: dict[str, bool] = {}  # by the name in features; only where a learned matcher was released

    def load(self, engine: Engine, extractors: Mapping[str, SuperPoint]) -> None:
        """Load the learned matchers that were released for some models, in the device's thread.

        One that cannot be loaded is a line in the log: everything else is served without it.

        Args:
            engine: that has been started.
            extractors: of the served models, by the names that requests call them.

        Raises:
            UnavailableError: the engine is stopping.
        """
        self._names = {name: extractor.name for name, extractor in extractors.items()}
        try:
            released = {info.features for info in list_matchers().values()}
        except FrontendError as error:
            _LOG.error("no learned matcher can be used: %s", error)
            self._usable = dict.fromkeys(self._names.values(), False)
            return
        for extractor in {extractor.name: extractor for extractor in extractors.values()}.values():
            if extractor.name not in released:
                continue
            fault = engine.call(partial(_load, extractor), time.monotonic() + _LIMIT_S).result()
            self._usable[extractor.name] = fault is None
            if fault is not None:
                _LOG.error("the learned matcher of model '%s' cannot be used: %s", extractor.name, fault)

    def of(self, name: str) -> list[MatcherName]:
        """Matchers that requests of a served model may name."""
        return [PLAIN, LEARNED] if self._usable.get(self._names.get(name, "")) else [PLAIN]

    def require(self, matcher: str, model: str) -> None:
        """Refuse what cannot be matched in that way.

        Args:
            matcher: that a request names.
            model: of the features, as they name it.

        Raises:
            BadRequestError: no learned matcher was released for this model.
            MatcherUnavailableError: one was, and it could not be loaded.
        """
        if matcher != LEARNED or self._usable.get(model):
            return
        if model in self._usable:
            raise unavailable(model)
        known = ", ".join(name for name in self._names if LEARNED in self.of(name))
        others = f"or one of the models: {known}" if known else "no served model has another"
        raise BadRequestError(f"model '{model}' has no learned matcher; expected matcher '{PLAIN}', {others}")


def unavailable(model: str) -> MatcherUnavailableError:
    """That a matcher cannot be used; of paths and checksums the log alone tells."""
    return MatcherUnavailableError(f"the learned matcher of model '{model}' cannot be used; the log has the reason")


def _load(extractor: SuperPoint) -> str | None:
    """Load the matcher of a model, and see that it matches such features.

    Returns:
        Why it cannot be used; None where it can. Not raised: the engine would count a request that failed.
    """
    try:
        load_matcher_of(extractor.name, extractor.descriptor_dim, matcher=LEARNED, device=str(extractor.device))
    except Exception as error:  # whatever it is: nothing but this matcher depends on it
        return str(error).partition("\n")[0] or type(error).__name__
    return None

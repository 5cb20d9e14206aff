"""When a call is tried again."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass

from frontend.errors import ConfigError
from service.client.faults import Overloaded, ServiceFault, Unavailable

LEAST_ATTEMPT_S = 0.05
"""Time that an attempt must have left to be made: a shorter one would end in "no answer" where nobody is there."""


@dataclass(frozen=True)
class Retry:
    """How often, and how long after, a call is tried again.

    Attributes:
        attempts: in all; None for as many as the call's time allows.
        base_s: longest pause after the first attempt, seconds; it doubles with each.
        cap_s: longest pause.
    """

    attempts: int | None = 5
    base_s: float = 0.1
    cap_s: float = 5.0

    def __post_init__(self) -> None:
        if (self.attempts is not None and self.attempts < 1) or not 0 < self.base_s <= self.cap_s:
            raise ConfigError(
                f"attempts is {self.attempts}, base_s {self.base_s} and cap_s {self.cap_s}; "
                "expected at least 1, and 0 < base_s <= cap_s"
            )


class Attempts:
    """The attempts of one call, within its time.

    Tried again is what the service has refused without doing anything (429, 503), what never reached it (no
    connection), and, where the call is repeatable, what lost its connection halfway.

    Args:
        retry: see there.
        timeout_s: of the whole call, pauses included.
        repeatable: whether doing the call twice does the same as once.
    """

    def __init__(self, retry: Retry, timeout_s: float, *, repeatable: bool) -> None:
        self._retry = retry
        self._end = time.monotonic() + timeout_s
        self._repeatable = repeatable
        self._made = 0

    @property
    def remaining_s(self) -> float:
        """Seconds that are left, at least a millisecond: a limit of 0 has meanings of its own."""
        return max(1e-3, self._end - time.monotonic())

    def pause_s(self, fault: ServiceFault) -> float:
        """How long to wait before the next attempt.

        With Retry-After that long, and a little more, so that clients that were refused together do not come back
        together; else a random time up to a limit that doubles ("full jitter").

        Args:
            fault: of the attempt that was just made.

        Raises:
            ServiceFault: the given one, where there is no next attempt.
        """
        self._made += 1
        transient = isinstance(fault, (Overloaded, Unavailable))
        if not transient or (fault.maybe_processed and not self._repeatable):
            raise fault
        if self._retry.attempts is not None and self._made >= self._retry.attempts:
            raise fault
        if fault.retry_after is None:
            # the exponent is bounded: 2.0 ** 1024 overflows
            limit = min(self._retry.cap_s, self._retry.base_s * 2.0 ** min(self._made - 1, 60))
            pause = random.uniform(0.0, limit)
        else:
            pause = fault.retry_after + random.uniform(0.0, self._retry.base_s)
        self._require(pause, fault)
        return pause

    def after_pause(self, fault: ServiceFault) -> None:
        """See that there is still time: a pause may take longer than it was meant to.

        Args:
            fault: of the attempt before the pause.

        Raises:
            ServiceFault: the given one, where there is none.
        """
        self._require(0.0, fault)

    def _require(self, pause: float, fault: ServiceFault) -> None:
        if pause + LEAST_ATTEMPT_S >= self._end - time.monotonic():
            raise fault

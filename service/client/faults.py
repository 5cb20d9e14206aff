"""What a call of the client can end with: refusals of the service, and no answer at all."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from typing import Any


class ServiceFault(Exception):
    """A call has no result.

    Attributes:
        status: of the HTTP answer; None where there was no answer.
        code: for programs, in snake case; the service's own, or "no_connection", "connection_lost", "client_timeout",
            "bad_answer" of the client.
        detail: for people, one line.
        request_id: under which the service's log has it; empty where it is not known.
        retry_after: seconds after which the service asks to try again; None where it did not say.
        maybe_processed: whether the service may have done what was asked, although there is no result.
    """

    def __init__(
        self,
        status: int | None,
        code: str,
        detail: str,
        request_id: str = "",
        *,
        retry_after: float | None = None,
        maybe_processed: bool = False,
    ) -> None:
        super().__init__(status, code, detail, request_id)
        self.status = status
        self.code = code
        self.detail = detail
        self.request_id = request_id
        self.retry_after = retry_after
        self.maybe_processed = maybe_processed

    def __str__(self) -> str:
        of = f" (request {self.request_id})" if self.request_id else ""
        return f"{self.status or 'no answer'} {self.code}: {self.detail}{of}"


class BadRequest(ServiceFault):
    """400: a parameter or body is not what the service expects."""


class BadImage(ServiceFault):
    """422 bad_image: an image cannot be read or used."""


class TooLarge(ServiceFault):
    """413: a body, an image as it is or as resized, or what is to be kept of it, is over the service's limit."""


class Unauthorized(ServiceFault):
    """401 or 403: the API key is missing or wrong."""


class NotFound(ServiceFault):
    """404: what is named does not exist, or no longer."""


class FeaturesLost(NotFound):
    """404 features_not_found: stored features have expired, were deleted, or were lost by a restart."""


class SequenceLost(NotFound):
    """404 sequence_not_found: the sequence has expired, was deleted, or was lost by a restart; open another."""


class OutOfOrder(ServiceFault):
    """409 out_of_order: the stamp of a frame is not later than the one before."""


class Overloaded(ServiceFault):
    """429: the queue, the store or the table of sequences is full."""


class Unavailable(ServiceFault):
    """503, or no connection: the service is starting, stopping, broken or gone."""


class Deadline(ServiceFault):
    """504, or the client's own limit: no result in time."""


class BadAnswer(ServiceFault):
    """The answer is not what this client can read."""


_BY_CODE: dict[str, type[ServiceFault]] = {
    "bad_image": BadImage,
    "features_not_found": FeaturesLost,
    "out_of_order": OutOfOrder,
    "sequence_not_found": SequenceLost,
}
_BY_STATUS: dict[int, type[ServiceFault]] = {
    400: BadRequest,
    401: Unauthorized,
    403: Unauthorized,
    404: NotFound,
    413: TooLarge,
    429: Overloaded,
    503: Unavailable,
    504: Deadline,
}


def fault_of_problem(document: Mapping[str, Any], *, retry_after: float | None = None) -> ServiceFault:
    """The fault that an RFC 9457 problem document states.

    Args:
        document: with status, code, detail and request_id, as far as it has them.
        retry_after: of the answer that brought it.
    """
    found = document.get("status")
    status = found if isinstance(found, int) else 500
    code = str(document.get("code") or f"http_{status}")
    kind = _BY_CODE.get(code) or _BY_STATUS.get(status, ServiceFault)
    detail = str(document.get("detail") or document.get("title") or "no reason was given")
    # 504: the result was late, but the work may have been done; so after a failure within
    processed = status >= 500 and status != 503
    request_id = str(document.get("request_id") or "")
    return kind(status, code, detail, request_id, retry_after=retry_after, maybe_processed=processed)


def fault_of_answer(status: int, headers: Mapping[str, str], body: bytes) -> ServiceFault:
    """The fault of an HTTP answer that is no success, also where a proxy gave it and it is no problem document.

    Args:
        status: 300 or more.
        headers: with names that may be asked for in lower case.
        body: of any type.
    """
    try:
        found = json.loads(body)
    except ValueError:
        found = None
    document = {**found, "status": status} if isinstance(found, dict) else {"status": status}
    document.setdefault("request_id", headers.get("x-request-id", ""))
    return fault_of_problem(document, retry_after=seconds_of(headers.get("retry-after")))


def seconds_of(retry_after: str | None) -> float | None:
    """Seconds of a Retry-After header, which is a number or a date (RFC 9110, 10.2.3); None where it is neither.

    Returns:
        At least 0.
    """
    if retry_after is None:
        return None
    try:
        seconds = float(retry_after)
    except ValueError:
        try:
            then = parsedate_to_datetime(retry_after)
        except ValueError:
            return None
        if then.tzinfo is None:
            then = then.replace(tzinfo=timezone.utc)
        seconds = (then - datetime.now(timezone.utc)).total_seconds()
    return max(0.0, seconds) if math.isfinite(seconds) else None

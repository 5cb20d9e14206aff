"""Refusals of the service, as RFC 9457 problem details."""

from __future__ import annotations

import math
from http import HTTPStatus
from typing import Any

PROBLEM_TYPE = "application/problem+json"


class ServiceError(Exception):
    """A request is refused; the message is one line for the client.

    Attributes:
        status: of the HTTP response.
        code: for programs, in snake case.
        detail: for people.
        retry_after: seconds after which it may be tried again; None where that is of no use.
    """

    status = HTTPStatus.INTERNAL_SERVER_ERROR
    code = "internal_error"

    def __init__(self, detail: str, *, retry_after: float | None = None) -> None:
        super().__init__(detail)
        self.detail = detail
        self.retry_after = retry_after

    @property
    def headers(self) -> dict[str, str]:
        """Of the response."""
        return {} if self.retry_after is None else {"Retry-After": str(max(math.ceil(self.retry_after), 1))}


class BadRequestError(ServiceError):
    """The request cannot be understood."""

    status, code = HTTPStatus.BAD_REQUEST, "bad_request"


class BadImageError(ServiceError):
    """An image cannot be read or used."""

    status, code = HTTPStatus.UNPROCESSABLE_ENTITY, "bad_image"


class TooLargeError(ServiceError):
    """A body, an image as it is or as resized, or what is to be kept of it, is over its limit."""

    status, code = HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too_large"


class BodyTimeoutError(ServiceError):
    """The body did not arrive in time."""

    status, code = HTTPStatus.REQUEST_TIMEOUT, "body_timeout"


class UnauthorizedError(ServiceError):
    """The API key is missing or wrong."""

    status, code = HTTPStatus.UNAUTHORIZED, "unauthorized"


class NotFoundError(ServiceError):
    """What is named does not exist, or no longer."""

    status, code = HTTPStatus.NOT_FOUND, "not_found"


class FeaturesNotFoundError(NotFoundError):
    """Features are not stored, or no longer."""

    code = "features_not_found"


class SequenceNotFoundError(NotFoundError):
    """The sequence is not open, or no longer: it has expired, was deleted, or was lost by a restart."""

    code = "sequence_not_found"


class OutOfOrderError(ServiceError):
    """The stamp of a frame is not later than that of a frame before."""

    status, code = HTTPStatus.CONFLICT, "out_of_order"


class ForbiddenError(ServiceError):
    """A page of this origin may not ask."""

    status, code = HTTPStatus.FORBIDDEN, "forbidden_origin"


class UpgradeRequiredError(ServiceError):
    """A WebSocket is asked for as if it were a document."""

    status, code = HTTPStatus.UPGRADE_REQUIRED, "upgrade_required"


class OverloadedError(ServiceError):
    """The queue is full."""

    status, code = HTTPStatus.TOO_MANY_REQUESTS, "overloaded"


class StoreFullError(ServiceError):
    """The store of features has no room."""

    status, code = HTTPStatus.TOO_MANY_REQUESTS, "store_full"


class SequencesFullError(ServiceError):
    """There is no room for another sequence."""

    status, code = HTTPStatus.TOO_MANY_REQUESTS, "sequences_full"


class UnavailableError(ServiceError):
    """The device is not ready, or no longer; another instance, or a restarted one, may be."""

    status, code = HTTPStatus.SERVICE_UNAVAILABLE, "unavailable"

    def __init__(self, detail: str, *, retry_after: float | None = 1.0) -> None:
        super().__init__(detail, retry_after=retry_after)


class MatcherUnavailableError(UnavailableError):
    """The learned matcher of a model is damaged or missing on this instance; the rest of the service works."""

    code = "matcher_unavailable"

    def __init__(self, detail: str, *, retry_after: float | None = None) -> None:
        super().__init__(detail, retry_after=retry_after)


class DeadlineError(ServiceError):
    """The result was not ready in time."""

    status, code = HTTPStatus.GATEWAY_TIMEOUT, "deadline_exceeded"


def problem_document(error: ServiceError, instance: str, request_id: str) -> dict[str, Any]:
    """Problem details of RFC 9457.

    Args:
        error: the refusal.
        instance: path of the request.
        request_id: under which the log has it.
    """
    return {
        "type": "about:blank",
        "title": error.status.phrase,
        "status": int(error.status),
        "code": error.code,
        "detail": error.detail,
        "instance": instance,
        "request_id": request_id,
    }

"""Request bodies: limited in size, and images taken from multipart forms or raw bodies."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from typing import Any

from fastapi import Request
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from service.errors import BadRequestError
from service.masks import Encoded, Mask
from service.wire import JSON

_JSON = re.compile(r"application/(\S+\+)?json")  # what FastAPI parses
MASK = "mask"
"""How names of files that are masks start, where those of their images start with ``image``."""


class Budget:
    """Bytes that all requests and streams hold together.

    Args:
        limit: that they may hold.

    Attributes:
        used: that they hold.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0


async def read_images(
    request: Request, names: tuple[str, ...], limit: int, optional: tuple[str, ...] = ()
) -> list[Encoded]:
    """Encoded images of a request, masks among them.

    Args:
        request: multipart/form-data with one file for each name, or, where one image is expected, its bytes as body.
        names: of the fields; none where every image of the request is stored, and no body is expected.
        limit: bytes of the body, which :class:`service.gate.Gate` keeps; a form is held in memory up to it.
        optional: names of fields that a form may have besides.

    Returns:
        (name, bytes) for each, in the order of ``names`` and ``optional``.

    Raises:
        BadRequestError: a field is missing, given twice, text or not expected, or the body is not what is expected.
    """
    if not names:
        if await request.body():
            raise BadRequestError(
                "every image is given by its features' id, and there is a body; expected none, nor masks"
            )
        return []
    kind = content_type(request)
    if kind == "multipart/form-data":
        return await _from_form(request, names, optional, limit)
    if len(names) == 1 and (not kind or kind.startswith("image/") or kind == "application/octet-stream"):
        body = await request.body()
        if not body:
            raise BadRequestError("body is empty; expected an encoded image")
        return [(names[0], body)]
    expected = f"multipart/form-data with the file{'s' * (len(names) > 1)} {', '.join(names)}"
    if len(names) == 1:
        expected = f"image/* or application/octet-stream, whose body is the image, or {expected}"
    raise wrong_kind(kind, expected)


def content_type(request: Request) -> str:
    """Of a body, in lower case and without parameters; empty where none is given."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def wrong_kind(kind: str, expected: str) -> BadRequestError:
    """The refusal of a content type."""
    given = repr(kind[:64]) if kind else "missing"
    return BadRequestError(f"content type is {given}; expected {expected}")


async def json_alone(request: Request) -> None:
    """Refuse a body that is not said to be JSON, as a dependency: it would be refused for not being an object.

    Raises:
        BadRequestError: there is such a body.
    """
    kind = content_type(request)
    if not _JSON.fullmatch(kind) and await request.body():
        raise wrong_kind(kind, JSON)


def refuse_members(what: str, document: Mapping[Any, Any], known: Collection[str]) -> None:
    """Refuse a document with a member that it should not have: misspelt, as a rule.

    Args:
        what: the document is.
        document: that was given.
        known: members that it may have.

    Raises:
        BadRequestError: it has another.
    """
    for name in document:
        if name not in known:
            raise BadRequestError(f"{what} has a member {str(name)[:64]!r}; expected only: {', '.join(sorted(known))}")


def split_masks(found: list[Encoded]) -> tuple[list[Encoded], dict[str, list[Mask]]]:
    """Images of a request, and the masks of each by its name: `mask` is of `image`, `mask0` of `image0`.

    Args:
        found: see :func:`read_images`.

    Raises:
        BadRequestError: a mask's image is no file of the request.
    """
    images = [(name, data) for name, data in found if not name.startswith(MASK)]
    masks: dict[str, list[Mask]] = {name: [] for name, _ in images}
    for name, data in found:
        if name.startswith(MASK):
            of = name.replace(MASK, "image")
            if of not in masks:
                raise BadRequestError(f"{name} is given with stored features; expected it with a file '{of}'")
            masks[of].append((name, data))
    return images, masks


async def _from_form(request: Request, names: tuple[str, ...], optional: tuple[str, ...], limit: int) -> list[Encoded]:
    every = (*names, *optional)
    parser = MultiPartParser(request.headers, request.stream(), max_files=len(every) + 1, max_fields=16)
    # images stay in memory, where they are counted: a temporary folder may be small, and is nobody's business
    parser.spool_max_size = limit + 1
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise BadRequestError(f"form cannot be read: {error.message}") from None
    except UnicodeError as error:
        raise BadRequestError(f"form cannot be read: {error}") from None
    try:
        # text first: it says why a file is missing, or would be an option that counts for nothing
        for name, value in form.multi_items():
            if isinstance(value, UploadFile):
                continue
            if name in every:
                raise BadRequestError(f"field '{name}' is text; expected a file")
            expected = f"expected only the files {', '.join(every)}: options go in the query string"
            raise BadRequestError(f"form has a text field {name[:64]!r}; {expected}")
        images = []
        for name in every:
            found: list[Any] = form.getlist(name)
            if name in optional and not found:
                continue
            if len(found) != 1:
                raise BadRequestError(f"form has {len(found)} files '{name}'; expected one")
            images.append((name, await found[0].read()))
        for name, value in form.multi_items():
            if name not in every and isinstance(value, UploadFile):
                raise BadRequestError(f"form has a file {name[:64]!r}; expected only: {', '.join(every)}")
        return images
    finally:
        await form.close()

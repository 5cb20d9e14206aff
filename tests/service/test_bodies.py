"""Bodies with images that are not what the route takes: what their senders are told."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.requests import Request

from service.bodies import read_images
from service.errors import BadRequestError

URLENCODED = "application/x-www-form-urlencoded"


def part(name: str, content: bytes, filename: str | None = None) -> bytes:
    """A part of a form: a file where it has a file's name, and text otherwise."""
    file = "" if filename is None else f'; filename="{filename}"'
    return f'--b\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode() + content + b"\r\n"


def read(kind: str, body: bytes, names: tuple[str, ...] = ("image",), optional: tuple[str, ...] = ("mask",)) -> Any:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    scope = {"type": "http", "method": "POST", "path": "/", "headers": [(b"content-type", kind.encode())]}
    return asyncio.run(read_images(Request(scope, receive), names, 2_000_000, optional))


def form(*parts: bytes, **settings: Any) -> Any:
    return read("multipart/form-data; boundary=b", b"".join(parts) + b"--b--\r\n", **settings)


IMAGE, MASK = part("image", b"abc", "a.png"), part("mask", b"def", "m.png")


def test_files_of_a_form_are_read() -> None:
    assert form(MASK, IMAGE) == [("image", b"abc"), ("mask", b"def")]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (
            [IMAGE, part("max_keypoints", b"3")],
            "a text field 'max_keypoints'; expected only the files image, mask: options go in the query string",
        ),
        ([part("max_keypoints", b"3")], "form has a text field 'max_keypoints'; expected only the files image, mask"),
        ([part("image", b"hello")], "field 'image' is text; expected a file"),
        ([IMAGE, part("image", b"hello")], "field 'image' is text; expected a file"),
        ([IMAGE, part("mask", b"m.png")], "field 'mask' is text; expected a file"),
        ([IMAGE, IMAGE], "form has 2 files 'image'; expected one"),
        ([MASK], "form has 0 files 'image'; expected one"),
        ([IMAGE, part("other", b"", "o.png")], "form has a file 'other'; expected only: image, mask"),
        ([IMAGE, part("x" * 1000, b"")], f"form has a text field '{'x' * 64}'; expected"),
        ([IMAGE, *[part(f"f{n}", b"") for n in range(17)]], "form cannot be read: Too many fields"),
    ],
)
def test_forms_with_text_are_refused_by_name(parts: list[bytes], message: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        form(*parts)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [URLENCODED, "text/plain"])
def test_where_a_body_may_be_the_image_its_types_are_named(kind: str) -> None:
    """What curl and others send by themselves."""
    for names in (("image",), ("mask",)):
        with pytest.raises(BadRequestError) as caught:
            read(kind, b"abc", names)
        expected = "expected image/* or application/octet-stream, whose body is the image, or multipart/form-data with"
        assert str(caught.value) == f"content type is '{kind}'; {expected} the file {names[0]}"
    with pytest.raises(BadRequestError) as caught:
        read(kind, b"abc", ("image0", "image1"))
    assert str(caught.value) == f"content type is '{kind}'; expected multipart/form-data with the files image0, image1"
    with pytest.raises(BadRequestError, match=r"^content type is missing; expected multipart/form-data with the files"):
        read("", b"abc", ("image0", "image1"))
    for raw in ("image/png", "application/octet-stream"):
        assert read(raw, b"abc") == [("image", b"abc")]

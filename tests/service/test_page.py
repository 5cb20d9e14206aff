"""The page's files as they are served, without a browser."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from html.parser import HTMLParser
from pathlib import Path

import httpx
import pytest
from problems import check_problem

import frontend
import service
from service.app import create_app
from service.settings import Settings

STATIC = Path(service.__file__).parent / "static"
SAMPLES = Path(frontend.__file__).parent / "samples"
NAMES = sorted(path.name for path in STATIC.iterdir() if path.name != "index.html")
TYPES = {".css": "text/css; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".svg": "image/svg+xml"}


class Elements(HTMLParser):
    """(tag, attributes) of all elements."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def values(self, name: str) -> list[str]:
        return [attributes[name] or "" for _, attributes in self.found if name in attributes]


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    """The application with a key and limits of its own; it is never started, the page needs no models."""
    settings = Settings(api_keys=("secret",), max_body_mb=3.0, max_pixels_mp=2.5, max_keypoints=777, device="cpu")
    transport = httpx.ASGITransport(create_app(settings), client=("192.0.2.7", 1))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as made:
        yield made


@pytest.mark.anyio
async def test_the_page_and_its_files_ask_for_no_key(client: httpx.AsyncClient) -> None:
    page = await client.get("/")
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.headers["cache-control"] == "no-cache"
    assert (await client.get("/v1/models")).status_code == 401
    sample = await client.get("/samples/rocket_1.jpg")
    assert sample.content == (SAMPLES / "rocket_1.jpg").read_bytes()
    assert sample.headers["content-type"] == "image/jpeg"
    assert sample.headers["cache-control"] == "public, max-age=86400"
    assert "/static/" not in (await client.get("/openapi.json")).text


@pytest.mark.anyio
async def test_the_page_is_told_the_limits(client: httpx.AsyncClient) -> None:
    text = (await client.get("/")).text
    assert "{{" not in text
    (body,) = [attributes for tag, attributes in Elements(text).found if tag == "body"]
    limits = {name: int(body[f"data-max-{name}"] or "") for name in ("body", "pixels", "keypoints")}
    assert limits == {"body": 3_000_000, "pixels": 2_500_000, "keypoints": 777}


@pytest.mark.anyio
async def test_files_that_the_page_names_may_be_kept_for_ever(client: httpx.AsyncClient) -> None:
    elements = Elements((await client.get("/")).text)
    named = [url for url in elements.values("src") + elements.values("href") if url.startswith("static/")]
    folders = {url.rpartition("/")[0] for url in named}
    assert len(named) == 3
    (folder,) = folders
    for name in NAMES:
        for url, kept in ((f"/{folder}/{name}", True), (f"/static/{name}", False), (f"/static/old/{name}", False)):
            response = await client.get(url)
            assert response.status_code == 200
            assert response.content == (STATIC / name).read_bytes()
            assert response.headers["content-type"] == TYPES[Path(name).suffix]
            assert response.headers["cache-control"] == ("public, max-age=31536000, immutable" if kept else "no-cache")


@pytest.mark.anyio
@pytest.mark.parametrize("path", ["/", "/static/app.js", "/samples/rocket_0.jpg"])
async def test_what_is_known_is_not_sent_again(client: httpx.AsyncClient, path: str) -> None:
    first = await client.get(path)
    tag = first.headers["etag"]
    assert re.fullmatch(r'"[0-9a-f]{24}"', tag)
    for known in (tag, f'"other", W/{tag}', "*"):
        again = await client.get(path, headers={"if-none-match": known})
        assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    assert (await client.get(path, headers={"if-none-match": '"other"'})).status_code == 200
    head = await client.head(path)
    assert (head.status_code, head.headers["etag"]) == (200, tag)


@pytest.mark.anyio
@pytest.mark.parametrize("path", ["/", "/static/app.js", "/samples/rocket_0.jpg"])
async def test_nothing_from_elsewhere_and_nothing_inline_is_allowed(client: httpx.AsyncClient, path: str) -> None:
    headers = (await client.get(path)).headers
    policy = dict(rule.split(" ", 1) for rule in headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert {policy["script-src"], policy["style-src"], policy["connect-src"]} == {"'self'"}
    assert policy["img-src"] == "'self' blob:"
    assert {policy["base-uri"], policy["form-action"], policy["frame-ancestors"]} == {"'none'"}
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "no-referrer"
    assert headers["permissions-policy"].startswith("camera=(self)")


@pytest.mark.anyio
@pytest.mark.parametrize(
    "path",
    [
        "/static/..%2fapp.py",
        "/static/%2e%2e/app.py",
        "/static/x/..%2f..%2fapp.py",
        "/static/..%5capp.py",
        "/static//etc/passwd",
        "/static/%2fetc%2fpasswd",
        "/static/x/%2fetc%2fpasswd",
        "/static/app.js%00.svg",
        "/static/index.html",
        "/static/",
        "/samples/..%2f__init__.py",
        "/samples/README.md",
        "/samples/",
    ],
)
async def test_no_other_file_is_reached(client: httpx.AsyncClient, path: str) -> None:
    url = httpx.URL("http://test").copy_with(raw_path=path.encode())
    response = await client.get(url)
    check_problem(response, 404, "not_found")


def test_the_page_is_light_and_names_nothing_elsewhere() -> None:
    texts = {path.name: path.read_text() for path in STATIC.iterdir()}
    assert sum(len(text.encode()) for text in texts.values()) < 100_000
    for name, text in texts.items():
        foreign = re.findall(r"(?:[a-z]+:)?//[\w.]+\.[\w]+", text)
        assert [url for url in foreign if url != "http://www.w3.org"] == [], name
    elements = Elements(texts["index.html"])
    assert elements.values("style") == []
    assert [name for _, attributes in elements.found for name in attributes if name.startswith("on")] == []
    assert [attributes for tag, attributes in elements.found if tag == "script" and not attributes.get("src")] == []


def test_every_control_has_a_name() -> None:
    text = (STATIC / "index.html").read_text()
    elements = Elements(text)
    labels = set(elements.values("for"))
    wrapped = set(re.findall(r'<label[^>]*>[^<]*\w[^<]*<input[^>]*id="([\w-]+)"', text))
    wrapped |= set(re.findall(r'<label><input[^>]*id="([\w-]+)"[^>]*>\s*\w+</label>', text))
    controls = [a["id"] for tag, a in elements.found if tag in ("input", "select") and a.get("id")]
    assert len(controls) == len([tag for tag, _ in elements.found if tag in ("input", "select")])
    assert [name for name in controls if name not in labels | wrapped] == []
    assert re.findall(r"<button[^>]*></button>", text) == []
    assert len(elements.values("id")) == len(set(elements.values("id")))
    tabs = [a for tag, a in elements.found if a.get("role") == "tab"]
    assert all(a["aria-controls"] in elements.values("id") for a in tabs)
    assert len(tabs) == 2

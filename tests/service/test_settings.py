"""Settings that cannot work are refused at the start, each in one line that names it."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from frontend.cli.main import main
from service import settings
from service.settings import Settings, warmup_sizes


def refusal(**given: Any) -> str:
    """Of the first setting that is wrong, as ``superpoint serve`` tells it."""
    with pytest.raises(ValidationError) as caught:
        Settings(**given)
    assert len(caught.value.errors()) == 1
    told = settings.refusal(caught.value)
    assert "\n" not in told
    return told


def test_a_queue_has_room_for_two_images() -> None:
    assert refusal(max_queue=1) == "SUPERPOINT_MAX_QUEUE is 1; expected a value greater than or equal to 2"
    assert Settings(max_queue=2).max_queue == 2


def test_bodies_together_may_be_as_large_as_one() -> None:
    expected = (
        "SUPERPOINT_MAX_BODIES_MB: 20 is less than one body may have; expected SUPERPOINT_MAX_BODY_MB, {}, or more"
    )
    assert refusal(max_bodies_mb=20) == expected.format(32)
    assert refusal(max_bodies_mb=20, max_body_mb=20.5) == expected.format(20.5)
    assert refusal(max_body_mb=2000).startswith("SUPERPOINT_MAX_BODIES_MB: 1024 is less")
    assert Settings(max_bodies_mb=20, max_body_mb=20).max_bodies_mb == 20


@pytest.mark.parametrize("value", ["inf", "1e13", "nan"])
def test_what_is_not_finite_or_beyond_use_is_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [name for name, field in Settings.model_fields.items() if field.annotation is float]
    assert {"max_delay_ms", "max_pixels_mp", "shutdown_s"} < set(names)
    for name in names:
        variable = f"SUPERPOINT_{name.upper()}"
        with monkeypatch.context() as patched:
            patched.setenv(variable, value)
            assert refusal().startswith(f"{variable} is '{value}'; expected a value ")


def test_a_refusal_names_the_flag_or_the_variable_and_the_value(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["serve", "--port", "-1"]) == 2
    assert capsys.readouterr().err == ("superpoint serve: --port is -1; expected a value greater than or equal to 0\n")
    monkeypatch.setenv("SUPERPOINT_MAX_BATCH", "many" * 100)
    assert main(["serve", "--port", "0"]) == 2
    assert capsys.readouterr().err == (
        f"superpoint serve: SUPERPOINT_MAX_BATCH is '{'many' * 16}'; expected a valid integer, unable to parse string "
        "as an integer\n"
    )


def test_keys_are_not_shown() -> None:
    assert "12345" not in refusal(api_keys=[12345])


@pytest.mark.parametrize("size", ["640x", "x", "4x640", "640x480x3", "-640x480", f"640x{'9' * 400}"])
def test_warm_up_sizes_are_sizes(size: str) -> None:
    assert refusal(warmup=f"64x64,{size}") == (
        f"SUPERPOINT_WARMUP: '{size}' is no size; expected WIDTHxHEIGHT, 8 pixels or more"
    )


def test_a_warm_up_size_is_within_the_limit_of_pixels() -> None:
    assert refusal(warmup="64x64,640x480", max_pixels_mp=0.25) == (
        "SUPERPOINT_WARMUP: '640x480' has 0.3072 megapixels; expected at most SUPERPOINT_MAX_PIXELS_MP, 0.25"
    )
    assert warmup_sizes(Settings(warmup="64x64, 640x480", max_pixels_mp=0.3072)) == [(64, 64), (640, 480)]
    assert warmup_sizes(Settings(warmup="")) == warmup_sizes(Settings(warmup=())) == []


def test_the_default_warm_up_makes_way_for_a_lower_limit() -> None:
    assert warmup_sizes(Settings()) == [(640, 480)]
    ((width, height),) = warmup_sizes(Settings(max_pixels_mp=0.1))
    assert 0.095e6 < width * height <= 0.1e6
    assert width / height == pytest.approx(4 / 3, rel=0.01)
    assert warmup_sizes(Settings(max_pixels_mp=1e-5)) == []


@pytest.mark.parametrize(
    "origin",
    [
        "https://example.org/",
        "https://example.org/page",
        "https://example.org?a=b",
        "example.org",
        "example.org:8000",
        "https://",
        "https://user@example.org",
        "https://Example.org",
        "HTTPS://example.org",
        "https://*.example.org",
        "https://example.org:443",
        "http://example.org:80",
        "https://b\u00fccher.example",
        "https://example.org:port",
        "http://{type}",
    ],
)
def test_origins_that_no_browser_sends_are_refused(origin: str) -> None:
    assert refusal(cors_origins=f"http://localhost:3000,{origin}") == (
        f"SUPERPOINT_CORS_ORIGINS: '{origin}' is no origin as browsers send it; expected scheme://host[:port] in lower "
        "case, without path and default port, or *"
    )


def test_origins_that_browsers_send_are_taken() -> None:
    origins = (
        *("*", "null", "http://localhost:3000", "https://example.org", "http://127.0.0.1:8080", "http://[::1]:8000"),
        *("https://xn--bcher-kva.example", "http://example.org:443", "chrome-extension://abcdef", "file://"),
        *("https://a_b.example.org:80", "capacitor://localhost"),
    )
    assert Settings(cors_origins=",".join(origins)).cors_origins == origins

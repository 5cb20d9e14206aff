"""The page's choice of matchers in a real browser, against a real server."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from browser import chromium_running, page_of
from live import Live, live
from released import SETTINGS, SLIM, release
from test_page_browser import DESKTOP, FIRST, KEYPOINTS, SECOND, choose, matched, settled, start_with_samples, text


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium_running() as made:
        yield made


@pytest.fixture(scope="module")
def server(browser: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in release(tmp_path_factory.mktemp("weights")).items():
            patch.setenv(name, value)
        with live(**SETTINGS) as made:
            yield made


@pytest.fixture
def page(browser: Any, server: Live) -> Iterator[Any]:
    with page_of(browser, server.base, viewport=DESKTOP) as made:
        models_known(made)
        yield made


def models_known(page: Any) -> None:
    """Wait until the page has been told of the models."""
    page.locator("#service", has_text="on cpu").wait_for()


def asked_by(page: Any, act: Any) -> dict[str, str]:
    """The query of the match that something leads to."""
    with page.expect_request("**/v1/match?*") as asked:
        act()
    settled(page)
    return {name: value for name, (value,) in parse_qs(urlsplit(asked.value.url).query).items()}


def test_the_learned_matcher_is_asked_for_and_has_no_ratio(page: Any, server: Live) -> None:
    start_with_samples(page)
    query = asked_by(page, lambda: choose(page, "ratio", "0.90"))
    assert ("matcher" in query, query["ratio"]) == (False, "0.9")
    plain = text(page, "n-matches")
    page.focus("#pair")
    page.keyboard.press(".")
    assert ", similarity " in text(page, "picked")

    query = asked_by(page, lambda: page.select_option("#matcher", "lightglue"))
    assert (query["matcher"], "ratio" in query) == ("lightglue", False)
    assert page.locator("#ratio-field").is_hidden()
    expected = matched(server, (FIRST.read_bytes(), SECOND.read_bytes()), max_keypoints=KEYPOINTS, matcher="lightglue")
    assert text(page, "n-matches") == str(len(expected["matches"])) != plain
    assert "matcher=lightglue" in text(page, "curl")
    page.focus("#pair")
    page.keyboard.press(".")
    assert f", probability {expected['match_scores'][0]:.3f}" in text(page, "picked")

    query = asked_by(page, lambda: page.select_option("#matcher", "mnn"))
    assert ("matcher" in query, query["ratio"]) == (False, "0.9")
    assert page.locator("#ratio-field").is_visible()
    assert text(page, "n-matches") == plain


def test_a_model_without_it_leaves_no_choice(page: Any) -> None:
    start_with_samples(page)
    assert page.locator("#matcher-field").is_visible()
    asked_by(page, lambda: page.select_option("#matcher", "lightglue"))
    query = asked_by(page, lambda: page.select_option("#model", SLIM))
    assert (query["model"], "matcher" in query) == (SLIM, False)
    assert page.locator("#matcher-field").is_hidden()
    assert page.locator("#ratio-field").is_visible()
    assert page.locator("#error").is_hidden()


def test_one_model_alone_has_the_choice_if_it_has_the_matcher(
    browser: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for entry in (True, False):
        for name, value in release(tmp_path, entry=entry).items():
            monkeypatch.setenv(name, value)
        with live(**{**SETTINGS, "models": ()}) as server, page_of(browser, server.base, viewport=DESKTOP) as page:
            models_known(page)
            start_with_samples(page)
            assert page.locator("#matcher-field").is_visible() == entry
            if entry:
                query = asked_by(page, lambda page=page: page.select_option("#matcher", "lightglue"))
                assert (query["matcher"], "model" in query) == ("lightglue", False)

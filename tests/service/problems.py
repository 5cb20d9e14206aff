"""What a refusal of the service looks like."""

from __future__ import annotations

import httpx


def check_problem(response: httpx.Response, status: int, code: str, *parts: str) -> None:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/problem+json"
    document = response.json()
    assert (document["status"], document["code"]) == (status, code)
    assert document["request_id"] == response.headers["x-request-id"]
    assert "\n" not in document["detail"]
    for part in parts:
        assert part in document["detail"]

"""The HTTP side: what clients get, and what clients of ill will do not."""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from adapters_on_disk import png
from chromium import BINARY, Chromium
from starlette.testclient import TestClient

from vitune.serving import BusyError, Engine
from vitune.serving.app import create_app
from vitune.serving.gate import Buckets
from vitune.serving.server import address_of, listen, make_server
from vitune.serving.service import LocalService
from vitune.serving.settings import GuardSettings, ServerSettings

TOKEN = "a-secret-of-the-tests"


class Lasting(LocalService):
    """A service that outlives the application over it."""

    def close(self) -> None:
        """Left to the fixture of the engine."""


@pytest.fixture
def client(engine: Engine) -> Callable[..., TestClient]:
    def made(**settings: Any) -> TestClient:
        app = create_app(Lasting(engine), GuardSettings(**{"rate": 0, **settings}))
        return TestClient(app, raise_server_exceptions=False)

    return made


@contextmanager
def running(engine: Engine, guards: GuardSettings, **server: Any) -> Iterator[str]:
    """A real server on a free port."""
    settings = ServerSettings(port=0, **server)
    listening = listen(settings)
    server_ = make_server(create_app(Lasting(engine), guards), settings)
    thread = threading.Thread(target=server_.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield address_of(listening)
    finally:
        server_.should_exit = True
        thread.join(10)
        listening.close()


def ask(client: TestClient, adapter: str = "rocks", **form: Any) -> httpx.Response:
    images = form.pop("images", [("a.png", png(0)), ("b.jpg", png(1, kind="JPEG"))])
    files = [("images", one) for one in images]
    return client.post(
        form.pop("path", "/v1/predict"), data={"adapter": adapter, **form}, files=files
    )


def test_predictions_name_the_adapter_and_add_up(
    client: Callable[..., TestClient], engine: Engine
) -> None:
    answer = ask(client(), "ships", top_k=50)
    assert answer.status_code == 200
    said = answer.json()
    assert said["fingerprint"] == engine.get("ships").fingerprint and said["adapter"] == "ships"
    assert [one["file"] for one in said["predictions"]] == ["a.png", "b.jpg"]
    (expected,) = engine.predict("ships", [_upload(png(0))])
    for one in said["predictions"]:
        shares = [pair["probability"] for pair in one["top"]]
        assert abs(sum(shares) - 1) < 1e-6 and shares == sorted(shares, reverse=True)
    best = expected.logits.argmax().item()
    assert said["predictions"][0]["top"][0]["name"] == f"ships {best}"
    assert len(ask(client(), top_k=1).json()["predictions"][0]["top"]) == 1
    assert 0 < said["time_ms"] < 60_000


def _upload(content: bytes) -> Any:
    from vitune.serving import Upload

    return Upload("x.png", content)


def test_embeddings(client: Callable[..., TestClient], engine: Engine) -> None:
    said = ask(client(), path="/v1/embed").json()
    (expected, _) = engine.predict("rocks", [_upload(png(0)), _upload(png(1))])
    found = torch.tensor(said["embeddings"][0]["embedding"])
    assert torch.allclose(found, expected.features, atol=1e-5)


def test_listing_health_metrics_and_description(client: Callable[..., TestClient]) -> None:
    open_to_all = client()
    names = [one["name"] for one in open_to_all.get("/v1/adapters").json()["adapters"]]
    assert names == ["birds", "rocks", "ships", "trees"]
    assert open_to_all.get("/healthz").json()["status"] == "ok"
    assert ask(open_to_all, "nobody").status_code == 404
    open_to_all.get("/no/such/path")
    figures = open_to_all.get("/metrics").text
    assert 'vitune_requests_total{path="/v1/predict",status="404"} 1.0' in figures
    assert 'vitune_requests_total{path="other",status="404"} 1.0' in figures
    assert "vitune_adapters_served 4.0" in figures and "vitune_cache_bytes " in figures
    paths = open_to_all.get("/openapi.json").json()["paths"]
    assert {"/v1/predict", "/v1/embed", "/v1/adapters", "/healthz", "/metrics"} <= set(paths)


def test_the_pages_load_nothing_from_elsewhere(client: Callable[..., TestClient]) -> None:
    with client() as open_to_all:
        page, docs = open_to_all.get("/"), open_to_all.get("/docs")
        assert "default-src 'none'" in page.headers["content-security-policy"]
        for text in (page.text, docs.text):
            assert not re.findall(r"""(?:src|href)=["'](?:https?:)?//""", text)
        for file in re.findall(r"/docs-files/[\w.-]+", docs.text):
            assert open_to_all.get(file).status_code == 200


def test_every_refusal_is_one_sentence_and_described_as_one(
    client: Callable[..., TestClient],
) -> None:
    refused = ask(client(), top_k=0)
    assert refused.json() == {"detail": "top_k: Input should be greater than or equal to 1."}
    refused = client().post("/v1/predict", data={"adapter": "rocks", "images": "text"})
    assert refused.status_code == 422
    what = "images: expected image files, each with a filename."
    assert refused.json()["detail"] == what
    description = client().get("/openapi.json").json()
    assert "HTTPValidationError" not in json.dumps(description)
    assert set(description["paths"]["/v1/predict"]["post"]["responses"]) == {"200", "default"}


@pytest.mark.parametrize(
    "name",
    ["../rocks", "..", "/etc/passwd", "rocks/../birds", "rocks/adapter", "", "%2e%2e", "a" * 9999],
)
def test_names_are_looked_up_and_never_joined_to_a_path(
    client: Callable[..., TestClient], name: str
) -> None:
    answer = ask(client(), name)
    assert answer.status_code in (404, 422) and len(answer.text) < 2000


@pytest.mark.parametrize(
    ("form", "status", "reason"),
    [
        ({"images": [("x.png", png()[:300])]}, 422, "image 'x.png': got .* intact image file"),
        ({"images": [("x.txt", b"hello")]}, 422, "no kind of image that is read"),
        ({"images": [("x.png", png())] * 5}, 413, "got 5, expected at most 4 per request"),
        ({"images": []}, 422, "images"),
        ({"top_k": 0}, 422, "top_k"),
        ({"top_k": "many"}, 422, "top_k"),
        ({"images": [("x.png", b"\0" * 3_000_000)]}, 413, "more than 2 MiB"),
    ],
)
def test_malformed_requests_are_told(
    client: Callable[..., TestClient], form: dict[str, Any], status: int, reason: str
) -> None:
    answer = ask(client(max_images=4, max_upload_mib=2), **form)
    assert answer.status_code == status and re.search(reason, answer.text)


@pytest.mark.parametrize("body", [b"", b"{}", b"--x\r\n", b"\xff" * 100])
def test_bodies_that_are_no_form_are_told(client: Callable[..., TestClient], body: bytes) -> None:
    headers = {"content-type": "multipart/form-data; boundary=x"}
    answer = client().post("/v1/predict", content=body, headers=headers)
    assert answer.status_code in (400, 422)


def test_a_token_is_asked_for_where_there_is_one(client: Callable[..., TestClient]) -> None:
    guarded = client(token=TOKEN)
    for path in ("/", "/healthz", "/docs", "/openapi.json"):
        assert guarded.get(path).status_code == 200
    for value in (None, "Bearer wrong", f"Basic {TOKEN}", TOKEN, "Bearer", f"Bearer {TOKEN}x"):
        headers = {} if value is None else {"authorization": value}
        for path in ("/v1/adapters", "/metrics"):
            refused = guarded.get(path, headers=headers)
            assert refused.status_code == 401 and "token" in refused.json()["detail"]
    guarded.headers["authorization"] = f"bearer {TOKEN}"
    assert guarded.get("/v1/adapters").status_code == 200 and ask(guarded).status_code == 200


def test_a_client_that_asks_too_often_is_told_when_to_come_back(
    client: Callable[..., TestClient],
) -> None:
    hasty = client(rate=2)
    statuses = [hasty.get("/v1/adapters").status_code for _ in range(8)]
    assert statuses[:4] == [200] * 4 and 429 in statuses
    assert int(hasty.get("/v1/adapters").headers["retry-after"]) >= 1
    assert hasty.get("/healthz").status_code == 200


def test_buckets_fill_again_and_do_not_grow_without_end() -> None:
    buckets = Buckets(2)
    assert [buckets.wait_s("a", 0.0) for _ in range(5)] == [0, 0, 0, 0, 0.5]
    assert buckets.wait_s("b", 0.0) == 0 and buckets.wait_s("a", 0.6) == 0
    for number in range(20_000):
        buckets.wait_s(str(number), 1.0)
    assert len(buckets._filled) <= 10_001


def test_a_full_queue_and_a_late_answer_are_told(
    client: Callable[..., TestClient], engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def busy(*_: Any) -> None:
        raise BusyError("queue: got 1 images with 9 waiting, expected at most 9 in all.")

    monkeypatch.setattr(engine, "submit", busy)
    answer = ask(client())
    assert answer.status_code == 503 and answer.headers["retry-after"] == "1"
    monkeypatch.undo()
    monkeypatch.setattr(engine, "decode", lambda *_: time.sleep(0.5))
    answer = ask(client(answer_timeout_s=0.05))
    assert answer.status_code == 504 and "got none within 0.05 s" in answer.text


def test_uploads_that_are_held_at_once_are_bounded(client: Callable[..., TestClient]) -> None:
    narrow = client(max_held_mib=0.002, max_upload_mib=0.002)
    assert ask(narrow, images=[("x.png", png(size=(8, 8)))]).status_code == 200
    app = create_app(Lasting(None), GuardSettings(max_held_mib=1, max_upload_mib=1))  # type: ignore[arg-type]
    app.app.held = 2 * 2**20
    refused = TestClient(app).get("/healthz")
    assert refused.status_code == 503 and "more concurrent uploads than it can hold" in refused.text


@pytest.fixture(scope="module")
def place(engine: Engine) -> Iterator[tuple[str, int]]:
    """Where a server with little patience listens."""
    guards = GuardSettings(body_timeout_s=0.3, rate=0)
    with running(engine, guards, head_timeout_s=0.3) as url:
        host, port = url.removeprefix("http://").split(":")
        yield host, int(port)


class TestSlowClients:
    """A real server; clients that open a connection and dawdle."""

    @staticmethod
    def said(place: tuple[str, int], *parts: bytes, pause_s: float = 0.1) -> tuple[bytes, float]:
        """What comes back until the server hangs up, and after how long."""
        started = time.monotonic()
        with socket.create_connection(place, timeout=10) as connection:
            with suppress(OSError):
                for part in parts:
                    connection.sendall(part)
                    time.sleep(pause_s)
            heard = b""
            with suppress(ConnectionError):
                while piece := connection.recv(4096):
                    heard += piece
        return heard, time.monotonic() - started

    def test_a_head_that_never_ends(self, place: tuple[str, int]) -> None:
        heard, seconds = self.said(place, *[b"G", b"E", b"T", b" ", b"/"] * 3)
        assert heard == b"" and seconds < 5
        assert self.said(place)[1] < 5  # nor one that never begins

    def test_a_second_head_that_never_ends(self, place: tuple[str, int]) -> None:
        whole = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"
        heard, seconds = self.said(place, whole, b"GET /hea")
        assert heard.count(b"200 OK") == 1 and seconds < 5

    def test_a_body_that_never_ends(self, place: tuple[str, int]) -> None:
        head = b"POST /v1/predict HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n"
        heard, seconds = self.said(place, head, b"a", b"b")
        assert b"408" in heard.split(b"\r\n")[0] and seconds < 5

    def test_a_body_that_was_announced_too_large_is_not_awaited(
        self, place: tuple[str, int]
    ) -> None:
        head = b"POST /v1/predict HTTP/1.1\r\nhost: x\r\ncontent-length: 99999999999\r\n\r\n"
        heard, seconds = self.said(place, head)
        assert b"413" in heard.split(b"\r\n")[0] and seconds < 5


@pytest.mark.skipif(BINARY is None, reason="needs Chromium, which this machine does not have")
def test_the_page_in_a_browser(engine: Engine, tmp_path: Path) -> None:
    """Choose an adapter, drop two images, see bars; dark, and as narrow as a phone."""
    files = [tmp_path / "one <b>.png", tmp_path / "two.png"]
    for seed, file in enumerate(files):
        file.write_bytes(png(seed))
    (tmp_path / "bad.png").write_bytes(b"no image")
    guards = GuardSettings(rate=0, token=TOKEN)
    with running(engine, guards) as url, Chromium(tmp_path / "profile") as browser:
        browser.open(f"{url}/", width=390, dark=True)
        browser.wait_for("!document.querySelector('#tokens').hidden")
        browser.evaluate(
            f"const token = document.querySelector('#token'); token.value = '{TOKEN}';"
            " token.onchange()"
        )
        browser.wait_for("document.querySelectorAll('#adapter option').length === 4")
        browser.evaluate("document.querySelector('#adapter').value = 'ships'")
        browser.drop("#drop", files)
        browser.wait_for("document.querySelectorAll('.result').length === 2")
        names = browser.evaluate("[...document.querySelectorAll('.result h2')].map(e=>e.innerText)")
        assert names == ["one <b>.png", "two.png"]
        rows = browser.evaluate("document.querySelector('.result').innerText").split("\n")
        (expected,) = engine.predict("ships", [_upload(png(0))])
        assert rows[1] == f"ships {expected.logits.argmax().item()}"
        share = expected.logits.softmax(-1).max().item()
        assert f"{100 * share:.1f} %" in rows
        width = browser.evaluate("document.querySelector('.track i').style.width")
        assert abs(float(width.rstrip("%")) - 100 * share) < 0.01
        assert browser.evaluate("document.documentElement.scrollWidth") <= 390
        dark = browser.evaluate("getComputedStyle(document.body).backgroundColor")
        assert dark == "rgb(20, 23, 27)"
        assert browser.evaluate("document.querySelector('.result img').naturalWidth") > 0
        browser.drop("#drop", [tmp_path / "bad.png"])
        browser.wait_for("document.querySelector('#note.bad')")
        assert "image 'bad.png'" in browser.evaluate("document.querySelector('#note').innerText")
        refused = [text for text in browser.complaints() if "401" not in text and "422" not in text]
        assert refused == []

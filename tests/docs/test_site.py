"""The site builds offline without a warning, asks nothing of the network, and covers the doors."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import house
import pytest

import vitune
from vitune.methods import OWN

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocs", reason="mkdocs is not installed: pip install 'vitune[docs]'")
    out = tmp_path_factory.mktemp("site")
    # A proxy that refuses every connection: a build that wanted the network would fail.
    closed = dict.fromkeys(("http_proxy", "https_proxy", "all_proxy"), "http://127.0.0.1:9")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(out)],
        cwd=ROOT,
        env={**os.environ, **closed, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stdout + built.stderr
    return out


class _Loaded(HTMLParser):
    """Addresses that a browser fetches by itself; links that a reader may follow are not."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        if tag in ("script", "img", "iframe", "source"):
            self.addresses.append(given.get("src", ""))
        if tag == "link" and given.get("rel") != "canonical":
            self.addresses.append(given.get("href", ""))


def test_pages_load_nothing_from_the_network(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        loaded = _Loaded()
        loaded.feed(page.read_text())
        outside = [one for one in loaded.addresses if re.match(r"(https?:)?//", one)]
        assert not outside, (page, outside)
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import )[\"']?(https?:)?//", sheet.read_text()), sheet


def test_the_notebook_is_a_page_with_its_outputs(site: Path) -> None:
    page = (site / "quickstart" / "index.html").read_text()
    assert "vitune" in page and "test images, accuracy" in page


def test_every_page_has_a_place_in_the_navigation(site: Path) -> None:
    named = set(re.findall(r": (\S+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    here = {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")}
    assert here - named == set(), "name these in mkdocs.yml"


def test_the_reference_covers_every_public_name() -> None:
    told = set(re.findall(r"^::: \S+\.(\w+)$", "\n".join(_api_pages()), re.MULTILINE))
    configs = {method.config_class.__name__ for method in OWN.values()}
    public = (set(vitune.__all__) - {"analysis"}) | configs
    assert public - told == set(), "add these to docs/api/"


def _api_pages() -> list[str]:
    return [page.read_text() for page in sorted((DOCS / "api").glob("*.md"))]


def test_the_house_is_drawn_as_it_stands() -> None:
    page = house.PAGE.read_text()
    assert page == house.redrawn(page), "run python tests/docs/house.py"
    assert page.count("\n| ") > 25


def test_a_changed_house_changes_the_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(house, "rows", lambda: (("cli",), ("not.built",), ("errors",)))
    assert [line[:12] for line in house.drawing().splitlines()[2:]] == [
        "| 3 | `cli` ",
        "| 1 | `error",
    ]


def test_the_first_page_counts_the_methods() -> None:
    for page in (ROOT / "README.md", DOCS / "index.md"):
        assert f"{len(OWN) - 1} other methods" in page.read_text(), page

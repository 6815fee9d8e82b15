"""The documentation as it is built: its search and its navigation. BUILT_DOCS says where; else it is built here."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
GROUPS = ["Start", "Guides", "Deploy", "Moving", "Reference", "Internals"]
pytestmark = pytest.mark.slow


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    for name in ("sphinx", "furo", "sphinx_copybutton", "sphinx_design"):
        pytest.importorskip(name, reason="the documentation's packages are not installed here")
    if built := os.environ.get("BUILT_DOCS"):
        return Path(built)
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-E", "-b", "html", ROOT / "docs", folder]
    subprocess.run(command, check=True, timeout=300)
    return folder


def search_index(site: Path) -> dict[str, Any]:
    text = (site / "searchindex.js").read_text()
    index: dict[str, Any] = json.loads(text[text.index("{") : text.rindex("}") + 1])
    return index


@pytest.mark.timeout(300)
@pytest.mark.parametrize("words", ["idempotent", "rate limit", "dead letter", "percentile", "poison job"])
def test_search_finds_the_words_that_users_look_for(site: Path, words: str) -> None:
    entries = search_index(site)["indexentries"]
    pages = search_index(site)["docnames"]
    [(page, anchor, _is_main)] = entries[words]
    assert (pages[page], anchor) == ("glossary", f"term-{words.replace(' ', '-')}")
    assert f'id="{anchor}"' in (site / "glossary.html").read_text()


@pytest.mark.timeout(300)
def test_navigation_is_in_groups_and_leads_to_every_page(site: Path) -> None:
    text = (site / "index.html").read_text()
    assert re.findall(r'<p class="caption"[^>]*><span class="caption-text">(\w+)</span>', text) == GROUPS
    linked = set(re.findall(r'<a class="reference internal" href="([\w/-]+)\.html"', text))
    pages = {str(page.relative_to(ROOT / "docs").with_suffix("")) for page in (ROOT / "docs").rglob("*.md")}
    assert {page for page in pages if not page.startswith("_build")} - {"index"} <= linked


@pytest.mark.timeout(300)
def test_copy_button_leaves_prompts_out(site: Path) -> None:
    text = (site / "_static/copybutton.js").read_text()
    assert r"'\\$ |>>> |\\.\\.\\. ', true" in text
    assert "copybutton.js" in (site / "quickstart.html").read_text()

"""Documentation, help, messages and comments are plain English, without phrases that a reader has to translate."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# One a line or several; "|" separates them. Spaces match line breaks too.
PHRASES = """
    nobody|somebody|whoever|whomever|whom|anew|for ever|shall|mend(?:s|ed|ing)?|lest|kin
    tells? of|told of|(?:is|are|was|were) told|all the same|once more|in vain|of late|at hand
    so many|so much|for so long|to be had|thereof|therein|heed(?:s|ed)?|bear being|bear with|ear of|gone by
    put away|taken back|let in|lets? us in|bids?|betakes?|hitherto|albeit
    (?:is|are|was|were) no (?!longer|more|such)[a-z]+
"""
# "What is no number" is out, "is no longer" is not; ", of which" is out, "of which kind" is not.
OLD_FASHIONED = re.compile(
    rf"\b(?:{'|'.join(PHRASES.split(chr(10))[1:-1])}|, of which)\b".replace("    ", "").replace(" ", r"\s+(?:#\s+)?"),
    re.IGNORECASE,
)
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "docs").rglob("*.py")]
TESTS = [path for path in (ROOT / "tests").rglob("*.py") if path.name != Path(__file__).name]
SOURCE = [p for d in ("src", "examples", "benchmarks") for p in (ROOT / d).rglob("*") if p.suffix in (".py", ".html")]


def old_fashioned(text: str) -> Iterator[tuple[int, str]]:
    """The line and the words of each phrase in *text*, also where it continues on the next line or comment line."""
    for match in OLD_FASHIONED.finditer(text):
        yield text.count("\n", 0, match.start()) + 1, re.sub(r"[\s#]+", " ", match[0])


# Help, messages, log lines, docstrings and comments are all in the sources.
@pytest.mark.parametrize(
    "files", [pytest.param(PAGES, id="docs"), pytest.param(SOURCE, id="src"), pytest.param(TESTS, id="tests")]
)
def test_prose_is_plain_english(files: list[Path]) -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {words}"
        for path in sorted(files)
        if "_build" not in path.parts
        # The name of the unprivileged user.
        for line, words in old_fashioned(re.sub(r'"nobody"|=nobody\b', "", path.read_text()))
    ]
    assert not found, "say it in plain English:\n" + "\n".join(found)


def test_phrases_are_found_across_lines_and_plain_words_are_not() -> None:
    assert list(old_fashioned("# Not so\n    # many, once\nmore: is no number, of which")) == [
        (1, "so many"),
        (2, "once more"),
        (3, "is no number"),
        (3, ", of which"),
    ]
    assert not list(old_fashioned("It is no longer known of which kind; recommend a shallow, unheeded whole number."))

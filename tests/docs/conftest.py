"""The fenced blocks of the README and the docs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A test with an argument ``python`` or ``sh`` gets every block of that language."""
    for language in {"python", "sh"} & set(metafunc.fixturenames):
        blocks = [
            pytest.param(text, id=f"{page.name}-{i}")
            for page in PAGES
            for i, (found, text) in enumerate(FENCE.findall(page.read_text()))
            if found == language
        ]
        assert blocks
        metafunc.parametrize(language, blocks)


@pytest.fixture(scope="session")
def languages() -> set[str]:
    return {language for page in PAGES for language, _ in FENCE.findall(page.read_text())}

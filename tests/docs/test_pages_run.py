"""Pages whose commands and files are followed to the letter, block by block."""

from pathlib import Path

import pytest

from .conftest import DOCS

PAGES = [DOCS / "tutorial.md", DOCS / "compose.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_page_can_be_followed(author, page: Path):
    author.follow(page)

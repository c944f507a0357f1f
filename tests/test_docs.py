"""Every Python block of the README and of docs/ runs as pasted."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.M | re.S)


def blocks(page):
    """Yield each Python block of a Markdown file, at its own line numbers."""
    text = page.read_text()
    for match in BLOCK.finditer(text):
        yield "\n" * (text.count("\n", 0, match.start()) + 1) + match[1]


def run(page, code, namespace):
    exec(compile(code, str(page), "exec"), namespace)


PAGES = [page for page in sorted((ROOT / "docs").rglob("*.md")) if list(blocks(page))]


@pytest.mark.parametrize("index", range(len(list(blocks(README)))))
def test_readme_block(index, tmp_path, monkeypatch):
    """A block of the README needs no other."""
    monkeypatch.chdir(tmp_path)
    run(README, list(blocks(README))[index], {"__name__": "__main__"})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_page_blocks(page, tmp_path, monkeypatch):
    """The blocks of a page run one after another, as a reader pastes them."""
    if "from diffusers import" in page.read_text():
        pytest.importorskip("diffusers")
    monkeypatch.chdir(tmp_path)
    namespace = {"__name__": "__main__"}
    for code in blocks(page):
        run(page, code, namespace)


def test_readme_is_short_and_its_links_resolve():
    text = README.read_text()
    assert text.count("\n") <= 150
    assert len(list(blocks(README))) >= 3
    for link in re.findall(r"\]\(([^)#]+)", text):
        assert link.startswith("https://") or (ROOT / link).exists(), link

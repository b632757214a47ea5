"""The Korean pages have the shape, names, figures, links and code of the English ones."""

import re

import pytest
from pages import ROOT, TRANSLATIONS, Page, differences

TRANSLATED = [
    "README.md",
    "docs/lora.md",
    "docs/messages.md",
    "docs/migration.md",
    "docs/operating.md",
    "docs/troubleshooting.md",
]


def test_pages_that_are_translated() -> None:
    """These, and no Korean page has lost its English one."""
    pages = [page.relative_to(ROOT).as_posix() for page in TRANSLATIONS]
    assert pages == TRANSLATED and all(page.exists() for page in TRANSLATIONS)


@pytest.mark.parametrize("name", TRANSLATED)
def test_pages_agree(name: str) -> None:
    """The same headings, items, rows and blocks, with the same names, figures and links."""
    page = ROOT / name
    found = differences(Page.read(page), Page.read(TRANSLATIONS[page]))
    assert not found, "\n".join(found)


@pytest.mark.parametrize("name", TRANSLATED)
def test_page_is_korean(name: str) -> None:
    """No paragraph or item was left in English, but the way to the English page."""
    translation = Page.read(TRANSLATIONS[ROOT / name])
    texts = [part[0] for part in translation.parts("paragraph", "item")]
    (english,) = [text for text in texts if not re.search("[가-힣]", text)]
    assert english.startswith("[English](")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("python worker.py --redrive 500", "python worker.py --redrive 501"),
        ("| 3 | `DEVICE_LOST`", "| 5 | `DEVICE_LOST`"),
        ("`DEVICE_LOST`", "`DEVICE_GONE`"),
        ("| 3 | `DEVICE_LOST`", "| 3 | `BUSY` | wait |\n| 3 | `DEVICE_LOST`"),
        ("| `/readyz` | 200 while it takes jobs |\n", ""),
        ("at 1.5 × the limit", "at 2.5 × the limit"),
        ("every five seconds", "every six seconds"),
        ("startupProbe", "livenessProbe"),
        ("(sizing.md#one-style-one-worker)", "(sizing.md)"),
        ("SIGTERM and", "SIGHUP and"),
        ("## Dead letters", "### Dead letters"),
        ("## Container\n", "## Container\n\nOne more paragraph.\n"),
    ],
)
def test_change_is_noticed(before: str, after: str) -> None:
    """A command, code, figure, row, link, heading or paragraph that only one page has."""
    page = Page.read(ROOT / "docs/operating.md")
    assert before in page.text
    changed = Page(page.path, page.text.replace(before, after, 1))
    assert differences(changed, Page.read(TRANSLATIONS[page.path]))

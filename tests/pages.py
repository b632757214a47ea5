"""What a page of the documentation says in any language: its shape, names, figures and links."""

import re
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
TRANSLATIONS = {ROOT / "README.md": ROOT / "README.ko.md"} | {
    ROOT / "docs" / page.name: page for page in sorted((ROOT / "docs/ko").glob("*.md"))
}
"""Each page that there is in Korean, by the English one."""
ORIGINALS = {translation: page for page, translation in TRANSLATIONS.items()}
PART = re.compile(
    r"""^(?:
    (?P<block> ```[\s\S]*?^```$ )
    | (?P<output> [ ]{4}.+ )
    | (?P<heading> \#+[ ].+ )
    | (?P<row> \|.+ )
    | (?P<item> (?:-|\d+\.)[ ].+ (?:\n[ ]+\S.*)* )
    | (?P<paragraph> \S.* (?:\n(?!```|\#|\||-[ ]|\d+\.[ ])\S.*)* )
    )""",
    re.MULTILINE | re.VERBOSE,
)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)]+)\)")
WORDS = "two three four five six seven eight nine ten", "두 세 네 다섯 여섯 일곱 여덟 아홉 열"
FIGURES = {"half an hour": "30", "zero": "0"} | {
    word: str(figure) for words in WORDS for figure, word in enumerate(words.split(), start=2)
}
"""Words that are figures: one language may write "ten seconds", and the other "10초"."""
FIGURE = re.compile(rf"\b(?:{'|'.join(FIGURES)})\b|(?:[≥≤+−] ?)?(?<![a-z\d])\d+(?:[.,]\d+)*")
CAPITALS = re.compile("(?<![A-Za-z_])[A-Z_]{4,}(?![A-Za-z_])")
"""Error codes and the like, where they are not marked as code."""


def blocks(page: Path, kind: str) -> list[Any]:
    """The page's fenced blocks of a kind; with what is in the kind's brackets, if it has any."""
    text = page.read_text(encoding="utf-8")
    return re.findall(rf"^```{kind}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Page:
    """A page and its text, which need not be the stored one."""

    path: Path
    text: str

    @classmethod
    def read(cls, path: Path) -> "Page":
        """The page as it is stored."""
        return cls(path, path.read_text(encoding="utf-8"))

    def parts(self, *kinds: str) -> list[re.Match[str]]:
        """Its headings, paragraphs, items, rows and blocks, in order; or those of some kinds."""
        found = PART.finditer(self.text)
        return [part for part in found if not kinds or part.lastgroup in kinds]

    def anchors(self) -> list[str]:
        """The anchors of its headings, as GitHub makes them."""
        heads = [part["heading"].lstrip("# ").lower() for part in self.parts("heading")]
        return [re.sub(r"[^\w -]", "", head).replace(" ", "-") for head in heads]

    def target(self, link: str) -> str:
        """Where a link leads: the English page there, and the number of its heading."""
        if link.startswith("http"):
            return link
        place, _, anchor = link.partition("#")
        path = (self.path.parent / place).resolve() if place else self.path
        heading = Page.read(path).anchors().index(anchor) if anchor else ""
        return f"{ORIGINALS.get(path, path).relative_to(ROOT)}#{heading}"

    def fact(self, part: re.Match[str]) -> str:
        """What a translation of the part shares with it."""
        kind, text = part.lastgroup, part[0]
        if kind in ("block", "output"):
            return re.sub(r"\s+# .*", "", text)  # comments are translated
        cells = []
        for cell in text.split("|"):
            links = {self.target(link) for link in LINK.findall(cell)}
            prose = re.sub("`[^`]+`", "", LINK.sub("", cell))
            names = {" ".join(name.split()) for name in re.findall("`([^`]+)`", cell)}
            names |= set(CAPITALS.findall(prose))
            figures = {FIGURES.get(word, word) for word in FIGURE.findall(prose.lower())}
            cells.append(" ".join([*sorted(names), *sorted(links), *sorted(figures)]))
        mark = text.split(" ")[0] if kind in ("heading", "item") else ""
        return f"{kind} {mark}: {' | '.join(cells)}"

    def facts(self) -> list[tuple[str, str]]:
        """Where each part begins, and what a translation shares with it."""
        name = self.path.relative_to(ROOT)
        starts = [(part, self.text.count("\n", 0, part.start()) + 1) for part in self.parts()]
        return [(f"{name}:{line}", self.fact(part)) for part, line in starts]


def differences(page: Page, translation: Page) -> list[str]:
    """The parts in which a page and its translation do not agree, with their lines."""
    sides = (page.facts(), translation.facts())
    here, there = ([fact for _, fact in side] for side in sides)
    found: list[tuple[str, str]] = []
    for kind, *ends in SequenceMatcher(None, here, there, autojunk=False).get_opcodes():
        if kind != "equal":
            found += sides[0][slice(*ends[:2])] + sides[1][slice(*ends[2:])]
    return [f"{place}: {fact}" for place, fact in found]

"""What a page about runs is made of: sections of charts, tables, pictures and words.

Every text is shown as it is: the template escapes it. Only a chart's drawing is markup, made here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import UInt8
from torch import Tensor


@dataclass(frozen=True)
class Key:
    """A line of a chart's legend: its name, its colour (1 to 6, 0 for ink), and how it is drawn."""

    name: str
    colour: int
    line: str = ""


@dataclass(frozen=True)
class Chart:
    """A drawing (SVG), what it shows for who cannot see it, and its caption."""

    svg: str
    label: str
    title: str = ""
    kind: ClassVar[str] = "chart"


@dataclass(frozen=True)
class Panels:
    """Small charts side by side with one legend."""

    charts: Sequence[Chart]
    keys: Sequence[Key] = ()
    large: bool = False
    kind: ClassVar[str] = "panels"


@dataclass(frozen=True)
class Rows:
    """A table; the first cell of each row names it. `colours` are those of the rows' keys."""

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    title: str = ""
    colours: Sequence[int | None] = ()
    wordy: bool = False
    kind: ClassVar[str] = "rows"


@dataclass(frozen=True)
class Cell:
    """A picture with its description, and words under it that may be marked as wrong."""

    image: UInt8[Tensor, "C H W"]
    label: str
    words: str = ""
    wrong: bool = False


@dataclass(frozen=True)
class Gallery:
    """Pictures in rows, each with its name."""

    rows: Mapping[str, Sequence[Cell]]
    kind: ClassVar[str] = "gallery"


@dataclass(frozen=True)
class Note:
    """A sentence in small letters."""

    words: str
    kind: ClassVar[str] = "note"


@dataclass(frozen=True)
class Heading:
    """A title within a section."""

    words: str
    kind: ClassVar[str] = "heading"


@dataclass(frozen=True)
class Points:
    """Sentences, one below the other."""

    sentences: Sequence[str]
    kind: ClassVar[str] = "points"


@dataclass(frozen=True)
class Facts:
    """Names with what is known about them."""

    facts: Mapping[str, str]
    kind: ClassVar[str] = "facts"


@dataclass(frozen=True)
class Code:
    """Text as a machine reads it."""

    text: str
    kind: ClassVar[str] = "code"


@dataclass(frozen=True)
class Fold:
    """What is shown on request."""

    summary: str
    blocks: Sequence[Block]
    kind: ClassVar[str] = "fold"


Block = Chart | Panels | Rows | Gallery | Note | Heading | Points | Facts | Code | Fold


@dataclass(frozen=True)
class Section:
    """A chapter of the page: its title, one sentence on what to look for, and its blocks."""

    title: str
    look: str
    blocks: Sequence[Block]

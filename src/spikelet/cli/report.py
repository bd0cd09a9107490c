"""`spikelet report RUN...`: one page about finished runs; `teach`, `distill` write their own."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spikelet.cli.again import command_of
from spikelet.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console


FILE = "report.html"
OTHERS = (".pdf", ".png", ".svg", ".jpg", ".md", ".txt", ".tex", ".json", ".csv", ".docx")


def run(options: Namespace, console: Console) -> dict[str, Any]:
    """Write the page; the object for --json.

    Raises:
        UserError: for several runs without --out, and for a place that is a folder, cannot be
            written to or is named as no page.
    """
    runs = [Path(each) for each in options.runs]
    if options.out is None and len(runs) > 1:
        fix = "name the file to write, such as --out report.html"
        raise UserError("--out", "it is missing for several runs", fix)
    out = runs[0] / FILE if options.out is None else Path(options.out)
    if out.is_dir():
        raise UserError(f"--out {out}", "it is a folder", f"name a file, such as {out / FILE}")
    if out.suffix.lower() in OTHERS:
        fix = f"name a file such as {out.with_suffix('.html')}; a browser prints it as PDF"
        raise UserError(f"--out {out}", "the page is written as HTML", fix)
    from spikelet.story import write

    root = None if options.data_root is None else Path(options.data_root)

    def tell(words: str) -> None:
        console.print(words, markup=False, highlight=False, soft_wrap=True)

    try:
        file = write(runs, out, command_of, live=not options.stored, root=root, tell=tell)
    except OSError as error:
        what = f"it cannot be written ({error.strerror})"
        raise UserError(f"--out {out}", what, "name a file in a folder of yours") from error
    return {"file": str(file)}


def beside(run: str, console: Console) -> str | None:
    """Writes RUN/report.html, with pictures of the images it keeps; None after a sentence.

    A run that is finished stays so whatever happens here.
    """
    try:
        from spikelet.story import write

        return str(write([Path(run)], Path(run) / FILE, command_of, live=None))
    except Exception as error:
        what = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        words = f"no {FILE} was written ({what}); the run itself is complete"
        console.print(" ".join(words.split()), markup=False, highlight=False, soft_wrap=True)
        return None


def show(console: Console, result: Mapping[str, Any]) -> None:
    """Where the page is."""
    console.print(result["file"], markup=False, highlight=False, soft_wrap=True)

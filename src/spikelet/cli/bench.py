"""`spikelet bench train|memory|infer`: what a step costs, beside the ANN and other packages."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from spikelet.cli.parser import Parser, number
from spikelet.cli.runs import device_of
from spikelet.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from spikelet.bench import Setting

EPILOG = """\
What is timed is one batch of random images. The floor of T steps is T forwards of the ANN and
one backward, measured in the same process and precision; the ANN is measured first and last, and
the faster one counts. `kept` is what autograd holds for the backward pass, `peak` what one step
takes beyond the network itself (on a CPU what a process of its own holds), `tensors` its part in
tensors, `largest alive` how many tensors of the largest layer over all T steps exist at once.
`first` is the very first step, in which the fused scan is compiled. On a CPU freed memory stays
with the process. Others' neurons stand in the same network, with threshold 1 and soft reset. Run
it with nothing else on the machine."""
KINDS = "train (time, and memory kept), memory (kept, and peak) or infer (no gradient)"
WIDE = 110  # columns of the widest table
COLUMNS = (
    ("s", "seconds_median", ".4g"),
    ("first", "seconds_first", ".3g"),
    ("x ANN", "ratio_to_ann", ".2f"),
    ("x floor", "ratio_to_floor", ".2f"),
    ("x jelly", "ratio_to_jelly", ".2f"),
    ("x snntorch", "ratio_to_snntorch", ".2f"),
    ("MiB kept", "saved_mib", ".1f"),
    ("MiB peak", "peak_mib", ".1f"),
    ("MiB tensors", "tensors_mib", ".1f"),
    ("largest alive", "live_largest", "d"),
    ("images/s", "images_per_second", ".4g"),
)


def flags(parser: Parser) -> None:
    """The flags of the verb."""
    whole, add = number(int), parser.add_argument
    add("kind", metavar="WHAT", nargs="?", help=KINDS)
    add("--model", metavar="M", default="resnet18", help="of 32x32 images; default: resnet18")
    add("--width", type=whole, metavar="W", help="of the model; default: its own")
    add("--size", type=whole, default=32, metavar="N", help="of the images; default: 32")
    add("--batch", type=whole, default=16, metavar="N", help="images; default: 16")
    text = "time steps; default: 2 4 8 16"
    add("--steps", type=whole, nargs="+", default=[2, 4, 8, 16], metavar="T", help=text)
    text = "fp32 (default), bf16 or both"
    add("--precision", nargs="+", default=["fp32"], metavar="P", help=text)
    text = "ann, rate, hybrid (a training step of that method, with its teacher), bptt, "
    text += "jelly (SpikingJelly), snntorch; default: all that are installed"
    add("--engines", nargs="+", metavar="E", help=text)
    text = "measured steps of each, after two that warm up; default: 7"
    add("--repeats", type=whole, default=7, metavar="N", help=text)
    text = "the fused scans of rate and bptt: on (default), off or both"
    add("--fuse", default="on", metavar="F", help=text)
    add("--threads", type=whole, metavar="N", help="on the CPU; default: torch's")
    add("--device", metavar="cpu|cuda", help="default: cuda where there is one")
    text = "for bench.json and bench.svg, which are replaced; default: runs/bench-WHAT"
    add("--out", metavar="DIR", help=text)
    add("--quiet", action="store_true", help="no progress")
    parser.epilog = EPILOG


def run(options: Namespace, console: Console) -> dict[str, Any]:
    """Measure; the object for --json."""
    setting = setting_of(options)
    from spikelet.bench import bench

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    return bench(setting, folder(options, setting.kind), say)


def setting_of(options: Namespace) -> Setting:
    """What the flags ask to be measured."""
    from spikelet.bench.setting import ENGINES, KINDS, Setting

    if options.kind is None:
        raise UserError("what to measure", "it is missing", f"name one of {', '.join(KINDS)}")
    return Setting(
        kind=options.kind,
        model=options.model,
        width=options.width,
        size=options.size,
        batch=options.batch,
        steps=tuple(options.steps),
        precisions=tuple(options.precision),
        engines=tuple(options.engines or ENGINES),
        repeats=options.repeats,
        threads=options.threads,
        device=device_of(options) or _usual(),
        fuse=options.fuse,
    )


def _usual() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def folder(options: Namespace, kind: str) -> Path:
    """Where the files go."""
    out = Path(options.out or f"runs/bench-{kind}")
    nearest = next(place for place in (out, *out.absolute().parents) if place.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK):
        what = "is not writable" if nearest.is_dir() else "is a file"
        raise UserError(f"--out {out}", f"{nearest} {what}", "name another folder")
    return out


def show(console: Console, result: Mapping[str, Any]) -> None:
    """The table of the rows, and where the files are."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    rows = result["rows"]
    if not console.is_terminal:
        console.width = max(console.width, WIDE)
    shown = [each for each in COLUMNS if any(row.get(each[1]) is not None for row in rows)]
    table = Table(box=SIMPLE_HEAD)
    for head in ("engine", "precision", "T"):
        table.add_column(head, justify="right" if head == "T" else "left", no_wrap=True)
    for head, _, _ in shown:
        table.add_column(head, justify="right")
    for row in rows:
        table.add_row(*_cells(row, shown))
    console.print(f"{_about(rows[0])}; {result['machine']}", highlight=False, soft_wrap=True)
    console.print(table)
    for place in result["files"]:
        console.print(place, markup=False, highlight=False, soft_wrap=True)


def _about(row: Mapping[str, Any]) -> str:
    width = f" of width {row['width']}" if row["width"] else ""
    what = f"{row['model']}{width}, {row['size']}x{row['size']}, batch {row['batch']}"
    return f"{row['kind']}: {what}, median of {row['n']}, {row['threads']} threads"


def _cells(row: Mapping[str, Any], shown: Iterable[tuple[str, str, str]]) -> list[str]:
    name = row["engine"] + (", fused" if row["fused"] else "")
    numbers = ["" if row.get(key) is None else format(row[key], shape) for _, key, shape in shown]
    return [name, row["precision"], f"{row['steps']}", *numbers]

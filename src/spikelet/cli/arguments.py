"""The verbs, their flags and their help; nothing heavy is imported here."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence

from spikelet.cli import bench, fields
from spikelet.cli.parser import Parser, number
from spikelet.errors import UserError, unknown
from spikelet.examine import IMAGES, MEASURES
from spikelet.recipe import (
    DATA,
    DEFAULT_METHOD,
    ENCODERS,
    EXECUTES,
    METHODS,
    MODELS,
    NEURONS,
    TERMS,
)

VERBS = {
    "demo": "digits: teach, distil, measure, report; minutes on two cores",
    "teach": "train an ANN teacher",
    "distill": "make a spiking student of any teacher",
    "measure": "what a finished run can do: steps, noise, saliency, energy, health",
    "report": "one page about one finished run, or several side by side",
    "compare": "methods x steps x seeds under one teacher: one table, one page; resumable",
    "bench": "time and memory of training, or inference, beside SpikingJelly and snnTorch",
    "doctor": "what is installed, what is fast here, what is missing",
}
LEAVES = (
    "data.FIELD model.FIELD teacher.FIELD neuron.FIELD neuron.surrogate.FIELD terms.NAME.FIELD "
    "execute.FIELD encode.FIELD augment.NUMBER.FIELD training.FIELD ann.FIELD"
)


def overview() -> str:
    """What `spikelet --help` prints."""
    lines = [f"  spikelet {verb:9} {what}" for verb, what in VERBS.items()]
    return "\n".join(
        [
            "usage: spikelet VERB [flags]",
            "",
            "Name a trained ANN, get an accurate spiking network of 1 to 4 time steps.",
            "",
            *lines,
            "",
            "`spikelet VERB --help` lists the flags of a verb, `spikelet --version` the version.",
            "Exit status: 0 done, 2 a mistake that one sentence tells how to mend, 130 and 143",
            "stopped (the line to resume is printed), 1 a defect of spikelet.",
        ]
    )


def parse(verb: str, words: Sequence[str]) -> argparse.Namespace:
    """The fixed flags of a verb.

    Raises:
        UserError: for an unknown flag, with the nearest ones, or a value of a wrong type.
    """
    parser = parser_of(verb)
    options, surplus = parser.parse_known_args(list(words))
    if surplus:
        flag = surplus[0].partition("=")[0]
        if not flag.startswith("-"):
            fix = f"see `{parser.prog} --help`"
            fix = "write measures directly behind RUN" if verb == "measure" else fix
            raise UserError(flag, "this word belongs to no flag", fix)
        raise unknown(flag, flag, parser._option_string_actions)
    for flag in ("out", "teacher", "resume"):
        if getattr(options, flag, None) == "":
            raise UserError(f"--{flag}", "it is empty", "name one; is a variable not set?")
    return options


def parser_of(verb: str) -> Parser:
    """The parser of one verb."""
    if verb not in VERBS:
        raise unknown("verb", verb, VERBS)
    parser = Parser(
        prog=f"spikelet {verb}",
        description=VERBS[verb],
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    ADD[verb](parser)
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout, at the end")
    return parser


def _demo(parser: Parser) -> None:
    parser.add_argument("--out", metavar="DIR", default="runs/demo", help="default: runs/demo")
    parser.add_argument("--seeds", type=number(int), default=5, metavar="N", help="default: 5")
    parser.add_argument("--epochs", type=number(int), metavar="N", help="of each run")
    parser.add_argument("--steps", type=number(int), metavar="T", help="time steps")
    parser.add_argument("--quiet", action="store_true", help="no progress")


def _teach(parser: Parser) -> None:
    parser.add_argument(
        "--data", metavar="D", help=f"{', '.join(DATA)}, or package.module:function"
    )
    parser.add_argument("--model", metavar="M", help=f"{_models()}; default: per data set")
    parser.add_argument("--width", type=number(int), metavar="W", help="of the model")
    parser.add_argument(
        "--weights", metavar="FILE", help="to start from: safetensors, npz, pt, pth"
    )
    _training(parser, "teach")


def _distill(parser: Parser) -> None:
    text = "a run folder, or a model name with --weights FILE"
    parser.add_argument("--teacher", metavar="T", help=text)
    parser.add_argument(
        "--weights", metavar="FILE", help="of the teacher: safetensors, npz, pt, pth"
    )
    text = "default: the teacher's, with the same held-out part; or "
    parser.add_argument(
        "--data", metavar="D", help=f"{text}{', '.join(DATA)}, package.module:function"
    )
    parser.add_argument(
        "--model", metavar="M", help=f"another student than the teacher's architecture: {_models()}"
    )
    text = "run of a trained ANN that the student begins as, with its architecture"
    parser.add_argument("--ann", metavar="RUN", help=text)
    text = "of --model, or of the teacher where no --model is given"
    parser.add_argument("--width", type=number(int), metavar="W", help=text)
    text = f"{', '.join(METHODS)}; default: {DEFAULT_METHOD}"
    parser.add_argument("--method", metavar="M", default=DEFAULT_METHOD, help=text)
    parser.add_argument("--steps", type=number(int), metavar="T", help="time steps; default: 4")
    text = f"{', '.join(NEURONS)} or an import path; default: IF"
    parser.add_argument("--neuron", metavar="N", help=text)
    text = "how the gradient is taken: rate, bptt or an import path; default: docs/recipe.md"
    parser.add_argument("--execute", metavar="E", help=text)
    _beginning(parser)
    _training(parser, "distill")


def _beginning(parser: Parser) -> None:
    """What a student starts from, and sees."""
    add = parser.add_argument
    text = "converted (default; with --model an ANN is trained first, by --ann.FIELD) or scratch"
    add("--start", metavar="S", help=text)
    add("--calibrate", type=number(int), metavar="N", help="images for calibration")
    add("--norm", metavar="KIND", help="batch norm: auto (default), train, settled or frozen")
    text = "images that batch norm's statistics are estimated on before measuring; 0 for none"
    add("--estimate", type=number(int), metavar="N", help=f"{text}; default: 1024")
    text = f"{', '.join(ENCODERS)} or an import path; default: direct"
    add("--encode", metavar="E", help=text)
    text = "train the teacher along on the labels: true or false; default: false"
    add("--joint", metavar="B", help=text)


def _models() -> str:
    return f"{', '.join(MODELS)}, timm:NAME, torchvision:NAME or package.module:function"


def _training(parser: Parser, verb: str) -> None:
    """What `teach` and `distill` share."""
    add = parser.add_argument
    add("--out", metavar="RUN", help="run folder to write")
    add("--resume", metavar="RUN", help="continue this run; needs no other flag")
    add("--epochs", type=number(int), metavar="N", help="how often to see the data")
    add("--batch", type=number(int), metavar="N", help="images per step, of each process")
    text = "take a batch in N parts, one after the other, to save memory"
    add("--accumulate", type=number(int), metavar="N", help=text)
    text = "that share each step, one for each GPU or set of cores (or start by torchrun)"
    add("--processes", type=number(int), metavar="N", help=text)
    text = "its largest value, of one process; it grows with --processes (docs/processes.md)"
    add("--learning-rate", type=number(float), metavar="R", help=text)
    add("--precision", metavar="fp32|bf16", help="default: fp32")
    add("--seed", type=number(int), metavar="N", help="default: 0")
    text = "images held out of training; 0 for none"
    add("--validation", type=number(int), metavar="N", help=text)
    text = "folder of the data sets; default: SPIKELET_DATA or ~/.cache/spikelet"
    add("--data-root", metavar="DIR", help=text)
    add("--download", action="store_true", help="fetch data that are missing")
    add("--device", metavar="cpu|cuda", help="default: cuda where there is one")
    add("--quiet", action="store_true", help="no progress")
    parser.epilog = _epilog(verb)


def _epilog(verb: str) -> str:
    """How to override any leaf of the recipe."""
    lines = ["Any other leaf of the recipe is a flag too, with dashes or underscores:"]
    lines += textwrap.wrap(LEAVES, 92, initial_indent="  ", subsequent_indent="  ")
    lines += ["An import path package.module:name is looked for in the current folder too."]
    if verb == "teach":
        lines += ["Such as --training.weight-decay 1e-4 --augment crop flip cutout"]
        lines += ["          --data.protocol batch5 --model.width 32", "", *fields.lines()]
        return "\n".join(lines)
    lines += [
        "Such as --training.optimiser adamw --neuron.signed True --terms.logits.tau 4",
        "        --terms.hybrid.weight 0.5 --neuron.surrogate.kind arctangent",
        "        --terms.extra.kind my.package:Term --terms.extra.weight 2",
        "        --data.protocol batch5 --augment crop flip cutout",
        "",
        "terms of each method (cross entropy is `ce`):",
        *(f"  {name:27}{' '.join(terms)}" for name, terms in METHODS.items()),
        f"kinds of terms: {', '.join(TERMS)}; of execute: {', '.join(EXECUTES)}",
        "",
        *fields.lines(),
    ]
    return "\n".join(lines)


def _measure(parser: Parser) -> None:
    parser.add_argument("run", metavar="RUN", help="a finished run folder")
    text = f"{', '.join(MEASURES)}, or package.module:function; default: all that suit the run"
    parser.add_argument("what", metavar="WHAT", nargs="*", help=text)
    text = "other runs made with the same data, such as a plain student, to compare with; more "
    text += "seeds of it and of RUN give noise and saliency an interval over seeds"
    parser.add_argument("--versus", metavar="RUN", nargs="+", help=text)
    text = "the first N images of the split (`noise` shows half of them at each level); default: "
    text += f"{IMAGES}, for `steps` all"
    parser.add_argument("--images", type=number(int), metavar="N", help=text)
    text = "numbers of time steps, from one run; default: 1 to those of the training"
    parser.add_argument("--steps", type=number(int), nargs="+", metavar="T", help=text)
    parser.add_argument("--split", choices=("test", "validation"), default="test")
    parser.add_argument("--data-root", metavar="DIR", help="where the data are now")
    parser.add_argument("--device", metavar="cpu|cuda", help="default: cuda where there is one")
    parser.add_argument("--quiet", action="store_true", help="no progress")


def _report(parser: Parser) -> None:
    parser.add_argument("runs", metavar="RUN", nargs="+", help="finished run folders")
    text = "the file to write; default for one run: RUN/report.html"
    parser.add_argument("--out", metavar="FILE", help=text)
    text = "show what is stored alone; run no network for saliency maps and spikes"
    parser.add_argument("--stored", action="store_true", help=text)
    parser.add_argument("--data-root", metavar="DIR", help="where the data are now")
    parser.add_argument("--quiet", action="store_true", help="no progress")


def _compare(parser: Parser) -> None:
    """The grid, its tuning, and how it is computed."""
    whole, real, add = number(int), number(float), parser.add_argument
    text = f"{', '.join(METHODS)}, a+b for the terms of both, or package.module:Term"
    add(
        "--methods", metavar="M", nargs="+", help=f"{text}; none, convert and qann always take part"
    )
    add("--steps", type=whole, nargs="+", metavar="T", help="time steps; default: 4")
    add("--seeds", type=whole, default=3, metavar="N", help="counted from 0; default: 3")
    add("--out", metavar="DIR", help="folder of the grid; one that is there may grow")
    add("--resume", metavar="DIR", help="continue this grid; needs no other flag")
    text = "a run folder, or a model name with --weights FILE; default: train one in DIR/teacher"
    add("--teacher", metavar="T", help=text)
    add("--weights", metavar="FILE", help="of the teacher: safetensors, npz, pt, pth")
    add("--teacher-epochs", type=whole, metavar="N", help="of a teacher trained here")
    _compare_students(parser)
    text = "weights of the distillation terms tried for each method, on the validation part"
    add("--tune", type=whole, default=0, metavar="N", help=f"{text}; default: 0")
    text = "learning rates tried for each method, with each weight"
    add("--tune-rates", type=real, nargs="+", metavar="R", help=text)
    add("--tune-epochs", type=whole, metavar="N", help="of tuning runs; default: --epochs")
    text = "no cell begins after these; one at work gets a tenth more, then stops to be resumed"
    add("--budget-minutes", type=real, metavar="M", help=text)
    text = "worker processes of one thread (or OMP_NUM_THREADS); default: one for each device"
    add("--jobs", type=whole, metavar="K", help=text)
    text = "one or several, cpu or cuda:0 cuda:1; default: cuda where there is one"
    add("--device", metavar="D", nargs="+", help=text)
    add("--quiet", action="store_true", help="no progress")
    parser.epilog = _epilog("compare")


def _compare_students(parser: Parser) -> None:
    """What `compare` has in common with `distill`."""
    whole, real, add = number(int), number(float), parser.add_argument
    add("--data", metavar="D", help=f"{', '.join(DATA)}, package.module:function")
    text = "of the teacher trained here, or of the students of a given --teacher"
    add("--model", metavar="M", help=f"{text}: {_models()}")
    add("--width", type=whole, metavar="W", help="of --model")
    add("--epochs", type=whole, metavar="N", help="of every student")
    add("--batch", type=whole, metavar="N", help="images per step")
    add("--learning-rate", type=real, metavar="R", help="of every student; default: the data's")
    add("--precision", metavar="fp32|bf16", help="default: fp32")
    add("--neuron", metavar="N", help=f"{', '.join(NEURONS)} or an import path; default: IF")
    text = "how the gradient is taken, for methods that leave it open: rate, bptt, an import path"
    add("--execute", metavar="E", help=text)
    _beginning(parser)
    add("--validation", type=whole, metavar="N", help="images held out of training")
    text = "folder of the data sets; default: SPIKELET_DATA or ~/.cache/spikelet"
    add("--data-root", metavar="DIR", help=text)
    add("--download", action="store_true", help="fetch data that are missing")


def _doctor(parser: Parser) -> None:
    text = "folder of the data sets; default: SPIKELET_DATA or ~/.cache/spikelet"
    parser.add_argument("--data-root", metavar="DIR", help=text)


ADD = {
    "demo": _demo,
    "teach": _teach,
    "distill": _distill,
    "measure": _measure,
    "report": _report,
    "compare": _compare,
    "bench": bench.flags,
    "doctor": _doctor,
}

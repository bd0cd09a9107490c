"""The entry point: verbs in, exit codes out."""

from __future__ import annotations

import contextlib
import errno
import shlex
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

from spikelet.cli import many
from spikelet.cli.arguments import overview, parse, parser_of
from spikelet.cli.leaves import Leaf, split
from spikelet.cli.output import (
    output_console,
    progress_console,
    sentence,
    show,
    write_error,
    write_object,
)
from spikelet.cli.typed import told
from spikelet.errors import UserError, unknown

MENDABLE, DEFECT, INTERRUPTED, TERMINATED = 2, 1, 130, 143
WITH_LEAVES = ("teach", "distill", "compare")
RUN_FILES = ("recipe.json", "compare.json")


class Terminated(BaseException):
    """SIGTERM came while no training was there to hear it."""


def main(words: Sequence[str] | None = None) -> int:
    """Run one command of the command line; the exit status."""
    given = list(sys.argv[1:] if words is None else words)
    stdout, later = sys.stdout, many.number() > 0
    as_json = "--json" in given and not later
    quiet = as_json or later
    place = contextlib.redirect_stdout(sys.stderr) if quiet else contextlib.nullcontext()
    try:
        with place, _terminating():
            return _run(given, as_json, stdout)
    except UserError as error:
        many.let_the_first_speak()
        write_error(told(error, given), as_json, stdout)
        return MENDABLE
    except (KeyboardInterrupt, Terminated) as stop:
        status = INTERRUPTED if isinstance(stop, KeyboardInterrupt) else TERMINATED
        return _stopped(_line(given), status, as_json, stdout)
    except BrokenPipeError:
        return DEFECT
    except Exception as error:
        return _failed(error, given, as_json, stdout)


def _run(given: list[str], as_json: bool, stdout: TextIO) -> int:
    """Help, the version, or a verb."""
    if not given or given[0] in ("-h", "--help", "help"):
        print(overview(), file=stdout)
        return 0 if given else MENDABLE
    if given[0] == "--version":
        from spikelet import __version__

        print(f"spikelet {__version__}", file=stdout)
        return 0
    verb, rest = given[0], given[1:]
    if verb.startswith("-"):
        raise unknown(verb, verb, ["--help", "--version"])
    if "-h" in rest or "--help" in rest:
        print(parser_of(verb).format_help(), file=stdout)
        return 0
    parser_of(verb)
    rest, leaves = split(rest) if verb in WITH_LEAVES else (rest, [])
    return _answer(given, rest, leaves, stdout)


def _answer(given: list[str], rest: list[str], leaves: list[Leaf], stdout: TextIO) -> int:
    """Run a verb, in several processes where that is asked for, and print what it found."""
    verb, options = given[0], parse(given[0], rest)
    processes = many.to_launch(verb, options, leaves)
    if processes != 1:
        return many.launched(given, processes)
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # import paths find modules of the user's own folder
    quiet = getattr(options, "quiet", False) or many.number() > 0
    console = progress_console(quiet)
    if verb == "doctor":
        from spikelet import doctor

        result = doctor.examine(options.data_root)
        render: Callable[..., None] = doctor.show
    elif verb == "demo" and not quiet:  # it shows its table itself
        where = console if options.json else output_console(stdout)
        result, render = _result(verb, options, leaves, where), lambda *_: None
    else:
        result, render = _result(verb, options, leaves, console), show
    status = 0
    if many.number():
        return status
    if verb == "compare":
        from spikelet.cli import compare

        render, status = compare.show, compare.status(result)
    if verb == "measure":
        from spikelet.cli import measure

        render = measure.show
    if verb == "report":
        from spikelet.cli import report

        render = report.show
    if verb == "bench":
        from spikelet.cli import bench

        render = bench.show
    if options.json:
        render(console, result)
        write_object(result, stdout)
    else:
        render(output_console(stdout), result)
    return status


def _result(verb: str, options: Any, leaves: list[Leaf], console: Any) -> dict[str, Any]:
    """The object of a verb that makes or reads runs."""
    if verb == "demo":
        from spikelet.cli import demo

        return demo.run(options, console)
    if verb == "measure":
        from spikelet.cli import measure

        return measure.run(options, console)
    if verb == "report":
        from spikelet.cli import report

        return report.run(options, console)
    if verb == "bench":
        from spikelet.cli import bench

        return bench.run(options, console)
    if verb == "compare":
        from spikelet.cli import compare

        return compare.run(options, leaves, vars(parse(verb, [])), console)
    with many.together(options.device):
        result = _trained(verb, options, leaves, console)
    if not result.get("finished") and not many.number():
        from spikelet.cli.report import beside

        file = beside(result["run"], console)
        return result if file is None else {**result, "files": [file]}
    return result


def _trained(verb: str, options: Any, leaves: list[Leaf], console: Any) -> dict[str, Any]:
    """The object of `teach` and `distill`, begun or resumed."""
    if options.resume is not None:
        from spikelet.cli.runs import resumed

        return resumed(verb, options, leaves, vars(parse(verb, [])), console)
    if verb == "teach":
        from spikelet.cli import teach

        return teach.run(options, leaves, console)
    from spikelet.cli import distill

    return distill.run(options, leaves, console)


@contextlib.contextmanager
def _terminating() -> Iterator[None]:
    """Hear SIGTERM also outside of training; the handler before is put back."""

    def hear(number: int, frame: Any) -> None:
        raise Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, hear)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _line(given: Sequence[str]) -> str:
    """The line that continues what was stopped: by --resume where a run was begun."""
    verb = given[0]
    for flag in ("--out", "--resume"):
        if flag in given[1:-1]:
            run = given[list(given).index(flag) + 1]
            if verb in WITH_LEAVES and any((Path(run) / name).exists() for name in RUN_FILES):
                return shlex.join(["spikelet", verb, "--resume", run])
    return shlex.join(["spikelet", *given])


def _stopped(line: str, status: int, as_json: bool, stdout: TextIO) -> int:
    """Say how to go on; of several processes, which agree to stop, the first one does."""
    many.let_the_first_speak()
    if many.number():
        return status
    print(f"spikelet: stopped; continue with: {line}", file=sys.stderr)
    if as_json:
        parts = {"argument": "run", "message": "it was stopped", "fix": line}
        write_object({"error": parts}, stdout)
    return status


def _failed(error: Exception, given: Sequence[str], as_json: bool, stdout: TextIO) -> int:
    """What an exception means: stopped in training, a machine too small, or our defect."""
    name = type(error).__name__
    if name == "Interrupted":
        line = str(error) if given[0] in WITH_LEAVES else shlex.join(["spikelet", *given])
        return _stopped(line, int(getattr(error, "code", INTERRUPTED)), as_json, stdout)
    many.let_the_first_speak()
    if name == "OutOfMemoryError":
        fix = "give a smaller --batch or --device cpu"
        write_error(UserError("--batch", "the device's memory is full", fix), as_json, stdout)
        return MENDABLE
    if isinstance(error, PermissionError) or (
        isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EROFS, errno.EDQUOT)
    ):
        where = UserError(
            str(error.filename or "--out"), str(error.strerror), "choose another place"
        )
        write_error(where, as_json, stdout)
        return MENDABLE
    traceback.print_exception(error)
    defect = UserError(
        name, f"a defect of spikelet ({error})", "please report it with the text above"
    )
    print(sentence(defect), file=sys.stderr)
    if as_json:
        parts = {"argument": name, "message": str(error), "fix": defect.fix}
        write_object({"error": parts}, stdout)
    return DEFECT

"""The rules of the house: layers, a light import, documented names, small files, true docs."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import re
import resource
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import spikelet

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "spikelet"

LAYERS = (
    "spike encode recipe errors heap folder processes dither late compiling",
    "neuron norm models data checkpoint nested vision inplace",
    "given graph cuts obstacles trace layout dual anchor slopes kernels windows carry folding "
    "unroll shared",
    "rate convert stepwise",
    "execute quantise",
    "terms measure",
    "distill inspect export",
    "train report",
    "demo compare bench examine story",
    "cli doctor __main__",
)
LAYER = {unit: level for level, units in enumerate(LAYERS) for unit in units.split()}

needs_cli = pytest.mark.skipif(
    not (SOURCE / "cli").exists(), reason="src/spikelet/cli.py is not written yet"
)


# ---- layers -------------------------------------------------------------------------------


def unit_of(path: Path) -> str:
    """The module or package directly under spikelet that a file belongs to."""
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def source_files() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def absolute(node: ast.ImportFrom, path: Path) -> str:
    """The full name of the module that a `from ... import` names in this file."""
    if not node.level:
        return node.module or ""
    package = ("spikelet", *path.relative_to(SOURCE).parts[:-1])
    kept = package[: len(package) - node.level + 1]
    return ".".join([*kept, *([node.module] if node.module else [])])


def imported(path: Path) -> Iterator[str]:
    """Every spikelet module that a file imports, under functions too, as a dotted name.

    Yields `spikelet:NAME` for `from spikelet import NAME`.
    """
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("spikelet"))
        elif isinstance(node, ast.ImportFrom):
            module = absolute(node, path)
            if module == "spikelet":
                yield from (f"spikelet:{alias.name}" for alias in node.names)
            elif module.startswith("spikelet."):
                yield module


def arrows() -> Iterator[tuple[Path, str, str]]:
    """(file, its unit, the unit it imports) for imports between two units that have a layer."""
    for path in source_files():
        unit = unit_of(path)
        if unit not in LAYER:
            continue
        for name in imported(path):
            parts = name.replace(":", ".").split(".")
            target = parts[1] if len(parts) > 1 else "__init__"
            if target not in {unit, "__version__"}:
                yield path, unit, target


def test_every_module_has_a_layer() -> None:
    units = {unit_of(path) for path in source_files()} - {"__init__"}
    assert not units - set(LAYER), "give these modules a place in LAYERS"


def test_imports_point_downward() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}: {unit} (layer {LAYER[unit]}) imports {target}"
        for path, unit, target in arrows()
        if LAYER[unit] < LAYER.get(target, 99)
    ]
    assert not wrong, "\n".join(wrong)


def test_siblings_have_no_cycles() -> None:
    graph: dict[str, set[str]] = {}
    for _, unit, target in arrows():
        if unit != "cli" and LAYER[unit] == LAYER.get(target):
            graph.setdefault(unit, set()).add(target)
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"import cycle: {' -> '.join(error.args[1])}")


def test_source_imports_modules_by_their_full_name() -> None:
    """`from spikelet import rate` gives the verb, not the module: inside src say which."""
    wrong = [
        f"{path.relative_to(ROOT)}: {name}"
        for path in source_files()
        for name in imported(path)
        if path != SOURCE / "__init__.py"
        and (name == "spikelet" or ":" in spikelet._PUBLIC.get(name.partition(":")[2], ""))
    ]
    assert not wrong, "\n".join(wrong)


# ---- the face and the command line --------------------------------------------------------


def answer(code: str) -> str:
    """What a fresh interpreter prints."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip().splitlines()[-1]


def test_import_loads_no_torch() -> None:
    code = "import sys, spikelet; dir(spikelet); print([n for n in HEAVY if n in sys.modules])"
    heavy = ["torch", "numpy", "pydantic", "torchvision"]
    assert answer(code.replace("HEAVY", repr(heavy))) == "[]"


@needs_cli
def test_help_loads_no_torch() -> None:
    code = """
import sys
from spikelet.cli import main
sys.argv = ["spikelet", "--help"]
try:
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
print("torch" in sys.modules)
"""
    assert answer(code) == "False"


@needs_cli
def test_help_is_quick() -> None:
    """Under half a second of processor time, best of three: the load of the machine is not ours."""

    def used() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    seconds = []
    for _ in range(3):
        before = used()
        command("--help")
        seconds.append(used() - before)
    assert min(seconds) < 0.5, seconds


def command(*words: str) -> str:
    """Run the installed console script, which must exit 0; what it printed."""
    script = Path(sys.executable).with_name("spikelet")
    done = subprocess.run([script, *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"spikelet {' '.join(words)}: {done.stderr or done.stdout}"
    return done.stdout


def written(module: str) -> bool:
    """Whether the module is a file, not an absent one or an empty folder."""
    spec = importlib.util.find_spec(module)
    return spec is not None and spec.origin is not None


@pytest.mark.parametrize("name", spikelet._PUBLIC)
def test_public_name_is_there_and_documented(name: str) -> None:
    module, _, attribute = spikelet._PUBLIC[name].partition(":")
    if not written(module):
        pytest.skip(f"{module} is not written yet")
    thing = getattr(spikelet, name)
    documentation = thing.__doc__ or ""
    assert documentation.strip(), f"spikelet.{name} has no docstring"
    assert not documentation.startswith(f"{attribute}("), f"spikelet.{name}: not its own docstring"


def test_verb_survives_the_import_of_its_module() -> None:
    verbs = [
        name for name, target in spikelet._PUBLIC.items() if target.endswith(f".{name}:{name}")
    ]
    for name in verbs:
        if written(f"spikelet.{name}"):
            importlib.import_module(f"spikelet.{name}")
            assert callable(getattr(spikelet, name)), f"spikelet.{name} became a module"


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse((SOURCE / "__init__.py").read_text())
    (block,) = (
        node
        for node in tree.body
        if isinstance(node, ast.If) and getattr(node.test, "id", "") == "TYPE_CHECKING"
    )
    seen = {
        alias.asname: f"{node.module}.{alias.name}"
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen == {name: target.replace(":", ".") for name, target in spikelet._PUBLIC.items()}


# ---- files --------------------------------------------------------------------------------


@pytest.mark.parametrize("path", source_files(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_file_is_small(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 400


def project_files() -> list[Path]:
    """Files git tracks or would track; every file where there is no git (an sdist)."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    paths = (ROOT / name for name in listed.stdout.split("\0") if name)
    return [path for path in paths if path.is_file()]


def test_no_machine_paths_or_registries() -> None:
    """Nothing in the project depends on one machine's folders or on one package registry."""
    words = [
        "/work" + "/",
        "/opt" + "/pypi",
        "/root" + "/",
        "py" + "pi.org",
        "pythonhosted" + ".org",
    ]
    words += ["download.pytorch" + ".org", "--index" + "-url", "--extra-index" + "-url"]
    forbidden = re.compile("|".join(rf"(?<![\w.]){re.escape(word)}" for word in words))
    wrong = []
    for path in project_files():
        try:
            lines = path.read_text().splitlines()
        except UnicodeDecodeError:
            continue
        wrong += [
            f"{path.relative_to(ROOT)}:{number}: {found[0]}"
            for number, line in enumerate(lines, 1)
            if (found := forbidden.search(line))
        ]
    assert not wrong, "\n".join(wrong)


def test_requirements_are_exact() -> None:
    lines = [
        line.partition("#")[0].strip()
        for path in (ROOT / "requirements").glob("*.txt")
        for line in path.read_text().splitlines()
    ]
    loose = [line for line in lines if line and not re.fullmatch(r"[\w.-]+==[\w.]+", line)]
    assert not loose, f"not of the form name==version: {loose}"


# ---- the README ---------------------------------------------------------------------------


@cache
def shell_lines() -> tuple[str, ...]:
    """The command lines of the README's shell blocks, comments removed."""
    blocks = re.findall(
        r"^```(?:sh|bash|console)\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S
    )
    lines = (line.partition("#")[0].strip() for line in "".join(blocks).splitlines())
    return tuple(line for line in lines if line)


def test_readme_make_targets_exist() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    named = {line.split()[1] for line in shell_lines() if line.startswith("make ")}
    assert named, "the README names no make target"
    assert not named - targets


@needs_cli
def test_readme_verbs_exist() -> None:
    words = [line.split() for line in shell_lines() if re.match(r"(\.venv/bin/)?spikelet\s", line)]
    verbs = {line[1] for line in words if not line[1].startswith("-")}
    assert verbs, "the README shows no spikelet command"
    for verb in sorted(verbs):
        flags = {
            word for line in words if line[1] == verb for word in line if word.startswith("--")
        }
        text = command(verb, "--help")
        unknown = {flag for flag in flags if flag not in text}
        assert not unknown, f"`spikelet {verb} --help` does not mention {unknown}"

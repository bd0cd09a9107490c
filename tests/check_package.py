"""Build sdist and wheel and import the wheel in a clean environment. Run by `make test`.

The wheel is built from the sdist, so a file that either of them lacks is found. The clean
environment borrows the dependencies of the environment that runs this script, but not its
editable installation: a path listed in a .pth file has its own .pth files ignored.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]

IMPORT_ALL = """
import importlib, importlib.metadata, importlib.resources, pkgutil, sys
import spikelet
prefix = sys.argv[1]
assert spikelet.__file__.startswith(prefix), f"spikelet came from {spikelet.__file__}"
assert importlib.resources.files("spikelet").joinpath("py.typed").is_file(), "no py.typed"
assert importlib.metadata.version("spikelet") == spikelet.__version__, "versions differ"
for found in pkgutil.walk_packages(spikelet.__path__, "spikelet."):
    if not found.name.endswith("__main__"):
        module = importlib.import_module(found.name)
        assert module.__file__.startswith(prefix), f"{found.name} came from {module.__file__}"
"""


def run(*command: str | Path, cwd: Path) -> None:
    """Run a command; on failure print what it said and end with its exit code."""
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
    if done.returncode:
        print(done.stdout, done.stderr, f"failed: {' '.join(map(str, command))}", sep="\n")
        sys.exit(done.returncode)


def build(out: Path) -> Path:
    """Build sdist and, from it, the wheel; the path of the wheel."""
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT, cwd=out)
    assert len(list(out.glob("*.tar.gz"))) == 1, "no sdist was built"
    (wheel,) = out.glob("*.whl")
    return wheel


def missing(wheel: Path) -> set[str]:
    """Files of src/spikelet, and the licence, that the wheel lacks."""
    files = (path for path in (ROOT / "src").rglob("*") if path.is_file())
    expected = {
        path.relative_to(ROOT / "src").as_posix()
        for path in files
        if "__pycache__" not in path.parts and not path.name.startswith(".")
    }
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
    if not any(name.endswith("licenses/LICENSE") for name in held):
        expected.add("LICENSE")
    return expected - held


def import_clean(wheel: Path, folder: Path) -> None:
    """Install the wheel alone into a new environment and import each of its modules."""
    environment = (folder / "clean").resolve()
    venv.create(environment, with_pip=False)
    python = environment / "bin" / "python"
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = environment / "lib" / version / "site-packages"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python]
    run(*pip, "install", "--quiet", "--no-deps", "--no-index", wheel, cwd=folder)
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    run(python, "-I", "-c", IMPORT_ALL, str(environment), cwd=folder)
    if (ROOT / "src" / "spikelet" / "cli").exists():
        run(environment / "bin" / "spikelet", "--help", cwd=folder)


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        wheel = build(folder)
        if lacking := missing(wheel):
            sys.exit(f"{wheel.name} lacks {', '.join(sorted(lacking))}")
        import_clean(wheel, folder)
        print(f"package: {wheel.name} holds every module and imports in a clean environment")


if __name__ == "__main__":
    main()

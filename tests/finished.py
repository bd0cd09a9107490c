"""Finished runs on few digits, with names that would do harm where they are not escaped."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from spikelet.cli import main
from spikelet.data import Dataset, digits

SCRIPT = "<script>alert(1)</script>"
FOLDER = """a "quoted" <b>run<i> & 'more' $x$"""
DATA = ("--data", "finished:few", "--batch", "20", "--quiet")


def few() -> Dataset:
    """A user's own data: few images of digits; a class, the name and the licence hold markup."""
    every = digits(train=120, validation=20)
    test = every.test.at(torch.arange(100))
    classes = (SCRIPT, *every.classes[1:])
    harmful = {"name": "few<img src=x>", "licence": 'no "licence" <i>'}
    return dataclasses.replace(every, test=test, classes=classes, **harmful)


def quiet(*words: str) -> int:
    """A command of the command line, without progress."""
    return main([*words, "--quiet"])


def make(folder: Path) -> dict[str, Path]:
    """A teacher, a measured student beside a plain one, and a quantised one, for two steps."""
    found = {"teacher": folder / "teacher", "hybrid": folder / FOLDER}
    found |= {name: folder / name for name in ("none", "qann")}
    size = ("--model", "small-cnn", "--width", "4")
    assert main(["teach", *DATA, *size, "--epochs", "30", "--out", str(found["teacher"])]) == 0
    common = ("--teacher", str(found["teacher"]), "--steps", "2", "--calibrate", "64")
    common += ("--estimate", "64", "--epochs", "2")
    plain = ("--execute.fuse", "False")  # nothing to compile
    flags = {"hybrid": plain, "none": plain, "qann": ()}
    for method, more in flags.items():
        out = ("--out", str(found[method]))
        assert main(["distill", *DATA, *common, "--method", method, *more, *out]) == 0
    measured = [str(found["hybrid"]), "--versus", str(found["none"]), "--images", "60"]
    assert quiet("measure", *measured) == 0
    return found

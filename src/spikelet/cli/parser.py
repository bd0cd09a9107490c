"""A parser whose complaints are one sentence."""

from __future__ import annotations

import argparse
import math
import re
from typing import Any, NoReturn

from spikelet.errors import UserError

NUMBERS = {int: "a whole number", float: "a number"}
LARGEST = 2**63  # what torch takes as a seed or a size


class Parser(argparse.ArgumentParser):
    """Answers a wrong flag with a UserError instead of a usage page."""

    def error(self, message: str) -> NoReturn:
        found = re.match(r"argument ([^:]+): (.*)", message, re.DOTALL)
        if found is None:
            raise UserError(self.prog, message, f"see `{self.prog} --help`")
        raise UserError(found[1].split("/")[-1], found[2], f"see `{self.prog} --help`")


def number(kind: type) -> Any:
    """An argparse type of finite numbers whose complaint says what was expected."""

    def read(text: str) -> Any:
        expected = f"expected {NUMBERS[kind]}, found {text!r}"
        try:
            value = kind(text)
            finite = math.isfinite(value) and (kind is float or abs(value) < LARGEST)
        except (ValueError, OverflowError) as error:
            raise argparse.ArgumentTypeError(expected) from error
        if not finite:
            raise argparse.ArgumentTypeError(expected)
        return value

    return read

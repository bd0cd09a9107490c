"""What an operation costs: named constants of one source, and the precisions made of them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Constants:
    """Picojoules of single operations in 45 nm at 0.9 V.

    An access moves 64 bits: to a cache of 8 KB, 32 KB or 1 MB, and to DRAM, whose range is 1.3 to
    2.6 nJ.
    """

    source: str = (
        "M. Horowitz, Computing's energy problem (and what we can do about it), ISSCC 2014, "
        "figure 1.1.9: rough energy costs in 45 nm at 0.9 V (doi 10.1109/ISSCC.2014.6757323)"
    )
    multiply_fp32: float = 3.7
    add_fp32: float = 0.9
    multiply_int8: float = 0.2
    add_int8: float = 0.03
    add_int32: float = 0.1
    access_8kb: float = 10.0
    access_32kb: float = 20.0
    access_1mb: float = 100.0
    access_dram: float = 1300.0
    access_bits: int = 64


HOROWITZ = Constants()


@dataclass(frozen=True)
class Precision:
    """What a machine of one precision pays, in picojoules, and how many bits its numbers have.

    Attributes:
        name: what it is called.
        multiply, add: one multiplication, one addition; a comparison is as dear as an addition.
        weight, value, state: bits of a weight, of an image's or activation's entry, of a potential.
        constants: where the numbers come from, and what memory costs.
    """

    name: str
    multiply: float
    add: float
    weight: int
    value: int
    state: int
    constants: Constants = HOROWITZ

    @property
    def mac(self) -> float:
        """One multiply-accumulate."""
        return self.multiply + self.add

    def level(self, bits: int) -> float:
        """One multiply-accumulate by a whole number of that many bits: shift and add.

        One addition for each bit, zeros too, shifts for nothing; never dearer than a MAC.
        """
        return min(bits * self.add, self.mac)

    def memory(self, bits: float, access: float) -> float:
        """Moving that many bits at `access` picojoules for each `constants.access_bits`."""
        return bits / self.constants.access_bits * access


FP32 = Precision("fp32", HOROWITZ.multiply_fp32, HOROWITZ.add_fp32, 32, 32, 32)
INT8 = Precision("int8", HOROWITZ.multiply_int8, HOROWITZ.add_int8, 8, 8, 8)
INT8_32 = Precision("int8, 32-bit sums", HOROWITZ.multiply_int8, HOROWITZ.add_int32, 8, 8, 32)
PRECISIONS = (FP32, INT8, INT8_32)
"""fp32 is what papers use (4.6 pJ a MAC, 0.9 pJ an accumulate); int8 adds 8-bit numbers (0.23,
0.03), which overflow in a wide layer; the third adds into 32 bits (0.3, 0.1)."""

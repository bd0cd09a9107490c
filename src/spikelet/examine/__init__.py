"""Measures of a finished run: each is a function of (subject, tell), found by its name.

A measure of your own is named by its import path, `package.module:function`.
"""

from spikelet.examine.table import IMAGES, MEASURES, Tell, chosen, suits

__all__ = ["IMAGES", "MEASURES", "Tell", "chosen", "suits"]

"""Training: the loop, its schedule and average, its log, and the run folder."""

from spikelet.train.fit import fit
from spikelet.train.interrupt import Interrupted
from spikelet.train.load import Loaded, load
from spikelet.train.run import card, digest, env, read_json, read_recipe, write_json, write_recipe

__all__ = [
    "Interrupted",
    "Loaded",
    "card",
    "digest",
    "env",
    "fit",
    "load",
    "read_json",
    "read_recipe",
    "write_json",
    "write_recipe",
]

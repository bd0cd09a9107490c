"""A data set of one's own, from arrays in a file, in one function outside the package.

    spikelet teach --data examples.own_data:arrays --data.file digits.npz --model small-cnn \
        --width 8 --validation 100 --out runs/own

The file holds `images`, numbers of 0 to 255 "N H W" or "N H W C", and `labels` "N" from 0. What
the function is told are flags: `--data.file`, `--data.share`; `--validation`, as it takes that.
"""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from spikelet.data import Dataset, Split, channel_statistics, fingerprint, hold_out


def pixels(array: np.ndarray) -> Tensor:
    """Numbers "N H W" or "N H W C" as uint8 images "N C H W", which every data set holds."""
    images = torch.from_numpy(array.astype("uint8"))
    return images.unsqueeze(1) if images.ndim == 3 else images.permute(0, 3, 1, 2).contiguous()


def arrays(file: str, validation: int = 0, share: float = 0.2) -> Dataset:
    """A `share` of the images is the test, the same one in every run; all are of one size."""
    with np.load(file) as content:
        labels = torch.from_numpy(content["labels"].astype("int64"))
        every = Split(pixels(content["images"]), labels)
    train, test = hold_out(every, round(share * len(every)), seed=0)
    mean, std = channel_statistics(train.images)
    held = None
    if validation:
        train, held = hold_out(train, validation, seed=0)
    splits = {"train": train, "validation": held, "test": test}
    return Dataset(
        name=Path(file).stem,
        **splits,
        classes=tuple(str(k) for k in range(int(labels.max()) + 1)),
        mean=mean,
        std=std,
        licence="my own",
        hashes={name: fingerprint(split) for name, split in splits.items() if split is not None},
    )

"""How alike two networks represent the same images."""

from __future__ import annotations

from torch import Tensor

from spikelet.errors import UserError

NOTHING = 1e-20  # what rounding leaves of features that are the same for all images, relative


def linear_cka(x: Tensor, y: Tensor) -> float | None:
    """Linear centred kernel alignment (Kornblith et al., ICML 2019, section 3), 0 to 1.

    CKA = ||Y' X||_F^2 / (||X' X||_F ||Y' Y||_F) of features "N P" centred over images; invariant to
    rotation and isotropic scale. Computed by whichever of Gram "N N" and covariance "P P" is
    smaller, in float64. None where the features of one are the same for all images.

    Args:
        x, y: features "N ..." of the same images, of any shape behind N.

    Raises:
        UserError: if the numbers of images differ or are below 2.
    """
    if len(x) != len(y) or len(x) < 2:
        found = f"expected features of the same images, found {len(x)} and {len(y)}"
        raise UserError("x, y", found, "give both networks the same images, two or more")
    size = float(x.double().norm() * y.double().norm()) ** 2
    shared, own = _products(_centred(x), _centred(y))
    return shared / own if own > NOTHING * size else None


def _products(x: Tensor, y: Tensor) -> tuple[float, float]:
    """(||Y' X||^2, ||X' X|| ||Y' Y||) of centred features, by the smaller way."""
    if max(x.shape[1], y.shape[1]) < len(x):
        own = (x.T @ x).norm() * (y.T @ y).norm()
        return float((y.T @ x).square().sum()), float(own)
    left, right = x @ x.T, y @ y.T
    return float((left * right).sum()), float(left.norm() * right.norm())


def _centred(features: Tensor) -> Tensor:
    flat = features.flatten(1).double()
    return flat - flat.mean(0)

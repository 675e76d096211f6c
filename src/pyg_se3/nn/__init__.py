"""Equivariant layers on packed features; each is usable on its own in a PyG model."""

from pyg_se3.nn.attention import SE3Attention
from pyg_se3.nn.conv import TFNConv
from pyg_se3.nn.linear import EquivariantLinear
from pyg_se3.nn.norm import EquivariantNorm
from pyg_se3.nn.pooling import EquivariantPooling
from pyg_se3.nn.radial import RadialProfile, RadialWeights

__all__ = [
    "EquivariantLinear",
    "EquivariantNorm",
    "EquivariantPooling",
    "RadialProfile",
    "RadialWeights",
    "SE3Attention",
    "TFNConv",
]

"""Rotation-group mathematics: nothing here is learned."""

from pyg_se3.so3.clebsch_gordan import clebsch_gordan
from pyg_se3.so3.edge_frame import EdgeGeometry, polar_rotation, wigner_d
from pyg_se3.so3.spherical_harmonics import spherical_harmonics

__all__ = [
    "EdgeGeometry",
    "clebsch_gordan",
    "polar_rotation",
    "spherical_harmonics",
    "wigner_d",
]

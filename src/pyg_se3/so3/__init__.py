"""Rotation-group mathematics: nothing here is learned."""

from pyg_se3.so3.clebsch_gordan import clebsch_gordan
from pyg_se3.so3.edge_frame import EdgeGeometry, any_vanish, polar_rotation, wigner_d
from pyg_se3.so3.spherical_harmonics import spherical_harmonics
from pyg_se3.so3.stored_frames import frame_width, pack_frames, unpack_frames

__all__ = [
    "EdgeGeometry",
    "any_vanish",
    "clebsch_gordan",
    "frame_width",
    "pack_frames",
    "polar_rotation",
    "spherical_harmonics",
    "unpack_frames",
    "wigner_d",
]

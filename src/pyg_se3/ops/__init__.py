"""The kernel seam: one problem description, one reference, fast kernels behind one door."""

from pyg_se3.ops.attention_shape import AttentionShape
from pyg_se3.ops.dispatch import expands_radial, uses_tangents, wants_similar_edges
from pyg_se3.ops.inputs import AttentionInputs, ConvInputs
from pyg_se3.ops.operators import tfn_attention, tfn_conv
from pyg_se3.ops.options import KernelOptions
from pyg_se3.ops.packing import pack_plan
from pyg_se3.ops.plan import RadialGroup, RadialSharing, TFNPlan
from pyg_se3.ops.radial_expansion import RadialExpansion

__all__ = [
    "AttentionInputs",
    "AttentionShape",
    "ConvInputs",
    "KernelOptions",
    "RadialExpansion",
    "RadialGroup",
    "RadialSharing",
    "TFNPlan",
    "expands_radial",
    "pack_plan",
    "tfn_attention",
    "tfn_conv",
    "uses_tangents",
    "wants_similar_edges",
]

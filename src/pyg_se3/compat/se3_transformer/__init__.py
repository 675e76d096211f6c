"""NVIDIA's SE(3)-Transformer interface on the kernels of this package, without DGL.

The names, constructor arguments, parameter names and parameter layouts are NVIDIA's, and those of
the forks inside the RoseTTAFold family; only the computation is ours.
"""

from pyg_se3.compat.se3_transformer.graph import Graph
from pyg_se3.compat.se3_transformer.model import (
    AttentionBlockSE3,
    ConvSE3,
    ConvSE3FuseLevel,
    Fiber,
    LinearSE3,
    NormSE3,
    SE3Transformer,
    SE3TransformerPooled,
    get_populated_edge_features,
)

__all__ = [
    "AttentionBlockSE3",
    "ConvSE3",
    "ConvSE3FuseLevel",
    "Fiber",
    "Graph",
    "LinearSE3",
    "NormSE3",
    "SE3Transformer",
    "SE3TransformerPooled",
    "get_populated_edge_features",
]

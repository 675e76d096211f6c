"""Models and layers under NVIDIA's module names."""

from pyg_se3.compat.se3_transformer.model.fiber import Fiber
from pyg_se3.compat.se3_transformer.model.layers.attention import AttentionBlockSE3
from pyg_se3.compat.se3_transformer.model.layers.convolution import ConvSE3, ConvSE3FuseLevel
from pyg_se3.compat.se3_transformer.model.layers.linear import LinearSE3
from pyg_se3.compat.se3_transformer.model.layers.norm import NormSE3
from pyg_se3.compat.se3_transformer.model.transformer import (
    SE3Transformer,
    SE3TransformerPooled,
    get_populated_edge_features,
)

__all__ = [
    "AttentionBlockSE3",
    "ConvSE3",
    "ConvSE3FuseLevel",
    "Fiber",
    "LinearSE3",
    "NormSE3",
    "SE3Transformer",
    "SE3TransformerPooled",
    "get_populated_edge_features",
]

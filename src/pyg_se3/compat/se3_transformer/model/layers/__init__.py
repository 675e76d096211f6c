"""Layers under NVIDIA's module names."""

from pyg_se3.compat.se3_transformer.model.layers.attention import AttentionBlockSE3, AttentionSE3
from pyg_se3.compat.se3_transformer.model.layers.convolution import ConvSE3, ConvSE3FuseLevel
from pyg_se3.compat.se3_transformer.model.layers.linear import LinearSE3
from pyg_se3.compat.se3_transformer.model.layers.norm import NormSE3
from pyg_se3.compat.se3_transformer.model.layers.pooling import GPooling

__all__ = [
    "AttentionBlockSE3",
    "AttentionSE3",
    "ConvSE3",
    "ConvSE3FuseLevel",
    "GPooling",
    "LinearSE3",
    "NormSE3",
]

"""Whole models: the SE(3)-Transformer, its pooled form, and the Tensor Field Network."""

from pyg_se3.models.se3_transformer import SE3Transformer, SE3TransformerPooled
from pyg_se3.models.tfn import TFN

__all__ = ["SE3Transformer", "SE3TransformerPooled", "TFN"]

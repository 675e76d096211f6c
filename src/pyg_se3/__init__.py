"""pyg-se3: the SE(3)-Transformer, native to PyTorch Geometric."""

from pyg_se3.fiber import Fiber
from pyg_se3.models import TFN, SE3Transformer, SE3TransformerPooled
from pyg_se3.nn import SE3Attention, TFNConv
from pyg_se3.ops import KernelOptions

__version__ = "0.1.0"

__all__ = [
    "Fiber",
    "KernelOptions",
    "SE3Attention",
    "SE3Transformer",
    "SE3TransformerPooled",
    "TFN",
    "TFNConv",
    "__version__",
]

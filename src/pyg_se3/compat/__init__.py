"""Other people's checkpoints and interfaces; the only place that knows their names."""

from pyg_se3.compat import nvidia
from pyg_se3.compat.convert import Conversion, convert
from pyg_se3.compat.install import Installation, install, uninstall

__all__ = ["Conversion", "Installation", "convert", "install", "nvidia", "uninstall"]

"""The command ``pyg-se3``."""

from pyg_se3.cli.main import main

__all__ = ["main"]

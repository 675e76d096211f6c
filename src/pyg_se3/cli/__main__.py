"""``python -m pyg_se3.cli`` is ``pyg-se3``."""

from pyg_se3.cli.main import main

main()

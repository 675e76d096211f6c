"""Choose the subcommand."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import sys

COMMANDS = {
    "train": "train and test with a Hydra configuration: pyg-se3 train +experiment=qm9_homo",
    "evaluate": "redo the test of a checkpoint: pyg-se3 evaluate ckpt_path=.../best.ckpt",
    "benchmark": "speed and memory here, against other formulations: pyg-se3 benchmark --quick",
    "predict": "properties of your own molecules: pyg-se3 predict ckpt_path=... input=FILE",
    "convert": "checkpoints of NVIDIA's code to this package and back: pyg-se3 convert IN OUT",
    "fit": "train with Lightning's command line: pyg-se3 fit --config config.yaml",
}


def main(argv: list[str] | None = None) -> None:
    """Run ``pyg-se3``.

    Args:
        argv: Arguments; those of the process if None.
    """
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help"):
        print(usage())
        return
    if arguments[0] == "--version":
        from pyg_se3 import __version__

        print(f"pyg-se3 {__version__}")
        return
    command, rest = arguments[0], arguments[1:]
    if command not in COMMANDS:
        close = difflib.get_close_matches(command, COMMANDS, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        sys.exit(f"pyg-se3: unknown command {command!r}.{hint}\n\n{usage()}")
    # Imported late: --help should not wait for torch.
    name = f"pyg_se3.cli.{command}"
    module = importlib.import_module(name)
    # Hydra reads the arguments of the process. Processes that Lightning starts for data parallel
    # training run the main module with them.
    sys.argv = [f"pyg-se3 {command}", *rest]
    sys.modules["__main__"].__spec__ = importlib.util.find_spec(name)
    module.main()


def usage() -> str:
    """Help text."""
    width = max(map(len, COMMANDS))
    lines = ["usage: pyg-se3 COMMAND [ARGUMENTS]", ""]
    lines += [f"  {name:<{width}}  {text}" for name, text in COMMANDS.items()]
    lines += ["", "`pyg-se3 COMMAND --help` says more."]
    return "\n".join(lines)

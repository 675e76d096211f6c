"""``pyg-se3 evaluate``: redo the test of a run from its checkpoint alone."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from pyg_se3.cli.config import ConfigError, EvaluateConfig, validate
from pyg_se3.cli.run import build_trainer, launch, tell_results
from pyg_se3.data import MoleculeDataModule, MoleculesDataModule, QM9DataModule
from pyg_se3.training import load_module
from pyg_se3.training.callbacks import RunReport

DATA_MODULES: dict[str, tuple[type[MoleculeDataModule], str]] = {
    "QM9DataModule": (QM9DataModule, "qm9"),
    "MoleculesDataModule": (MoleculesDataModule, "molecules"),
}
"""Data modules by name, and where in ``paths.data`` their processed data lies."""

FILES = {
    "summary.md": "this table (summary.json: the same for programs)",
    "parity*.png": "predicted against true values",
    "test_predictions.csv": "every prediction",
}


def main() -> None:
    """Read the command line and test."""
    launch("evaluate", evaluate)


def evaluate(config: DictConfig) -> dict[str, Any]:
    """Test the model of a checkpoint on the test set it was made for.

    Args:
        config: Composed from ``conf/evaluate.yaml``; see :class:`EvaluateConfig`.

    Returns:
        The summary, as in ``summary.json``.

    Raises:
        ConfigError: If the configuration has unknown keys or values of a wrong type, or the folder
            has the results of a test already.
        FileNotFoundError: If there is no such checkpoint.
        ValueError: If it is no checkpoint, was made on other data, or its data set is not known.
    """
    validate(config, EvaluateConfig)
    folder = Path(config.paths.run)
    found = [path.name for pattern in FILES for path in sorted(folder.glob(pattern))]
    if found and not config.overwrite:
        raise ConfigError(
            f"{folder} has results already ({', '.join(found)}): overwrite=true replaces them"
        )
    module, checkpoint = load_module(config.ckpt_path, instantiate(config.kernel))
    record = checkpoint["hyper_parameters"]
    data = build_data(config, record)
    data.prepare_data()
    data.setup("test")
    _check_split(record, data)
    trainer = build_trainer(config)
    report = RunReport()
    trainer.callbacks += [report]  # type: ignore[attr-defined]
    trainer.test(module, datamodule=data, verbose=False)
    tell_results(folder, report.table, FILES)
    return report.summary


def build_data(config: DictConfig, record: dict[str, Any]) -> MoleculeDataModule:
    """The data module of a checkpoint, with what the configuration changes."""
    data = record["data"]
    name = "no data module" if data is None else data["class"]
    if name not in DATA_MODULES:
        raise ValueError(
            f"{config.ckpt_path} was made with {name}, evaluate knows {', '.join(DATA_MODULES)}; "
            "load the model with pyg_se3.training.load_model and test it on your own loader"
        )
    kind, folder = DATA_MODULES[name]
    given: Any = OmegaConf.to_container(config.data)
    changes = {key: value for key, value in given.items() if value is not None}
    foreign = sorted(changes.keys() - inspect.signature(kind).parameters.keys())
    if foreign:
        raise ValueError(f"data.{foreign[0]} is no option of {name}, which the checkpoint needs")
    changes.setdefault("root", str(Path(config.paths.data) / folder))
    return kind(**(data["config"] | changes))


def _check_split(record: dict[str, Any], data: Any) -> None:
    """The test must be on the molecules it was meant for: none of them trained on."""
    expected, found = record["data"]["description"]["split"], data.describe()["split"]
    if expected != found:
        raise ValueError(
            f"the data is split differently (fingerprint {found}) from how the checkpoint's was "
            f"({expected}); its test set may hold molecules it was trained on"
        )


if __name__ == "__main__":
    main()

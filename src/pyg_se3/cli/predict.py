"""``pyg-se3 predict``: properties of one's own molecules from a trained model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from rdkit import Chem
from torch_geometric.data import Data
from torch_geometric.loader import DataLoader

from pyg_se3.cli.config import ConfigError, PredictConfig, validate
from pyg_se3.cli.run import build_trainer, launch
from pyg_se3.data import FileSource
from pyg_se3.data.targets import ELEMENTS
from pyg_se3.training import load_module
from pyg_se3.training.report import write_own_predictions


def main() -> None:
    """Read the command line and predict."""
    launch("predict", predict)


def predict(config: DictConfig) -> Path:
    """Predict for the molecules of files and write a table.

    Args:
        config: Composed from ``conf/predict.yaml``; see :class:`PredictConfig`.

    Returns:
        Path of the table.

    Raises:
        ConfigError: If the configuration has unknown keys or values of a wrong type, or there is an
            output already.
        FileNotFoundError: If there is no such checkpoint or input.
        ValueError: If the checkpoint is none, or molecules cannot be used.
    """
    validate(config, PredictConfig)
    output = Path(config.output)
    if output.exists() and not config.overwrite:
        raise ConfigError(f"{output} exists already: overwrite=true replaces it")
    module, checkpoint = load_module(config.ckpt_path, instantiate(config.kernel))
    record = checkpoint["hyper_parameters"]
    molecules = read_molecules(config, record)
    trainer = build_trainer(config)
    if trainer.world_size > 1:
        raise ConfigError("predictions are made by one process: trainer.devices=1")
    loader = DataLoader(molecules, batch_size=config.batch_size)  # type: ignore[arg-type]
    batches = trainer.predict(module, dataloaders=loader)
    prediction = torch.cat([batch.cpu() for batch in batches or []])  # type: ignore[union-attr]
    write_own_predictions(
        output,
        [data.idx + 1 for data in molecules],
        [data.name for data in molecules],
        prediction,
        record["targets"],
        record["units"],
    )
    # Hydra makes a folder for every run; the table may be elsewhere.
    folder = Path(config.paths.run)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
    print(f"\n{len(molecules):,} predictions in {output}", flush=True)
    return output


def read_molecules(config: DictConfig, record: dict[str, Any]) -> list[Data]:
    """The molecules of the input as the graphs that the model was trained on.

    Args:
        config: See :func:`predict`.
        record: What the checkpoint says about itself.

    Raises:
        ValueError: If it does not say how its graphs were made, or there is no molecule.
    """
    if record["data"] is None:
        raise ValueError(
            f"{config.ckpt_path} does not say how its graphs were made; load the model with "
            "pyg_se3.training.load_model and give it your own"
        )
    made: dict[str, Any] = record["data"]["config"]
    table = Chem.GetPeriodicTable()
    elements = made.get("elements", ELEMENTS)
    paths: Any = OmegaConf.to_container(OmegaConf.create({"input": config.input}))
    source = FileSource(
        paths["input"],
        graph=made["graph"],
        bonds=made["bonds"],
        cutoff=made["cutoff"],
        charge=config.charge,
        elements=[e if isinstance(e, int) else table.GetAtomicNumber(e) for e in elements],
        skip_invalid=config.skip_invalid,
    )
    molecules = list(source.molecules())
    if source.num_skipped:
        print(f"{source.num_skipped:,} molecules were left out, for example:")
        print("\n".join(f"  {reason}" for reason in source.skipped), flush=True)
    if not molecules:
        raise ValueError(f"there is no molecule to predict in {config.input}")
    return molecules


if __name__ == "__main__":
    main()

"""The folder of a run: claimed once, and entered again only to continue."""

from __future__ import annotations

from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.plugins.environments import (
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from pytorch_lightning.utilities.rank_zero import rank_zero_only

from pyg_se3.cli.config import ConfigError
from pyg_se3.training.checkpoint import LAST, PREVIOUS, find_checkpoint, read_checkpoint
from pyg_se3.training.files import remove_leftovers, set_aside

_RUN_FILES = ("config.yaml", "metrics.csv", f"checkpoints/{LAST}", f"checkpoints/{PREVIOUS}")


def check_folder(config: DictConfig) -> None:
    """Refuse a folder that has a run already, or that the processes cannot agree on.

    In a folder that is accepted, tracebacks of an earlier start get numbers.

    Raises:
        ConfigError: If it is not clear which folder is meant, or something in it would be lost.
    """
    if config.resume and config.ckpt_path is not None:
        raise ConfigError(
            "give resume=true (goes on in run_dir) or ckpt_path=... (begins a new folder), not both"
        )
    if config.resume and _named_by_time(config):
        raise ConfigError("resume=true needs the folder of the run: run_dir=...")
    apart = processes_from_outside() > 1 or config.trainer.num_nodes > 1
    if apart and _named_by_time(config):
        raise ConfigError(
            "processes that torchrun or srun starts, or on several nodes, cannot agree on a folder "
            "named by the time: give run_dir=..."
        )
    if not _is_first():
        return
    if not config.resume:
        _refuse_earlier_run(Path(config.paths.run))
    _set_errors_aside(Path(config.paths.run))


def checkpoint_of(config: DictConfig) -> Path | None:
    """The checkpoint that the run continues from, None if it begins; tells which.

    Raises:
        FileNotFoundError: If ``ckpt_path`` does not exist.
        ValueError: If it is no checkpoint, or all checkpoints in the folder are damaged.
    """
    if config.ckpt_path is not None:
        read_checkpoint(config.ckpt_path)
        return Path(config.ckpt_path)
    if not config.resume:
        return None
    path, problems = find_checkpoint(Path(config.paths.run) / "checkpoints")
    if _is_first():
        _tell(Path(config.paths.run), path, problems)
    return path


def processes_from_outside() -> int:
    """Number of processes that torchrun or SLURM started for this run; 1 if neither did."""
    for environment in (TorchElasticEnvironment, SLURMEnvironment):
        if environment.detect():
            return environment().world_size()
    return 1


def _is_first() -> bool:
    # Lightning learns the node's number only when it makes the trainer.
    rank = getattr(rank_zero_only, "rank", None) or 0
    return rank == 0 and LightningEnvironment().node_rank() == 0


def _named_by_time(config: DictConfig) -> bool:
    hydra = HydraConfig.instance().cfg
    directory = str(OmegaConf.to_container(hydra, resolve=False)["hydra"]["run"]["dir"])  # type: ignore[index,call-overload]
    if directory == "${run_dir}":
        directory = str(OmegaConf.to_container(config, resolve=False)["run_dir"])  # type: ignore[index,call-overload]
    return "${now:" in directory


def _refuse_earlier_run(folder: Path) -> None:
    found = [name for name in _RUN_FILES if (folder / name).exists()]
    if found:
        raise ConfigError(
            f"{folder} has a run already ({', '.join(found)}): continue it with resume=true, or "
            "choose another folder with run_dir=..."
        )


def _set_errors_aside(folder: Path) -> None:
    """Keep the tracebacks of an earlier start under names that do not look like this one's."""
    for path in sorted(folder.glob("error*.log")):
        if "." not in path.stem:
            print(f"{folder} had an error before: {path.name} is now {set_aside(path).name}")


def _tell(folder: Path, path: Path | None, problems: list[str]) -> None:
    for problem in problems:
        print(f"warning: {problem}")
    if path is None:
        print(f"Nothing to resume in {folder}: the run begins", flush=True)
        return
    # A killed process cannot tidy up.
    for place in (folder, folder / "checkpoints"):
        remove_leftovers(place)
    print(f"Resuming at step {read_checkpoint(path)['global_step']:,} from {path}", flush=True)

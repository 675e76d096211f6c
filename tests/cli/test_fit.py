"""LightningCLI on the same classes."""

from __future__ import annotations

from pathlib import Path

import torch
import yaml

MINI = Path(__file__).parents[1] / "fixtures" / "qm9_mini.csv"


def arguments(data_root: Path) -> list[str]:
    return [
        "--trainer.accelerator=cpu", f"--data.raw_path={MINI}", f"--data.root={data_root}",
        "--data.split=[0.6,0.2,0.2]", "--data.batch_size=8", "--model.net.num_layers=1",
        "--model.net.num_channels=4", "--model.net.num_degrees=2", "--model.net.num_heads=2",
    ]  # fmt: skip


def test_fit_with_overrides_and_again_from_its_config(command, data_root, tmp_path):
    command(
        "fit", *arguments(data_root), "--trainer.max_epochs=1", "--data.target=gap",
        "--model.optimizer=AdamW", "--model.optimizer.lr=1e-3",
        "--model.scheduler=pyg_se3.training.WarmupCosine", "--model.scheduler.warmup=0.1",
        "--model.kernel.kernel=reference", "--trainer.default_root_dir=first",
    )  # fmt: skip
    first = tmp_path / "first"
    for name in ("config.yaml", "metrics.csv", "checkpoints/best.ckpt", "checkpoints/last.ckpt"):
        assert (first / name).is_file(), name
    checkpoint = torch.load(first / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["hyper_parameters"]["targets"] == ["gap"]
    assert checkpoint["hyper_parameters"]["model"]["config"]["num_channels"] == 4
    assert checkpoint["optimizer_states"][0]["param_groups"][0]["initial_lr"] == 1e-3
    assert "kernel" not in str(checkpoint["hyper_parameters"])

    command("fit", "--config=first/config.yaml", "--trainer.default_root_dir=second")
    again = torch.load(tmp_path / "second" / "checkpoints" / "last.ckpt", weights_only=True)
    for name, value in checkpoint["state_dict"].items():
        assert torch.equal(value, again["state_dict"][name])

    done = command("evaluate", "ckpt_path=first/checkpoints/best.ckpt", f"data.root={data_root}")
    assert "test MAE, gap" in done.stdout


def test_own_folder_and_callbacks(command, data_root, tmp_path):
    config = {
        "trainer": {
            "max_epochs": 1,
            "callbacks": [
                {"class_path": "pyg_se3.training.callbacks.ExponentialMovingAverage",
                 "init_args": {"decay": 0.9}}
            ],
        }
    }  # fmt: skip
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(config))
    done = command("fit", "--config=run.yaml", *arguments(data_root))
    (folder,) = (tmp_path / "runs" / "fit").iterdir()
    assert folder.name in done.stdout
    checkpoint = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)
    assert "raw_parameters" in checkpoint


def test_float16_is_not_replaced(command, data_root, tmp_path):
    short = ["--trainer.max_epochs=1", "--trainer.precision=16-mixed"]
    done = command("fit", *arguments(data_root), *short, "--trainer.default_root_dir=run")
    assert "bf16" not in done.stderr
    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["MixedPrecision"]["scale"] > 1


def test_own_molecules(command, tmp_path):
    blocks = [f"2\nenergy={0.1 * i}\nH 0 0 0\nH 0 0 {0.7 + 0.01 * i}\n" for i in range(8)]
    (tmp_path / "mine.xyz").write_text("".join(blocks))
    command(
        "fit", "--trainer.accelerator=cpu", "--trainer.max_epochs=1", "--model.net.num_layers=1",
        "--model.net.num_channels=4", "--model.net.num_degrees=2", "--model.net.num_heads=2",
        "--data=MoleculesDataModule", "--data.path=mine.xyz", "--data.target=energy",
        "--data.split=[4,2,2]", "--trainer.default_root_dir=run",
    )  # fmt: skip
    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["hyper_parameters"]["targets"] == ["energy"]
    command("evaluate", "ckpt_path=run/checkpoints/best.ckpt", "data.path=mine.xyz")


def test_mistakes(command):
    assert "'targt' is not accepted" in command("fit", "--data.targt=gap", code=2).stderr
    assert "valid targets" in command("fit", "--data.target=homoo", code=1).stderr

"""Early stopping, accumulation, averaging and the search for a learning rate, on real steps."""

from __future__ import annotations

import json
import shutil

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import EarlyStopping
from torch import nn

from pyg_se3.training import load_model, read_checkpoint
from pyg_se3.training.callbacks import (
    ExponentialMovingAverage,
    GradientNorm,
    LastCheckpoint,
    LearningRateSearch,
    TrainingRandomness,
    WeightAveraging,
)
from pyg_se3.training.callbacks.lr_finder import steepest
from pyg_se3.training.loggers import MetricsFile, read_metrics


def flat(module: nn.Module) -> torch.Tensor:
    return nn.utils.parameters_to_vector(module.parameters()).detach().clone()


class Gradients(pl.Callback):
    """Keeps the norm of what the optimizer is given."""

    def __init__(self) -> None:
        self.before, self.after = [], []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.before.append(self.norm(pl_module))

    def on_before_zero_grad(self, trainer, pl_module, optimizer):
        if any(p.grad is not None for p in pl_module.parameters()):
            self.after.append(self.norm(pl_module))

    @staticmethod
    def norm(module):
        grads = [p.grad.flatten() for p in module.parameters() if p.grad is not None]
        return float(torch.cat(grads).norm())


def test_gradient_norm_is_that_before_clipping(make_data, make_module, make_trainer, tmp_path):
    seen = Gradients()
    trainer = make_trainer(
        max_epochs=2,
        log_every_n_steps=2,
        gradient_clip_val=0.1,
        logger=MetricsFile(str(tmp_path)),
        callbacks=[GradientNorm(), seen],
    )
    trainer.fit(make_module(), datamodule=make_data())
    rows = read_metrics(tmp_path / "metrics.csv")
    found = {step: row["train/grad_norm"] for step, row in rows.items() if "train/grad_norm" in row}
    assert list(found) == [1, 3, 5, 7, 9]
    assert found == pytest.approx({step: seen.before[step] for step in found}, rel=1e-5)
    assert min(found.values()) > 0.1 and max(seen.after) < 0.11


def test_accumulated_gradients_are_those_of_the_larger_batch(make_data, make_module, make_trainer):
    weights = []
    for batch_size, accumulate in ((8, 1), (4, 2)):
        module = make_module()
        module.optimizer = lambda parameters: torch.optim.SGD(parameters, lr=1e-2)
        ema = ExponentialMovingAverage(0.9)
        trainer = make_trainer(
            max_epochs=2, accumulate_grad_batches=accumulate, callbacks=[GradientNorm(), ema]
        )
        trainer.fit(module, datamodule=make_data(batch_size=batch_size))
        assert trainer.global_step == ema.steps == 10
        weights.append(flat(module))
    torch.testing.assert_close(*weights, rtol=1e-4, atol=1e-5)


def test_early_stopping_with_averages(make_data, make_module, make_trainer, tmp_path):
    stop = EarlyStopping("val/mae", patience=2)
    ema = ExponentialMovingAverage(0.5)
    trainer = make_trainer(max_epochs=60, callbacks=[ema, stop, LastCheckpoint(str(tmp_path))])
    module = make_module(lr=0.1)
    trainer.fit(module, datamodule=make_data())
    assert 2 < trainer.current_epoch < 60 and stop.wait_count == 2
    saved = read_checkpoint(tmp_path / "last.ckpt")
    assert saved["global_step"] == trainer.global_step
    assert all(torch.equal(saved["state_dict"][n], p) for n, p in module.named_parameters())


class KeepAll(LastCheckpoint):
    def _save(self, trainer):
        super()._save(trainer)
        shutil.copy(self.path, self.path.with_name(f"{trainer.global_step:02}.ckpt"))


@pytest.fixture
def averaged(make_data, make_module, make_trainer, tmp_path):
    def run(name, epochs=4, callbacks=(), **kwargs):
        swa = WeightAveraging(str(tmp_path / name), swa_epoch_start=0.5, annealing_epochs=2)
        keep = KeepAll(str(tmp_path / name), every_n_steps=1)
        trainer = make_trainer(
            max_epochs=epochs, callbacks=[keep, TrainingRandomness(), swa, *callbacks]
        )
        module = make_module()
        trainer.fit(module, datamodule=make_data(), **kwargs)
        return tmp_path / name, module

    return run


@pytest.mark.filterwarnings("ignore:SWA is currently only supported every epoch")
def test_swa_averages_epochs_is_saved_and_resumes_exactly(averaged):
    folder, module = averaged("whole")
    # Of four epochs, those from the second on count, with the weights that they begin with.
    starts = [read_checkpoint(folder / f"{step:02}.ckpt") for step in (5, 10, 15)]
    for name, parameter in module.named_parameters():
        mean = torch.stack([start["state_dict"][name] for start in starts]).mean(0)
        torch.testing.assert_close(parameter.detach(), mean)
    net, checkpoint = load_model(folder / "swa.ckpt")
    assert torch.equal(flat(net), flat(module.net)) and checkpoint["global_step"] == 20
    rates = [
        read_checkpoint(folder / f"{step:02}.ckpt")["optimizer_states"][0]["param_groups"][0]["lr"]
        for step in (1, 20)
    ]
    assert rates[0] == 5e-3 and rates[1] < 4e-3
    for step in (8, 10, 17):
        resumed, again = averaged(f"from {step}", ckpt_path=folder / f"{step:02}.ckpt")
        assert torch.equal(flat(again), flat(module)), step
        last, other = (read_checkpoint(f / "last.ckpt")["state_dict"] for f in (folder, resumed))
        assert all(torch.equal(last[name], other[name]) for name in last), step


@pytest.mark.filterwarnings("ignore:SWA is currently only supported every epoch")
def test_swa_of_a_run_that_ends_early(averaged):
    class Stop(pl.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            trainer.should_stop = trainer.current_epoch == 2

    folder, module = averaged("early", callbacks=[Stop()])
    last = read_checkpoint(folder / "last.ckpt")["state_dict"]
    saved = read_checkpoint(folder / "swa.ckpt")["state_dict"]
    names = [name for name, _ in module.named_parameters()]
    assert all(torch.equal(saved[n], p) for n, p in module.named_parameters())
    assert not all(torch.equal(saved[n], last[n]) for n in names)


def test_averaging_is_done_in_one_way_and_counts_epochs(averaged, make_module, make_trainer,
                                                        make_data):  # fmt: skip
    with pytest.raises(ValueError, match="by ema or by swa, not both"):
        averaged("both", callbacks=[ExponentialMovingAverage()])
    with pytest.raises(ValueError, match=r"set trainer\.max_epochs"):
        averaged("steps", epochs=-1)
    with pytest.raises(ValueError, match="use it without ema"):
        make_trainer(
            max_epochs=9, callbacks=[LearningRateSearch(), ExponentialMovingAverage()]
        ).fit(make_module(), datamodule=make_data())


def test_learning_rate_search_reports_and_trains_nothing(
    make_data, make_module, make_trainer, tmp_path, capsys
):
    module = make_module()
    before = flat(module)
    trainer = make_trainer(
        max_epochs=20, callbacks=[LearningRateSearch(str(tmp_path), num_training_steps=60)]
    )
    trainer.fit(module, datamodule=make_data())
    assert torch.equal(flat(module), before)
    found = json.loads((tmp_path / "lr_finder.json").read_text())
    assert len(found["lr"]) == len(found["loss"]) > 30
    assert found["lr"] == sorted(found["lr"]) and 1e-6 < found["suggestion"] < 0.1
    assert f"optimizer.lr={found['suggestion']:.2g}" in capsys.readouterr().out
    assert (tmp_path / "lr_finder.png").read_bytes().startswith(b"\x89PNG")
    assert not list(tmp_path.glob(".lr_find*"))
    with pytest.raises(ValueError, match="5 steps are too few|10 steps are too few"):
        make_trainer(max_epochs=1, callbacks=[LearningRateSearch(str(tmp_path))]).fit(
            make_module(), datamodule=make_data()
        )


def test_steepest_finds_the_middle_of_the_fall():
    rates = torch.logspace(-6, 0, 100)
    noise = 0.01 * torch.randn(100, generator=torch.Generator().manual_seed(0))
    losses = 1 - torch.sigmoid(4 * (rates.log10() + 2.5)) + noise
    losses[:10] -= 0.5  # an average over few batches
    assert steepest(rates.tolist(), losses.tolist()) == pytest.approx(10**-2.5, rel=0.5)
    losses[-3:] = torch.nan
    assert steepest(rates.tolist(), losses.tolist()) == pytest.approx(10**-2.5, rel=0.5)
    with pytest.raises(ValueError, match="fell at no learning rate"):
        steepest(rates.tolist(), rates.tolist())
    with pytest.raises(ValueError, match="3 steps are too few"):
        steepest([1, 2, 3], [3, 2, 1])
    with pytest.raises(ValueError, match="0 < min_lr < max_lr"):
        LearningRateSearch(min_lr=1, max_lr=0.1)

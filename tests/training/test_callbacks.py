from __future__ import annotations

import math
import random
from types import SimpleNamespace

import numpy as np
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.strategies import FSDPStrategy
from torch import nn

from pyg_se3.training import WarmupCosine, read_checkpoint
from pyg_se3.training.callbacks import (
    BestCheckpoint,
    ExponentialMovingAverage,
    LastCheckpoint,
    ProgressBar,
    StopOnNonFinite,
    Throughput,
    TimeBudget,
)
from pyg_se3.training.callbacks.finite import NonFiniteLossError
from pyg_se3.training.callbacks.randomness import get_random_state, set_random_state
from pyg_se3.training.loggers import MetricsFile, read_metrics


class Record(pl.Callback):
    """Keeps the weights after every step, and those that validation sees."""

    def __init__(self) -> None:
        self.trained, self.validated = [], []

    def on_train_batch_end(self, trainer, pl_module, *args):
        self.trained.append(flat(pl_module))

    def on_validation_batch_start(self, trainer, pl_module, *args):
        if not trainer.sanity_checking:
            self.validated.append(flat(pl_module))


def flat(module: nn.Module) -> torch.Tensor:
    return nn.utils.parameters_to_vector(module.parameters()).detach().clone()


def test_ema_is_what_it_says_and_is_validated_saved_and_tested(
    make_data, make_module, make_trainer, tmp_path
):
    record, module = Record(), make_module(lr=1e-2)
    average = flat(module)
    trainer = make_trainer(
        max_epochs=1,
        callbacks=[
            ExponentialMovingAverage(0.4),
            record,
            LastCheckpoint(str(tmp_path)),
            BestCheckpoint(str(tmp_path)),
        ],
    )
    data = make_data(eval_batch_size=12)
    trainer.fit(module, datamodule=data)
    for step, weights in enumerate(record.trained, start=1):
        decay = min(0.4, (1 + step) / (10 + step))
        average = average + (1 - decay) * (weights - average)
    torch.testing.assert_close(flat(module), average)
    assert torch.equal(record.validated[0], flat(module))
    assert not torch.equal(record.trained[-1], flat(module))
    for name in ("last.ckpt", "best.ckpt"):
        checkpoint = read_checkpoint(tmp_path / name)
        for parameter, value in module.named_parameters():
            assert torch.equal(checkpoint["state_dict"][parameter], value)
        raw = [checkpoint["raw_parameters"][n] for n, _ in module.named_parameters()]
        assert torch.equal(nn.utils.parameters_to_vector(raw), record.trained[-1])
    expected = trainer.test(module, datamodule=data, verbose=False)
    # From the file, with the callback still there: the averages, too.
    with torch.no_grad():
        next(module.parameters()).add_(1.0)
    found = trainer.test(module, datamodule=data, ckpt_path=tmp_path / "best.ckpt", verbose=False)
    assert found == expected


def test_ema_does_not_change_the_weights_in_training(make_data, make_module, make_trainer):
    records = []
    for callbacks in ([], [ExponentialMovingAverage(0.9)]):
        records.append(Record())
        trainer = make_trainer(
            max_epochs=1, val_check_interval=2, callbacks=[*callbacks, records[-1]]
        )
        trainer.fit(make_module(), datamodule=make_data())
    assert all(map(torch.equal, records[0].trained, records[1].trained))


def test_ema_refuses_weights_that_are_divided(make_module):
    trainer = SimpleNamespace(strategy=FSDPStrategy())
    with pytest.raises(ValueError, match="trainer=ddp"):
        ExponentialMovingAverage().on_fit_start(trainer, make_module())


def test_processes_must_resume_from_one_checkpoint(monkeypatch, tmp_path):
    def gather(found, mine):
        found[:] = [mine, None]  # the other node sees no file

    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
    path = tmp_path / "last.ckpt"
    path.write_bytes(b"1234")
    trainer = SimpleNamespace(ckpt_path=path, world_size=2, default_root_dir=str(tmp_path))
    with pytest.raises(ValueError, match=r"\('last.ckpt', 4\), None.*all nodes share"):
        LastCheckpoint(str(tmp_path)).setup(trainer, None, "fit")


def test_ema_needs_averages_to_resume(make_data, make_module, make_trainer, tmp_path):
    make_trainer(max_epochs=1, callbacks=[LastCheckpoint(str(tmp_path))]).fit(
        make_module(), datamodule=make_data()
    )
    with pytest.raises(ValueError, match="without averaging"):
        make_trainer(max_epochs=2, callbacks=[ExponentialMovingAverage()]).fit(
            make_module(), datamodule=make_data(), ckpt_path=tmp_path / "last.ckpt"
        )


@pytest.mark.parametrize("every", [1, 3])
def test_loss_that_is_not_finite_stops_the_run_and_is_not_saved(
    every, make_data, make_module, make_trainer, tmp_path
):
    module = make_module()
    step = module.training_step

    def training_step(batch, batch_idx):
        out = step(batch, batch_idx)
        if module.global_step == 3:
            out["loss"] = out["loss"] * math.nan
        return out

    module.training_step = training_step
    trainer = make_trainer(
        max_epochs=3,
        callbacks=[StopOnNonFinite(every), LastCheckpoint(str(tmp_path), every_n_steps=1)],
    )
    with pytest.raises(NonFiniteLossError, match="learning rate.*resume=true"):
        trainer.fit(module, datamodule=make_data())
    checkpoint = read_checkpoint(tmp_path / "last.ckpt")
    assert checkpoint["global_step"] == 3
    assert all(v.isfinite().all() for v in checkpoint["state_dict"].values())


def stopped(trainer, module, data):
    with pytest.raises((NonFiniteLossError, torch.linalg.LinAlgError)) as error:
        trainer.fit(module, datamodule=data)
    found = error.value
    return str(found if isinstance(found, NonFiniteLossError) else found.__cause__)


def test_the_first_layer_that_is_not_finite_is_named(make_data, make_module, make_trainer):
    module = make_module()
    layer = module.net.get_submodule("transformer.blocks.1.to_query")

    def spoil(layer, inputs, output):
        if module.global_step == 3:
            return output * math.nan

    layer.register_forward_hook(spoil)
    message = stopped(
        make_trainer(max_epochs=2, callbacks=[StopOnNonFinite()]), module, make_data()
    )
    assert (
        "at step 3: the first layer whose output is not finite is transformer.blocks.1.to_query"
        in message
    )
    # Before the step: the weights are still good.
    assert all(p.isfinite().all() for p in module.parameters())


def test_weights_and_molecules_that_are_not_finite_are_named(make_data, make_module, make_trainer):
    module = make_module()
    name, weight = list(module.named_parameters())[4]
    weight.register_hook(lambda gradient: gradient * math.inf)
    message = stopped(
        make_trainer(max_epochs=1, callbacks=[StopOnNonFinite()]), module, make_data()
    )
    assert f"at step 1: a step made weights not finite ({name}" in message
    data = make_data()
    data.setup()
    data.dataset.store.y[data.split.train[7]] = math.nan
    message = stopped(
        make_trainer(max_epochs=1, callbacks=[StopOnNonFinite()]), make_module(), data
    )
    assert f"batch.y is not finite in molecules {int(data.split.train[7])}." in message


@pytest.mark.parametrize("averages", [[], [ExponentialMovingAverage(0.9)]])
def test_weights_that_a_gradient_spoilt_are_not_saved(
    averages, make_data, make_module, make_trainer, tmp_path
):
    module = make_module()
    name, weight = list(module.named_parameters())[4]
    weight.register_hook(lambda g: g * math.inf if module.global_step == 2 else g)
    # No look at the loss finds it before the step that saves.
    callbacks = [
        StopOnNonFinite(100),
        *averages,
        LastCheckpoint(str(tmp_path), every_n_steps=1),
        BestCheckpoint(str(tmp_path)),
    ]
    message = stopped(make_trainer(max_epochs=1, callbacks=callbacks), module, make_data())
    assert f"a checkpoint cannot be saved at step 3: a step made weights not finite ({name}" in (
        message
    )
    (saved,) = (path for path in tmp_path.glob("*.ckpt") if path.name != "previous.ckpt")
    checkpoint = read_checkpoint(saved)
    assert saved.name == "last.ckpt" and checkpoint["global_step"] == 2
    assert all(v.isfinite().all() for v in checkpoint["state_dict"].values())


def test_time_budget_ends_the_run_and_the_schedule(make_data, make_module, make_trainer):
    module = make_module(scheduler=lambda o: WarmupCosine(o, warmup=0.1, final=0.01))
    budget = TimeBudget(minutes=1.5 / 60)
    trainer = make_trainer(max_epochs=-1, callbacks=[budget])
    trainer.fit(module, datamodule=make_data())
    assert 1.5 <= budget.elapsed < 5
    assert budget.seconds_left == 0
    assert trainer.optimizers[0].param_groups[0]["lr"] < 0.2 * 5e-3
    assert trainer.callback_metrics["val/mae"].isfinite()


def test_time_budget_is_what_is_left_after_resuming():
    first, second = TimeBudget(10), TimeBudget(10)
    first._before = 540.0
    second.load_state_dict(first.state_dict())
    assert second.seconds_left == 60 and second.time_progress == pytest.approx(0.9)


def test_throughput_counts_molecules_of_training_only(
    make_data, make_module, make_trainer, tmp_path
):
    throughput = Throughput()
    logger = MetricsFile(str(tmp_path))
    trainer = make_trainer(max_epochs=2, log_every_n_steps=2, logger=logger, callbacks=[throughput])
    trainer.fit(make_module(), datamodule=make_data())
    # Five batches of eight an epoch; the clock starts at the end of the first.
    assert throughput.molecules == 2 * 4 * 8
    assert trainer.callback_metrics["train/molecules_per_second"] > 0
    # In every row that has a loss, whatever the number of batches per epoch.
    rows = [row for row in read_metrics(logger.path).values() if "train/loss" in row]
    assert len(rows) == 5
    assert all(row["train/molecules_per_second"] > 0 for row in rows)
    assert all(row["train/peak_memory_mb"] > 100 for row in rows)


def test_progress_bar_tells_speed_and_time_left(make_data, make_module, make_trainer):
    seen = []

    class Bar(ProgressBar):
        def get_metrics(self, trainer, pl_module):
            seen.append(super().get_metrics(trainer, pl_module))
            return seen[-1]

    trainer = make_trainer(max_epochs=2, enable_progress_bar=True, callbacks=[Bar(1), Throughput()])
    trainer.fit(make_module(), datamodule=make_data())
    assert any(float(m.get("mol/s", 0)) > 0 and ":" in m.get("left", "") for m in seen)


def test_random_states_come_back():
    state = get_random_state()
    first = (random.random(), np.random.rand(), torch.rand(1), random.gauss(0, 1))
    np.random.randn()
    set_random_state(state)
    assert first == (random.random(), np.random.rand(), torch.rand(1), random.gauss(0, 1))


def test_best_checkpoint_moves_with_the_run(make_data, make_module, make_trainer, tmp_path):
    def fit(folder, epochs, **kwargs):
        best = BestCheckpoint(str(tmp_path / folder))
        callbacks = [best, LastCheckpoint(str(tmp_path / folder))]
        make_trainer(max_epochs=epochs, callbacks=callbacks).fit(
            make_module(lr=kwargs.pop("lr", 1e-2)), datamodule=make_data(), **kwargs
        )
        return best

    first = fit("one", 3)
    last = tmp_path / "one" / "last.ckpt"
    second = fit("two", 3, ckpt_path=last)  # nothing left to train
    assert second.best_model_path == str(tmp_path / "two" / "best.ckpt")
    assert second.best_model_score == first.best_model_score
    assert read_checkpoint(second.best_model_path)["global_step"] > 0
    (tmp_path / "one" / "best.ckpt").unlink()
    with pytest.warns(UserWarning, match="starts anew"):
        fit("three", 3, ckpt_path=last)


@pytest.mark.parametrize(
    "make",
    [
        lambda: ExponentialMovingAverage(1.0),
        lambda: TimeBudget(0),
        lambda: StopOnNonFinite(0),
        lambda: LastCheckpoint(every_n_steps=0),
    ],
)
def test_settings_out_of_range(make):
    with pytest.raises(ValueError, match="must|at least"):
        make()

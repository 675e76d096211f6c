from __future__ import annotations

import pytest
import torch
from torch import nn

from pyg_se3.models import TFN
from pyg_se3.ops import KernelOptions
from pyg_se3.training import SE3Module, WarmupCosine
from pyg_se3.training.callbacks import StopOnNonFinite


class MeanOnly(nn.Module):
    """Predicts the mean, whatever it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.zero = nn.Parameter(torch.zeros(1))

    def forward(self, batch):
        return self.zero.expand(batch.num_graphs, 1)


def test_overfits_16_molecules(make_data, make_net, make_module, make_trainer):
    data = make_data(split=[16, 8, 8], batch_size=16)
    net = make_net(num_channels=8)
    module = make_module(net, lr=1e-2, scheduler=WarmupCosine)
    trainer = make_trainer(max_steps=250, max_epochs=-1, limit_val_batches=0)
    trainer.fit(module, datamodule=data)
    (batch,) = data.train_dataloader()
    with torch.no_grad():
        mae = float((module.eval()(batch) - batch.y).abs().mean())
    truth = batch.y
    spread = float((truth - truth.mean()).abs().mean())
    assert mae < 0.1 * spread, (mae, spread)


def test_200_steps_reduce_the_loss(make_data, make_module, make_trainer):
    data, module = make_data(batch_size=20), make_module(lr=5e-3)
    losses = []

    class Watch(StopOnNonFinite):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
            losses.append(float(outputs["loss"]))

    trainer = make_trainer(max_steps=200, max_epochs=-1, limit_val_batches=0, callbacks=[Watch()])
    trainer.fit(module, datamodule=data)
    assert len(losses) == 200
    assert sum(losses[-20:]) < 0.6 * sum(losses[:20])


def test_errors_are_in_the_targets_unit(make_data, make_module, make_trainer):
    data = make_data(target="zpve", eval_batch_size=5)  # uneven batches
    module = make_module(MeanOnly())
    trainer = make_trainer()
    (result,) = trainer.test(module, datamodule=data, verbose=False)
    y = data.test_set.y[:, 6]
    assert result["test/mae"] == pytest.approx(float((y - data.target_mean).abs().mean()))
    assert module.unit == "eV" and module.targets == ["zpve"]


def test_several_targets(make_data, make_net, make_module, make_trainer):
    data = make_data(target=["homo", "mu"])
    module = make_module(make_net(output_dim=2))
    (result,) = make_trainer().test(module, datamodule=data, verbose=False)
    errors = torch.tensor([result["test/mae/homo"], result["test/mae/mu"]])
    assert result["test/mae"] == pytest.approx(float((errors / data.target_std).mean()), rel=1e-5)
    assert module.units == ["eV", "D"]


def test_number_of_outputs_must_fit(make_data, make_net, make_module, make_trainer):
    with pytest.raises(ValueError, match=r"output_dim=3, the data 1 targets \(homo\)"):
        make_trainer().test(make_module(make_net(output_dim=3)), datamodule=make_data())


def test_models_that_answer_by_degree(make_data, make_module, make_trainer):
    net = TFN({0: 6}, {0: 4, 1: 4}, {0: 1}, fiber_edge={0: 4}, num_layers=1, pooling="mean")
    trainer = make_trainer(max_steps=2, max_epochs=-1)
    trainer.fit(make_module(net), datamodule=make_data())
    assert trainer.global_step == 2


@pytest.mark.parametrize("precision", ["bf16-mixed", "64"])
def test_precisions(precision, make_data, make_module, make_trainer):
    module = make_module()
    trainer = make_trainer(max_epochs=1, limit_train_batches=3, precision=precision)
    trainer.fit(module, datamodule=make_data())
    assert trainer.callback_metrics["val/mae"].isfinite()


def test_kernel_options_reach_the_model_and_need_one(make_net):
    options = KernelOptions(kernel="reference")
    module = SE3Module(make_net(), kernel=options)
    assert module.net.kernel_options == options
    with pytest.raises(TypeError, match="MeanOnly"):
        SE3Module(MeanOnly(), kernel=options)


def test_targets_are_needed(make_data, make_module, make_trainer):
    data = make_data()
    data.setup()
    with pytest.raises(ValueError, match="targets are unknown"):
        make_trainer(max_epochs=1).fit(make_module(), data.train_dataloader())
    with pytest.raises(ValueError, match="must be positive"):
        make_module(targets=["a"], units=["eV"], target_mean=[0.0], target_std=[0.0])
    with pytest.raises(ValueError, match="as many"):
        make_module(targets=["a"], units=["eV"], target_mean=[0.0, 1.0], target_std=[1.0])


def test_wrong_shape_of_the_answer(make_data, make_module, make_trainer):
    class Wrong(MeanOnly):
        def forward(self, batch):
            return self.zero.expand(batch.num_graphs, 2)

    with pytest.raises(ValueError, match=r"\[8, 2\].*\[8, 1\]"):
        make_trainer(max_epochs=1, num_sanity_val_steps=0).fit(
            make_module(Wrong()), datamodule=make_data()
        )


def test_schedule_needs_an_end(make_data, make_module, make_trainer):
    with pytest.raises(ValueError, match="trainer.max_epochs"):
        make_trainer(max_epochs=-1).fit(make_module(scheduler=WarmupCosine), datamodule=make_data())

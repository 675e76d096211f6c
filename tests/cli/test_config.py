"""Every configuration composes, is accepted by the checks, and can be built."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import hydra
import pytest
import pytorch_lightning as pl
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, open_dict

from pyg_se3.cli.config import (
    SCHEMAS,
    ConfigError,
    EvaluateConfig,
    PredictConfig,
    TrainConfig,
    check_overrides,
    config_dir,
    fits,
    validate,
)
from pyg_se3.cli.run import build_trainer
from pyg_se3.cli.train import build_net
from pyg_se3.ops import KernelOptions

GROUPS = ("callbacks", "data", "kernel", "logger", "model", "optimizer", "paths", "scheduler",
          "trainer")  # fmt: skip
EXPERIMENTS = sorted(p.stem for p in (config_dir() / "experiment").glob("*.yaml"))
OPTIONS = [
    f"{group}={path.stem}" for group in GROUPS for path in sorted((config_dir() / group).iterdir())
]
# Values that have no default.
NEEDED = {
    "callbacks=ema_time_budget": ["callbacks.time_budget.minutes=1"],
    "data=molecules": ["data.path=mine.sdf", "data.target=energy"],
    "data=molecules_on_disk": ["data.path=mine.sdf", "data.target=energy"],
}

NEEDS_OPTUNA = pytest.mark.skipif(
    importlib.util.find_spec("optuna") is None,
    reason="needs Hydra's Optuna plugin: pip install 'pyg-se3[sweeps]'",
)
OPTIONAL_LOGGERS = ("wandb", "mlflow")


def compose(name: str, overrides: list[str], run: Path | str = "runs/x") -> DictConfig:
    with hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
        return hydra.compose(name, [*overrides, f"paths.run={run}"])


def test_every_group_is_tested():
    found = {p.name for p in config_dir().iterdir() if p.is_dir()}
    assert found == {*GROUPS, "experiment", "hydra"}
    assert {"qm9", "qm9_homo", "qm9_homo_quick"} <= set(EXPERIMENTS)


@pytest.mark.parametrize(
    "overrides",
    [[o, *NEEDED.get(o, [])] for o in OPTIONS]
    + [
        pytest.param([f"+experiment={e}"], marks=NEEDS_OPTUNA if e.endswith("_sweep") else ())
        for e in EXPERIMENTS
    ],
    ids=lambda o: o[0],
)
def test_composes_and_builds(overrides, tmp_path):
    config = compose("train", overrides, tmp_path)
    validate(config, TrainConfig)
    data = instantiate(config.data, _convert_="all")
    net = build_net(config, {0: 6}, {0: 4}, data.num_targets)
    assert isinstance(instantiate(config.kernel), KernelOptions)
    optimizer = instantiate(config.optimizer)(net.parameters())
    assert isinstance(optimizer, torch.optim.Optimizer)
    assert instantiate(config.scheduler)(optimizer).optimizer is optimizer
    if config.trainer.accelerator == "gpu" and not torch.cuda.is_available():
        with pytest.raises(Exception, match="No supported gpu backend found"):
            build_trainer(config)
        return
    package = overrides[0].removeprefix("logger=")
    if package in OPTIONAL_LOGGERS and importlib.util.find_spec(package) is None:
        with pytest.raises(InstantiationException, match=f"pip install .*{package}"):
            build_trainer(config)
        return
    trainer = build_trainer(config)
    assert isinstance(trainer, pl.Trainer)
    assert len(trainer.loggers) == len(config.logger)
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize("kernel", sorted(p.stem for p in (config_dir() / "kernel").iterdir()))
def test_evaluate_composes(kernel):
    validate(compose("evaluate", ["ckpt_path=x.ckpt", f"kernel={kernel}"]), EvaluateConfig)


@pytest.mark.parametrize("kernel", sorted(p.stem for p in (config_dir() / "kernel").iterdir()))
def test_predict_composes(kernel):
    overrides = ["ckpt_path=x.ckpt", "input=[a.sdf,b.xyz]", f"kernel={kernel}"]
    validate(compose("predict", overrides), PredictConfig)


def test_callbacks_are_added_to_each_other():
    basic = set(compose("train", []).callbacks)
    both = compose("train", ["+experiment=qm9", "callbacks=[ema,early_stopping]"])
    assert set(both.callbacks) == basic | {"ema", "early_stopping"}
    quick = ["+experiment=qm9_homo_quick", "callbacks=[ema_time_budget,early_stopping]"]
    assert set(compose("train", quick).callbacks) == basic | {
        "ema", "early_stopping", "time_budget",
    }  # fmt: skip
    swa = compose("train", ["callbacks=swa"])
    assert set(swa.callbacks) == basic | {"swa"} and swa.test_weights == "last"
    finder = compose("train", ["callbacks=lr_finder"])
    assert set(finder.callbacks) == basic | {"lr_finder"} and finder.test is False


def test_extra_loggers_come_beside_the_usual_ones():
    for name in OPTIONAL_LOGGERS:
        assert set(compose("train", [f"logger={name}"]).logger) == {"csv", "tensorboard", name}


def test_nvidias_recipe():
    config = compose("train", ["+experiment=qm9_homo"])
    model, optimizer = config.model, instantiate(config.optimizer)
    assert (model.num_layers, model.num_degrees, model.num_channels) == (7, 4, 32)
    assert (model.num_heads, model.channels_div, config.data.batch_size) == (8, 2, 240)
    assert optimizer.keywords["lr"] == 2e-3 and optimizer.keywords["weight_decay"] == 0.1
    assert config.trainer.max_epochs == 100 and config.data.split == "nvidia"
    parameters = [torch.nn.Parameter(torch.zeros(1))]
    scheduler = instantiate(config.scheduler)(optimizer(parameters))
    assert 2e-3 * scheduler.factor(1.0) == pytest.approx(2e-4)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.num_chanels=3", "unknown key model.num_chanels; did you mean model.num_channels?"),
        ("+model.num_chanels=3", "did you mean model.num_channels?"),
        ("data.targt=gap", "did you mean data.target?"),
        ("trainer.max_epoch=3", "did you mean trainer.max_epochs?"),
        ("optimizer.learning_rate=1", "unknown key optimizer.learning_rate; known keys: "),
        ("callbacks.last.every_n_step=3", "did you mean callbacks.last.every_n_steps?"),
        ("kernel.memmory=low", "did you mean kernel.memory?"),
        ("sed=1", "did you mean seed?"),
        ("paths.dat=x", "did you mean paths.data?"),
        ("model.num_layers=many", "model.num_layers expects int, got 'many'"),
        ("model.norm=1", "model.norm expects bool, got 1"),
        ("model.num_chanels=3,4", "did you mean model.num_channels?"),
        ("model.pooling=median", "model.pooling expects one of 'max', 'mean', 'sum'"),
        ("kernel.kernel=fastest", "kernel.kernel expects one of 'auto'"),
        ("test_weights=worst", "test_weights expects one of 'best', 'last'"),
        ("model._target_=pyg_se3.models.GNN", "names 'pyg_se3.models.GNN'"),
        ("model.num_layers=null", "model.num_layers expects int, got None"),
        ("callbacks=ema_time_budget", "callbacks.time_budget.minutes is mandatory"),
        ("+callbacks.new=3", "callbacks.new must be a node with a _target_"),
    ],
)
def test_mistakes_are_named(override, message):
    with pytest.raises(ConfigError) as caught:
        check_overrides("train", ["+experiment=qm9", override])
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "arguments",
    [
        ["+experiment=qm9_homo_quick", "data.target=gap", "model.num_layers=2"],
        ["-m", "data.target=homo,gap", "model.num_layers=range(1,4)"],
        ["--cfg", "job", "trainer=ddp", "trainer.devices=8", "trainer.num_nodes=2"],
        ["trainer.precision=bf16-mixed", "~callbacks.finite", "hydra.run.dir=x"],
        ["data.split=[0.8,0.1,0.1]", "data.graph=radius", "data.cutoff=3"],
        ["model.radial_sharing=[full,full,output,input,pairwise]", "+model.radial_hidden=16"],
        ["scheduler=constant", "+trainer.max_time=00:00:10:00", "+optimizer.eps=1e-7"],
    ],
)
def test_what_is_right_passes(arguments):
    check_overrides("train", arguments)


def test_errors_that_hydra_explains_are_left_to_hydra():
    check_overrides("train", ["model=unknown"])
    check_overrides("train", ["model=null"])
    check_overrides("train", ["not an override"])
    check_overrides("train", ["--config-name", "other", "model.num_chanels=3"])


def test_all_mistakes_at_once():
    config = compose("train", [])
    with open_dict(config):
        config.model.foo, config.bar = 1, 2
    with pytest.raises(ConfigError) as caught:
        validate(config, TrainConfig)
    assert "model.foo" in str(caught.value) and "unknown key bar" in str(caught.value)


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        (1, int, True), (True, int, False), (1, float, True), ("1", float, False),
        (None, int | None, True), ([1, 2], list[int], True), ([1, "a"], list[int], False),
        ({0: 1}, dict[int, int], True), (3, dict[int, int], False), ("x", object, True),
    ],
)  # fmt: skip
def test_fits(value, hint, expected):
    assert fits(value, hint) is expected


def test_schemas_have_a_configuration_each():
    for name in SCHEMAS:
        assert (config_dir() / f"{name}.yaml").is_file()


@pytest.mark.parametrize(("target", "name"), [("gap", "qm9_gap"), ("[homo,gap]", "qm9_homo-gap")])
def test_runs_are_named_after_their_targets(target, name):
    with hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
        config = hydra.compose("train", ["+experiment=qm9", f"data.target={target}"])
    assert config.name == name

from __future__ import annotations

import json

import pytest
import torch

from pyg_se3.models import SE3TransformerPooled
from pyg_se3.ops import KernelOptions
from pyg_se3.training import AtomicCheckpointIO, load_model, read_checkpoint
from pyg_se3.training.callbacks import LastCheckpoint


@pytest.fixture
def checkpoint_path(make_data, make_module, make_trainer, tmp_path):
    trainer = make_trainer(max_epochs=1, callbacks=[LastCheckpoint(str(tmp_path / "ckpt"))])
    trainer.fit(
        make_module(kernel=KernelOptions(kernel="reference", memory="low")), datamodule=make_data()
    )
    return tmp_path / "ckpt" / "last.ckpt"


def test_model_comes_back_from_the_checkpoint_alone(checkpoint_path, make_data):
    net, checkpoint = load_model(checkpoint_path)
    assert isinstance(net, SE3TransformerPooled) and not net.training
    for name, value in net.state_dict().items():
        assert torch.equal(value, checkpoint["state_dict"][f"net.{name}"])
    data = make_data()
    data.setup()
    assert torch.equal(checkpoint["state_dict"]["target_mean"], data.target_mean)
    assert torch.equal(checkpoint["state_dict"]["target_std"], data.target_std)


def test_hyper_parameters_are_plain_and_say_nothing_about_execution(checkpoint_path):
    record = torch.load(checkpoint_path, weights_only=True)["hyper_parameters"]
    text = json.dumps(record)
    for word in ("kernel", "precision", "reference", "memory"):
        assert word not in text
    assert record["targets"] == ["homo"] and record["units"] == ["eV"]
    assert record["data"]["config"]["split"] == [40, 12, 12]


def test_other_architecture_is_refused_and_named(
    checkpoint_path, make_data, make_module, make_net, make_trainer
):
    other = make_module(make_net(num_channels=8, num_heads=4))
    with pytest.raises(ValueError, match="config.num_channels is 4 in the checkpoint, 8 here"):
        make_trainer(max_epochs=2).fit(other, datamodule=make_data(), ckpt_path=checkpoint_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"target": "gap"}, "targets is \\['homo'\\]"), ({"split_seed": 1}, "split of the data")],
)
def test_other_data_is_refused(
    checkpoint_path, make_data, make_module, make_trainer, change, message
):
    with pytest.raises(ValueError, match=message):
        make_trainer(max_epochs=2).fit(
            make_module(), datamodule=make_data(**change), ckpt_path=checkpoint_path
        )


def test_files_that_are_no_checkpoints(tmp_path, checkpoint_path):
    with pytest.raises(FileNotFoundError, match="nowhere.ckpt"):
        read_checkpoint(tmp_path / "nowhere.ckpt")
    broken = tmp_path / "broken.ckpt"
    # torch takes what is no archive for instructions, and fails in many ways.
    for text in ("not a checkpoint", "a,b\n1,2\n", "(lp0\n.", "\x80\x04..", "ä" * 50):
        broken.write_text(text)
        with pytest.raises(ValueError, match="broken.ckpt is not a checkpoint"):
            read_checkpoint(broken)
    whole = checkpoint_path.read_bytes()
    for size in (0, 10, len(whole) // 2, len(whole) - 100):
        broken.write_bytes(whole[:size])
        with pytest.raises(ValueError, match="broken.ckpt"):
            read_checkpoint(broken)
    for foreign in ([1, 2], {"weights": 1}, {"state_dict": {}}):
        torch.save(foreign, broken)
        with pytest.raises(ValueError, match="broken.ckpt is not a checkpoint"):
            read_checkpoint(broken)


def test_code_in_a_file_is_not_run(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "was-run"), "w"))

    torch.save({"state_dict": {}, "x": Evil()}, tmp_path / "evil.ckpt")
    with pytest.raises(ValueError, match="read safely.*other things than tensors") as error:
        read_checkpoint(tmp_path / "evil.ckpt")
    assert "weights_only" not in str(error.value)  # torch recommends to switch it off
    assert not (tmp_path / "was-run").exists()
    with pytest.raises(ValueError, match="weights_only"):
        AtomicCheckpointIO().load_checkpoint(tmp_path / "evil.ckpt", weights_only=False)


def test_unknown_format_and_class(tmp_path, checkpoint_path):
    checkpoint = read_checkpoint(checkpoint_path)
    for change, message in (
        ({"format": 99}, "format 99"),
        ({"model": {"class": "Mine", "config": {}}}, "holds a Mine"),
    ):
        path = tmp_path / "changed.ckpt"
        torch.save(checkpoint | {"hyper_parameters": checkpoint["hyper_parameters"] | change}, path)
        with pytest.raises(ValueError, match=message):
            load_model(path)


def test_failed_write_keeps_the_last_checkpoint(checkpoint_path, monkeypatch):
    before = checkpoint_path.read_bytes()

    def full_disk(checkpoint, path):
        path.write_bytes(before[:1000])
        raise RuntimeError("PytorchStreamWriter failed writing file")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match="last.ckpt could not be written"):
        AtomicCheckpointIO().save_checkpoint({}, checkpoint_path)
    assert checkpoint_path.read_bytes() == before
    assert [p.name for p in checkpoint_path.parent.iterdir()] == ["last.ckpt"]

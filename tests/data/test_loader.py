from __future__ import annotations

import pytest
import pytorch_lightning as pl
import torch

from pyg_se3.data import BalancedBatchSampler, Collate, EpochSampler, MoleculeLoader, QM9DataModule


def ids(batches):
    return [batch.idx.tolist() for batch in batches]


def make(mini, **kwargs):
    return MoleculeLoader(mini, 5, sampler=EpochSampler(len(mini), seed=1), **kwargs)


def test_batches_are_those_of_the_sampler(mini):
    loader = make(mini, columns=[4])
    order = loader.sampler.order()
    assert len(loader) == 13
    found = list(loader)
    assert ids(found) == ids([mini.batch(order[i : i + 5]) for i in range(0, 64, 5)])
    assert all(batch.y.shape == (batch.num_graphs, 1) for batch in found)
    assert torch.equal(found[0].y, mini.batch(order[:5]).y[:, [4]])


def test_plain_lists_and_transforms_collate_too(mini):
    slow = Collate([3, 1])([mini[i] for i in (2, 0)])
    fast = Collate([3, 1])(mini.__getitems__([2, 0]))
    assert torch.equal(slow.y, fast.y) and torch.equal(slow.edge_index, fast.edge_index)
    loader = MoleculeLoader([mini[i] for i in range(6)], 4)
    assert [batch.num_graphs for batch in loader] == [4, 2]
    assert loader.state_dict() == {}


def test_workers_give_the_same(mini):
    assert ids(make(mini, num_workers=2)) == ids(make(mini))


@pytest.mark.parametrize("steps", [0, 1, 6, 13])
def test_resumes_where_it_was(mini, steps):
    whole = make(mini)
    whole.sampler.set_epoch(2)
    expected = ids(whole)
    first = make(mini)
    first.sampler.set_epoch(2)
    batches = iter(first)
    done = ids(next(batches) for _ in range(steps))
    second = make(mini)
    second.load_state_dict(first.state_dict())
    assert len(second) == len(whole)
    assert done + ids(second) == expected
    # A pass that is over leaves the loader at the beginning, and so does a new epoch.
    assert ids(second) == expected
    second.sampler.set_epoch(3)
    assert second.state_dict() == {"epoch": 3, "start": 0}
    whole.sampler.set_epoch(3)
    assert ids(second) == ids(whole) != expected


def test_resumes_with_other_batch_size(mini):
    first = make(mini)
    batches = iter(first)
    done = sum(ids(next(batches) for _ in range(3)), [])
    second = MoleculeLoader(mini, 7, sampler=EpochSampler(len(mini), seed=1))
    second.load_state_dict(first.state_dict())
    assert sorted(done + sum(ids(second), [])) == sorted(mini.store.idx.tolist())


def test_balanced_resumes(mini):
    def make_balanced():
        return MoleculeLoader(
            mini, batch_sampler=BalancedBatchSampler(mini.num_edges_per_molecule, 200, seed=1)
        )

    expected = ids(make_balanced())
    first = make_balanced()
    batches = iter(first)
    done = ids(next(batches) for _ in range(4))
    second = make_balanced()
    second.load_state_dict(first.state_dict())
    assert done + ids(second) == expected
    assert max(batch.num_edges for batch in make_balanced()) <= 200


def test_global_random_state_is_left_alone(mini):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    list(make(mini))
    assert torch.equal(torch.rand(3), expected)


def test_foreign_state_is_refused(mini):
    with pytest.raises(ValueError, match="'epoch' and 'start'"):
        make(mini).load_state_dict({"samples": 3})
    with pytest.raises(ValueError, match="no position"):
        MoleculeLoader(mini, 4).load_state_dict({"epoch": 1, "start": 2})


class Recorder(pl.LightningModule):
    """Learns one number and notes the molecules it saw."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[str, list[int]]] = []

    def _step(self, name, batch):
        self.seen.append((name, batch.idx.tolist()))
        return (self.weight - batch.y.mean()).abs()

    def training_step(self, batch, _):
        return self._step("train", batch)

    def validation_step(self, batch, _):
        self._step("val", batch)

    def test_step(self, batch, _):
        self._step("test", batch)

    def predict_step(self, batch, _):
        self._step("predict", batch)
        return batch.idx

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.01)


def trainer(**kwargs):
    kwargs.setdefault("max_epochs", 3)
    return pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **kwargs,
    )


def datamodule(mini_root, mini_path, **kwargs):
    return QM9DataModule(
        str(mini_root),
        raw_path=str(mini_path),
        split=[0.7, 0.15, 0.15],
        batch_size=4,
        progress=False,
        **kwargs,
    )


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("options", "stop"),
    # An epoch has 12 batches, or 7 balanced ones: first, middle, end, begin of the next, ...
    [({}, stop) for stop in (1, 3, 12, 13, 24, 29)]
    + [({"max_edges_per_batch": 250}, stop) for stop in (1, 6, 7, 8, 14, 17)],
)
def test_lightning_resumes_exactly(tmp_path, mini_root, mini_path, options, stop):
    whole = Recorder()
    trainer(enable_checkpointing=False).fit(
        whole, datamodule=datamodule(mini_root, mini_path, **options)
    )
    expected = [seen for name, seen in whole.seen if name == "train"]
    first = Recorder()
    before = trainer(
        max_steps=stop, callbacks=[pl.callbacks.ModelCheckpoint(tmp_path, every_n_train_steps=stop)]
    )
    before.fit(first, datamodule=datamodule(mini_root, mini_path, **options))
    assert len([1 for name, _ in first.seen if name == "train"]) == stop
    path = next(tmp_path.glob("*.ckpt"))
    second = Recorder()
    trainer(enable_checkpointing=False).fit(
        second,
        datamodule=datamodule(mini_root, mini_path, **options),
        ckpt_path=path,
        weights_only=True,
    )
    done = [seen for name, seen in first.seen + second.seen if name == "train"]
    assert done == expected
    assert torch.equal(second.weight, whole.weight)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_lightning_test_predict_and_overfit(mini_root, mini_path):
    dm, model = datamodule(mini_root, mini_path), Recorder()
    run = trainer(enable_checkpointing=False, overfit_batches=2, max_epochs=2)
    run.fit(model, datamodule=dm)
    train = [seen for name, seen in model.seen if name == "train"]
    assert train[:2] == train[2:]
    run = trainer(enable_checkpointing=False)
    run.test(model, datamodule=dm)
    tested = sum((seen for name, seen in model.seen if name == "test"), [])
    assert tested == dm.test_set.store.idx[dm.split.test].tolist()
    predicted = run.predict(model, datamodule=dm)
    assert torch.cat(predicted).tolist() == tested

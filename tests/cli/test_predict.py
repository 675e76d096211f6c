"""Predictions for one's own molecules, from the files a chemist has."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import pytest
import torch
from rdkit import Chem
from rdkit.Chem import AllChem
from torch_geometric.data import Batch

from pyg_se3.data import QM9DataModule, read_sdf
from pyg_se3.models import SE3TransformerPooled
from pyg_se3.training import AtomicCheckpointIO, load_model
from pyg_se3.training.checkpoint import FORMAT, model_record

NAMES = ("CCO", "c1ccccc1", "CC(=O)N", "C#N")


def molecule(smiles: str) -> Chem.Mol:
    mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
    assert AllChem.EmbedMolecule(mol, randomSeed=1) == 0
    mol.SetProp("_Name", smiles)
    return mol


@pytest.fixture
def sdf(tmp_path: Path) -> Path:
    with Chem.SDWriter(str(tmp_path / "mols.sdf")) as writer:
        for name in NAMES:
            writer.write(molecule(name))
    return tmp_path / "mols.sdf"


@pytest.fixture
def make_checkpoint(tmp_path: Path):
    def make(targets=("homo", "mu"), units=("eV", "D"), **settings) -> Path:
        torch.manual_seed(0)
        fiber_edge = {0: 4} if settings.get("graph", "bonds") == "bonds" else {}
        net = SE3TransformerPooled(
            {0: 6}, 2, 4, fiber_edge=fiber_edge, output_dim=len(targets), num_layers=1, num_heads=2
        )
        data = QM9DataModule(str(tmp_path), list(targets), **settings)
        weights = {f"net.{name}": value for name, value in net.state_dict().items()}
        weights["target_mean"] = torch.arange(len(targets)) - 6.0
        weights["target_std"] = torch.arange(len(targets)) + 0.5
        record = {
            "format": FORMAT,
            "model": model_record(net),
            "targets": list(targets),
            "units": list(units),
            "data": {"class": "QM9DataModule", "config": dict(data.hparams), "description": None},
        }
        path = tmp_path / "model.ckpt"
        AtomicCheckpointIO().save_checkpoint(
            {"state_dict": weights, "hyper_parameters": record}, path
        )
        return path

    return make


def table(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_sdf_as_from_python(command, make_checkpoint, sdf, tmp_path):
    checkpoint = make_checkpoint()
    done = command(
        "predict", f"ckpt_path={checkpoint}", f"input={sdf}", "output=out.csv", "trainer=cpu",
        "batch_size=3",
    )  # fmt: skip
    assert not list(tmp_path.glob("runs/predict/*"))
    assert "4 predictions in out.csv" in done.stdout
    rows = table(tmp_path / "out.csv")
    assert list(rows[0]) == ["molecule", "name", "homo [eV]", "mu [D]"]
    assert [row["name"] for row in rows] == list(NAMES)
    assert [row["molecule"] for row in rows] == ["1", "2", "3", "4"]
    net, content = load_model(checkpoint)
    state = content["state_dict"]
    with torch.no_grad():
        standardised = net(Batch.from_data_list(read_sdf(sdf)))
    expected = standardised * state["target_std"] + state["target_mean"]
    found = torch.tensor([[float(row["homo [eV]"]), float(row["mu [D]"])] for row in rows])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert found.std(0).min() > 1e-4


def test_output_is_not_overwritten_unasked(command, make_checkpoint, sdf, tmp_path):
    arguments = [f"ckpt_path={make_checkpoint()}", f"input={sdf}", "output=out.csv", "trainer=cpu"]
    (tmp_path / "out.csv").write_text("mine")
    assert "overwrite=true replaces it" in command("predict", *arguments, code=1).stderr
    assert (tmp_path / "out.csv").read_text() == "mine"
    command("predict", *arguments, "overwrite=true")
    assert len(table(tmp_path / "out.csv")) == 4


def test_xyz_folder_and_molecules_that_cannot_be_used(command, make_checkpoint, tmp_path):
    folder = tmp_path / "mine"
    folder.mkdir()
    blocks = [Chem.MolToXYZBlock(molecule(s)) for s in ("CO", "CS", "CN")]
    (folder / "a.xyz").write_text("".join(blocks))
    arguments = [
        f"ckpt_path={make_checkpoint(('gap',), ('eV',), graph='radius', cutoff=3.0)}",
        f"input={folder}", "trainer=cpu", "kernel=edge",
    ]  # fmt: skip
    error = command("predict", *arguments, code=1).stderr
    assert "molecule 2: atomic numbers [16]" in error and "skip_invalid=true" in error
    done = command("predict", *arguments, "skip_invalid=true", "hydra.run.dir=where")
    assert "1 molecules were left out" in done.stdout and "atomic numbers [16]" in done.stdout
    rows = table(tmp_path / "where" / "predictions.csv")
    assert [(row["molecule"], row["name"]) for row in rows] == [("1", "a"), ("3", "a:3")]
    assert all(math.isfinite(float(row["gap [eV]"])) for row in rows)


def test_mistakes(command, make_checkpoint, sdf, tmp_path):
    checkpoint = f"ckpt_path={make_checkpoint()}"
    for arguments, message in (
        ([checkpoint], "input is mandatory"),
        ([checkpoint, "inptu=x"], "did you mean input?"),
        ([checkpoint, "input=no.sdf"], "no.sdf does not exist"),
        ([checkpoint, f"input={checkpoint[10:]}"], "expected a file of .sdf"),
        (["ckpt_path=no.ckpt", f"input={sdf}"], "there is no checkpoint no.ckpt"),
        ([checkpoint, f"input={sdf}", "trainer=ddp", "trainer.accelerator=cpu",
          "trainer.devices=2"], "by one process"),
    ):  # fmt: skip
        assert message in command("predict", *arguments, code=1).stderr
    (tmp_path / "evil.ckpt").write_bytes(b"\x80\x04cos\nsystem\n(S'true'\ntR.")
    done = command("predict", "ckpt_path=evil.ckpt", f"input={sdf}", code=1)
    assert "cannot be read safely" in done.stderr or "not a checkpoint" in done.stderr


def test_help(command):
    assert "input=molecules.sdf" in command("predict", "--help").stdout

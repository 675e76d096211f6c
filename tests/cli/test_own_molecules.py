"""Training on one's own molecules, from the command line to the evaluation of the checkpoint."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import pytest
from rdkit import Chem
from rdkit.Chem import AllChem

SMILES = ["CCO", "CC", "C#N", "O", "CF", "CC=O", "CN", "CO", "C", "N", "CCC", "C=C"]
MODEL = [
    "model.num_layers=1", "model.num_degrees=2", "model.num_channels=4", "model.num_heads=2",
    "trainer=cpu", "trainer.max_epochs=1", "data.batch_size=4", "data.split=[8,2,2]",
    "callbacks.progress=null", "data.progress=false",
]  # fmt: skip


@pytest.fixture(scope="module")
def molecules(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("molecules")
    rows = ["name,weight,energy"]
    with Chem.SDWriter(str(folder / "mine.sdf")) as writer:
        for number, smiles in enumerate(SMILES):
            mol = Chem.AddHs(Chem.MolFromSmiles(smiles))
            AllChem.EmbedMolecule(mol, randomSeed=1)
            mol.SetProp("energy", str(-1.5 * number))
            mol.SetProp("_Name", f"mine {number}")
            writer.write(mol)
            block = Chem.MolToXYZBlock(mol)
            (folder / "xyz").mkdir(exist_ok=True)
            (folder / "xyz" / f"m{number:02}.xyz").write_text(block)
            rows.append(f"m{number:02},{mol.GetNumAtoms()},{-1.5 * number}")
    (folder / "table.csv").write_text("\n".join(rows) + "\n")
    return folder


def only(pattern: str, folder: Path) -> Path:
    (path,) = folder.glob(pattern)
    return path


@pytest.mark.parametrize("data", ["molecules", "molecules_on_disk"])
def test_train_and_evaluate(data, command, molecules, tmp_path):
    (tmp_path / "data").mkdir()
    path = shutil.copy2(molecules / "mine.sdf", tmp_path / "data" / "mine.sdf")
    command(
        "train", f"data={data}", "data.path=data/mine.sdf", "data.target=energy", "data.unit=eV",
        "data.precompute_geometry=disk", *MODEL,
    )  # fmt: skip
    run = only("runs/molecules/*", tmp_path)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["targets"]["energy"]["unit"] == "eV" and summary["test_molecules"] == 2
    with open(run / "test_predictions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    # idx is the place in the file.
    assert [float(r["target"]) for r in rows] == [-1.5 * int(r["idx"]) for r in rows]
    assert [r["name"] for r in rows] == [f"mine {r['idx']}" for r in rows]
    for name in ("parity.png", "learning_curve.png", "summary.md", "checkpoints/last.ckpt"):
        assert (run / name).is_file()
    processed = tmp_path / "data" / "molecules"
    assert list(processed.glob("geometry-*.bin"))
    assert len(list(processed.glob("molecules-*/sqlite.db"))) == (data == "molecules_on_disk")

    # The checkpoint knows its data; here the file lies elsewhere.
    moved = Path(path).rename(tmp_path / "mine.sdf")
    checkpoint = run / "checkpoints" / "best.ckpt"
    command("evaluate", f"ckpt_path={checkpoint}", f"data.path={moved}")
    again = only("runs/evaluate/*", tmp_path)
    found = [(folder / "test_predictions.csv").read_text() for folder in (run, again)]
    assert found[0] == found[1]
    third = [f"ckpt_path={checkpoint}", "hydra.run.dir=third"]
    done = command("evaluate", *third, "data.raw_path=x.csv", code=1)
    assert "data.raw_path is no option of MoleculesDataModule" in done.stderr
    moved.write_text(moved.read_text().replace("-1.5", "-1.25"))
    done = command("evaluate", *third, f"data.path={moved}", code=1)
    assert "split differently" in done.stderr


def test_xyz_with_a_table(command, molecules, tmp_path):
    command(
        "train", "data=molecules", f"data.path={molecules / 'xyz'}", "data.target=[energy,weight]",
        "data.unit=[eV,atoms]", f"data.csv={molecules / 'table.csv'}", "data.csv_key=name",
        "data.max_edges_per_batch=60", *MODEL,
    )  # fmt: skip
    run = only("runs/molecules/*", tmp_path)
    targets = json.loads((run / "summary.json").read_text())["targets"]
    assert {name: found["unit"] for name, found in targets.items()} == {
        "energy": "eV",
        "weight": "atoms",
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "data.path is mandatory: give it as data.path=..."),
        (["data.path=none.sdf", "data.target=energy"], "none.sdf does not exist"),
        (["data.path={sdf}", "data.target=enrgy"], "Did you mean 'energy'?"),
        (["data.path={sdf}", "data.target=energy", "data.elments=[C]"], "data.elements?"),
        (["data.path={sdf}", "data.target=energy", "data.elements=[H,C]"], "skip_invalid=true"),
    ],
)
def test_mistakes_end_with_one_message(arguments, message, command, molecules):
    arguments = [a.format(sdf=molecules / "mine.sdf") for a in arguments]
    done = command("train", "data=molecules", *MODEL, *arguments, code=1)
    assert message in done.stderr
    assert "Traceback" not in done.stderr

from __future__ import annotations

import pytest
import torch
from torch_geometric.datasets import qm9 as pyg_qm9

from pyg_se3.data import TARGET_NAMES, TARGETS, get_target, get_targets
from pyg_se3.data.targets import HARTREE_TO_EV


def test_order_is_pygs():
    assert [target.index for target in TARGETS] == list(range(19))
    expected = "mu alpha homo lumo gap r2 zpve U0 U H G Cv U0_atom U_atom H_atom G_atom A B C"
    assert list(TARGET_NAMES) == expected.split()


def test_conversion_and_atom_energies_are_pygs():
    assert pyg_qm9.HAR2EV == HARTREE_TO_EV
    for index, values in pyg_qm9.atomrefs.items():
        found = TARGETS[index].atomref
        if any(values):
            # PyG's numbers were made with an older hartree: 8e-9 relative.
            assert found == pytest.approx(values, rel=1e-8)
        else:
            assert found is None


@pytest.mark.parametrize("name", ["homo", "HOMO", "Homo", 2])
def test_lookup(name):
    assert get_target(name).index == 2


def test_unknown_names_the_valid_ones():
    with pytest.raises(
        ValueError, match="unknown QM9 target 'hommo'.*U0_atom.*Did you mean 'homo'"
    ):
        get_target("hommo")
    with pytest.raises(ValueError, match="out of range"):
        get_target(19)
    with pytest.raises(TypeError, match="got float"):
        get_target(1.0)


def test_several():
    assert [t.name for t in get_targets(["gap", "mu"])] == ["gap", "mu"]
    with pytest.raises(ValueError, match="twice"):
        get_targets(["gap", "GAP"])
    with pytest.raises(ValueError, match="no target"):
        get_targets([])


def test_atomization_is_total_minus_atoms(mini):
    for total, atomization in [
        ("U0", "U0_atom"),
        ("U", "U_atom"),
        ("H", "H_atom"),
        ("G", "G_atom"),
    ]:
        atomref = mini.atomref(total)[:, 0].double()
        for i, data in enumerate(mini):
            y = mini.y[i]
            expected = y[get_target(total).index] - atomref[data.z].sum()
            assert torch.isclose(y[get_target(atomization).index], expected, atol=1e-3)
    assert mini.atomref("homo") is None
    assert mini.atomref("U0_atom") is None

"""The 19 regression targets of QM9: names, units, columns, atom references.

The one place where these numbers live. Names, order and units are those of PyTorch Geometric's
``QM9``; energies are in eV.

Source: Ramakrishnan et al., "Quantum chemistry structures and properties of 134 kilo molecules",
Scientific Data 1 (2014) 140022, including its atomic reference energies.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

HARTREE_TO_EV = 27.211386246
"""One hartree in eV, the value PyTorch Geometric uses."""

ELEMENTS: tuple[int, ...] = (1, 6, 7, 8, 9)
"""Atomic numbers that occur in QM9: H, C, N, O, F."""


@dataclass(frozen=True)
class Target:
    """One regression target.

    Attributes:
        name: Canonical name, e.g. ``"homo"``.
        index: Column in ``y`` [B, 19].
        unit: Unit of the values in ``y``.
        description: What it is, in words.
        extensive: Whether it grows with the size of the molecule.
        column: Column of the qm9pack CSV files it is made from.
        factor: Value in ``unit`` = ``factor`` * value in that column (minus atom references).
        atomref: Energies of the free atoms H, C, N, O, F in eV, for the targets that have them.
        subtract: Whether ``atomref`` is subtracted, which makes an atomization energy.
    """

    name: str
    index: int
    unit: str
    description: str
    extensive: bool
    column: str
    factor: float = 1.0
    atomref: tuple[float, ...] | None = None
    subtract: bool = False


# Energies of the free atoms in hartree, in the order of ELEMENTS (QM9's own table).
_ATOMS_HARTREE: dict[str, tuple[float, ...]] = {
    "U0": (-0.500273, -37.846772, -54.583861, -75.064579, -99.718730),
    "U": (-0.498857, -37.845355, -54.582445, -75.063163, -99.717314),
    "H": (-0.497912, -37.844411, -54.581501, -75.062219, -99.716370),
    "G": (-0.510927, -37.861317, -54.598897, -75.079532, -99.733544),
}
ATOM_ENERGIES: dict[str, tuple[float, ...]] = {
    name: tuple(value * HARTREE_TO_EV for value in values)
    for name, values in _ATOMS_HARTREE.items()
}
"""Energies of the free atoms (eV) by energy target, in the order of :data:`ELEMENTS`."""

_EV = HARTREE_TO_EV
_E = ATOM_ENERGIES

TARGETS: tuple[Target, ...] = (
    Target("mu", 0, "D", "dipole moment", False, "Dipole_debye"),
    Target("alpha", 1, "a0^3", "isotropic polarizability", True, "Polarizability_bohr3"),
    Target("homo", 2, "eV", "energy of the highest occupied orbital", False, "HOMO_au", _EV),
    Target("lumo", 3, "eV", "energy of the lowest unoccupied orbital", False, "LUMO_au", _EV),
    Target("gap", 4, "eV", "HOMO-LUMO gap", False, "HOMO_LUMO_gap_au", _EV),
    Target("r2", 5, "a0^2", "electronic spatial extent", True, "R2_bohr2"),
    Target("zpve", 6, "eV", "zero-point vibrational energy", True, "ZPVE_au", _EV),
    Target("U0", 7, "eV", "internal energy at 0 K", True, "InternalEnergy_0K_au", _EV, _E["U0"]),
    Target(
        "U", 8, "eV", "internal energy at 298.15 K", True, "InternalEnergy_298K_au", _EV, _E["U"]
    ),
    Target("H", 9, "eV", "enthalpy at 298.15 K", True, "Enthalphy_298K_au", _EV, _E["H"]),
    Target("G", 10, "eV", "free energy at 298.15 K", True, "GibbsFreeEnergy_298K_au", _EV, _E["G"]),
    Target("Cv", 11, "cal/mol K", "heat capacity at 298.15 K", True, "Heatcapacity_Cv_cal_mol_K"),
    Target(
        "U0_atom",
        12,
        "eV",
        "atomization energy at 0 K",
        True,
        "InternalEnergy_0K_au",
        _EV,
        _E["U0"],
        True,
    ),
    Target(
        "U_atom",
        13,
        "eV",
        "atomization energy at 298.15 K",
        True,
        "InternalEnergy_298K_au",
        _EV,
        _E["U"],
        True,
    ),
    Target(
        "H_atom",
        14,
        "eV",
        "atomization enthalpy at 298.15 K",
        True,
        "Enthalphy_298K_au",
        _EV,
        _E["H"],
        True,
    ),
    Target(
        "G_atom",
        15,
        "eV",
        "atomization free energy at 298.15 K",
        True,
        "GibbsFreeEnergy_298K_au",
        _EV,
        _E["G"],
        True,
    ),
    Target("A", 16, "GHz", "rotational constant A", False, "RotA_GHz"),
    Target("B", 17, "GHz", "rotational constant B", False, "RotB_GHz"),
    Target("C", 18, "GHz", "rotational constant C", False, "RotC_GHz"),
)
"""All targets in the order of ``y``."""

TARGET_NAMES: tuple[str, ...] = tuple(target.name for target in TARGETS)
_BY_NAME = {target.name.lower(): target for target in TARGETS}


def get_target(target: str | int) -> Target:
    """Look up a target by name (any case) or by its column in ``y``.

    Args:
        target: Name such as ``"homo"``, or index 0 to 18.

    Returns:
        The target.

    Raises:
        ValueError: If there is no such target; the message lists the valid names.
        TypeError: If ``target`` is neither a string nor an integer.
    """
    if isinstance(target, bool) or not isinstance(target, (str, int)):
        raise TypeError(f"a target is a name or an index, got {type(target).__name__}")
    if isinstance(target, int):
        if not 0 <= target < len(TARGETS):
            raise ValueError(
                f"target index {target} is out of range; expected 0 to {len(TARGETS) - 1} "
                f"({_listing()})"
            )
        return TARGETS[target]
    found = _BY_NAME.get(target.lower())
    if found is None:
        close = difflib.get_close_matches(target.lower(), _BY_NAME, n=1)
        hint = f" Did you mean {_BY_NAME[close[0]].name!r}?" if close else ""
        raise ValueError(f"unknown QM9 target {target!r}; valid targets: {_listing()}.{hint}")
    return found


def get_targets(targets: str | int | Sequence[str | int]) -> tuple[Target, ...]:
    """Look up one or several targets.

    Args:
        targets: One name or index, or a sequence of them without repetition.

    Returns:
        The targets, in the order given.

    Raises:
        ValueError: If the sequence is empty, repeats a target or names an unknown one.
    """
    many: Iterable[str | int] = [targets] if isinstance(targets, (str, int)) else targets
    found = tuple(get_target(target) for target in many)
    if not found:
        raise ValueError(f"no target given; valid targets: {_listing()}")
    if len({target.index for target in found}) != len(found):
        raise ValueError(f"a target is given twice in {[target.name for target in found]}")
    return found


def _listing() -> str:
    return ", ".join(TARGET_NAMES)

"""Data sets, loaders and graph construction."""

from pyg_se3.data.bonds import Bonds, perceive_bonds
from pyg_se3.data.datamodule import MoleculeDataModule
from pyg_se3.data.dataset import MoleculeDataset
from pyg_se3.data.features import BOND_TYPES, atom_features
from pyg_se3.data.geometry import GeometryCache
from pyg_se3.data.graphs import complete_graph, farthest_points, knn_graph, radius_graph
from pyg_se3.data.loader import Collate, MoleculeLoader
from pyg_se3.data.molecules import data_from_arrays, data_from_mol, read_sdf, read_xyz
from pyg_se3.data.on_disk import MoleculesOnDisk
from pyg_se3.data.own import Molecules
from pyg_se3.data.own_datamodule import MoleculesDataModule
from pyg_se3.data.qm9 import QM9
from pyg_se3.data.qm9_datamodule import QM9DataModule
from pyg_se3.data.samplers import BalancedBatchSampler, EpochSampler
from pyg_se3.data.sources import FileSource, IteratorSource, MoleculeSource
from pyg_se3.data.splits import Split, make_split
from pyg_se3.data.store import MoleculeStore, StoreBuilder
from pyg_se3.data.targets import TARGET_NAMES, TARGETS, Target, get_target, get_targets

__all__ = [
    "BOND_TYPES",
    "QM9",
    "TARGETS",
    "TARGET_NAMES",
    "BalancedBatchSampler",
    "Bonds",
    "Collate",
    "EpochSampler",
    "FileSource",
    "GeometryCache",
    "IteratorSource",
    "MoleculeDataModule",
    "MoleculeDataset",
    "MoleculeLoader",
    "MoleculeSource",
    "MoleculeStore",
    "Molecules",
    "MoleculesDataModule",
    "MoleculesOnDisk",
    "QM9DataModule",
    "Split",
    "StoreBuilder",
    "Target",
    "atom_features",
    "complete_graph",
    "data_from_arrays",
    "data_from_mol",
    "farthest_points",
    "get_target",
    "get_targets",
    "knn_graph",
    "make_split",
    "perceive_bonds",
    "radius_graph",
    "read_sdf",
    "read_xyz",
]

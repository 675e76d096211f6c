"""A data set larger than the memory its process may have, filled and read."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

BUDGET = 40 << 20
SCRIPT = """
import json, resource, sys
import torch
from torch_geometric.data import Data
from pyg_se3.data import EpochSampler, IteratorSource, MoleculeLoader, MoleculesOnDisk

root, budget = sys.argv[1], int(sys.argv[2])
ATOMS, EDGES = 1000, 6000

def molecules(count):
    pos, edge_index = torch.rand(ATOMS, 3), torch.randint(0, ATOMS, (2, EDGES))
    edge_attr = torch.eye(4)[torch.randint(0, 4, (EDGES,))]
    for number in range(count):
        yield Data(
            z=torch.full((ATOMS,), 6),
            pos=pos + number,
            edge_index=edge_index,
            edge_attr=edge_attr,
            y=torch.tensor([float(number)]),
        )

def dataset(name, count):
    source = IteratorSource(lambda: molecules(count), version=name, property_names=["energy"])
    return MoleculesOnDisk(root, source, progress=False)

def epoch(found):
    sampler = EpochSampler(len(found), seed=1)
    return sum(float(b.y.sum()) for b in MoleculeLoader(found, 8, sampler=sampler))

def held():
    line = next(l for l in open("/proc/self/status") if l.startswith("VmData"))
    return int(line.split()[1]) * 1024

epoch(dataset("small", 300))  # what is loaded on first use
resource.setrlimit(resource.RLIMIT_DATA, (held() + budget,) * 2)
found = dataset("large", 3500)
total = epoch(found)
size = (found.path / "sqlite.db").stat().st_size
try:
    torch.zeros(size, dtype=torch.uint8)
    fits = True
except RuntimeError:
    fits = False
print(json.dumps({"size": size, "total": total, "fits": fits}))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits memory as Linux does")
def test_larger_than_memory(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path), str(BUDGET)],
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["size"] > 3 * BUDGET
    assert not result["fits"]  # the limit is one
    assert result["total"] == 3500 * 3499 / 2

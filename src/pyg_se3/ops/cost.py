"""What a kernel's work on a convolution costs, so that the cheaper one can be chosen.

Estimates are in multiply-adds of a large matrix product: the products' own, and for each feature
that is gathered, rotated or scattered and each product of a chunk that is started as many as take
the same time. ``benchmarks/kernel_constants.py`` measures the factors; only their ratios matter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

from pyg_se3.ops.plan import TFNPlan


@dataclass(frozen=True)
class CostFactors:
    """Time of a training step's work in units of one multiply-add of a large forward product.

    Attributes:
        edge_product: per multiply-add of the edge form.
        edge_feature: per feature of an edge, incoming or outgoing, in the edge form.
        edge_start: per product and chunk of the edge form.
        edge_sketch: per edge and radial MLP, of finding what compression keeps.
        node_product: per multiply-add of the source-node form that belongs to a node.
        slot_product: per multiply-add of the source-node form that belongs to an edge or padding.
        slot_coupling: per number that couples an edge or padding to a node.
        slot_feature: per feature of an edge or padding in the source-node form.
        source_start: per product and chunk of the source-node form.
    """

    edge_product: float
    edge_feature: float
    edge_start: float
    edge_sketch: float
    node_product: float
    slot_product: float
    slot_coupling: float
    slot_feature: float
    source_start: float


CPU_FACTORS = CostFactors(
    edge_product=5.6,
    edge_feature=33.0,
    edge_start=4.3e7,
    edge_sketch=7e4,
    node_product=7.0,
    slot_product=3.3,
    slot_coupling=120.0,
    slot_feature=160.0,
    source_start=9.3e6,
)
"""Of one core of an AMD EPYC shared with other work, torch 2.13, float32, uncompressed. The fit is
within 20 % of 28 of the 36 times it was made from and, but for 40 edges, within 35 % of all. The
terms grow together in these cases, so a single factor says little: use them for the sum only."""

EDGE_CHUNK = 512
"""Edges per chunk of the edge form on a CPU, so that the outer products stay in its cache."""

SOURCE_CHUNK = 2048
"""Edges and padding per chunk of the source-node form on a CPU at most: fewer, larger products."""

SOURCE_NUMBERS = 2**21
"""Numbers ``z`` that couple the edges of a chunk of the source-node form at most: with more, what a
chunk needs is fetched from the system anew for each call, which takes a quarter of the time."""


RAGGED_CHUNKS = 4
"""Chunks of the source-node form that are not full, as rows of different lengths do not mix."""

PRUNED_FRACTION = 0.75
"""What pruning leaves of the radial activations over edges of all lengths, about."""

SPARSE_EDGES = 2048
"""In graphs with fewer edges than this, those of a block are often too unlike to compress."""

ALIKE_EDGES = 350
"""With so many times more edges, compression leaves the square root of that less work."""


def compressed_fraction(num_edges: int) -> float:
    """What compression leaves of the work of the edge form, about, in a graph of so many edges.

    The more edges there are, the more alike they are within a block. Fitted to graphs with lengths
    of all sizes and four types of edges; on molecules less is left.
    """
    if num_edges < SPARSE_EDGES:
        return PRUNED_FRACTION
    return math.sqrt(ALIKE_EDGES / num_edges)


@dataclass(frozen=True)
class Work:
    """Multiply-adds of a convolution per unit of radial rank.

    Attributes:
        edge: of the edge form per edge, ``sum c^2 C_in(m) C_out(m)`` with c = 1 for m = 0, else 2.
        node: of the source-node form per node, ``sum c (2l+1) C_l C_out(m)``.
        slot: of the source-node form per edge, ``sum c^2 (2l+1) C_out(m)``.
        coupling: numbers ``z`` of the source-node form per edge, ``sum c (2l+1)``.
        features: incoming and outgoing features of an edge.
        edge_products: products of the edge form per chunk.
        source_products: products of the source-node form per chunk.
    """

    edge: int
    node: int
    slot: int
    coupling: int
    features: int
    edge_products: int
    source_products: int


@cache
def work(plan: TFNPlan) -> Work:
    """Count the multiply-adds of a plan."""
    edge = node = slot = coupling = edge_products = source_products = 0
    for group in plan.groups:
        for m in range(group.max_order + 1):
            parts = 2 if m else 1
            degrees = [degree for degree in group.degrees_in if degree >= m]
            columns = sum(plan.fiber_out[degree] for degree in group.degrees_out if degree >= m)
            edge_products += 1
            source_products += len(degrees)
            for degree in degrees:
                channels, size = plan.fiber_in[degree], 2 * degree + 1
                edge += parts * parts * channels * columns
                node += parts * size * channels * columns
                slot += parts * parts * size * columns
                coupling += parts * size
    features = plan.fiber_in.dim + plan.fiber_out.dim
    return Work(edge, node, slot, coupling, features, edge_products, source_products)


def source_chunk(plan: TFNPlan) -> int:
    """Edges and padding per chunk of the source-node form on a CPU."""
    return max(1, min(SOURCE_CHUNK, SOURCE_NUMBERS // (work(plan).coupling * plan.hidden)))


def edge_cost(
    plan: TFNPlan, num_edges: int, compress: bool = False, factors: CostFactors | None = None
) -> float:
    """Cost of the edge form.

    Args:
        plan: the convolution.
        num_edges: number of edges E.
        compress: whether it compresses the radial activations.
        factors: of the machine; measured on a CPU if not given.
    """
    factors, counts = factors or CPU_FACTORS, work(plan)
    products = factors.edge_product * counts.edge * plan.hidden
    starts = factors.edge_start * counts.edge_products / EDGE_CHUNK
    per_edge = products + factors.edge_feature * counts.features + starts
    if compress:
        per_edge *= compressed_fraction(num_edges)
        per_edge += factors.edge_sketch * len(plan.groups)
    return num_edges * per_edge


def source_cost(
    plan: TFNPlan,
    num_nodes: int,
    padded_edges: int,
    compress: bool = False,
    factors: CostFactors | None = None,
) -> float:
    """Cost of the source-node form.

    Args:
        plan: the convolution.
        num_nodes: nodes that have outgoing edges.
        padded_edges: edges and padding, ``SourceSchedule.num_slots``.
        compress: whether it leaves out radial activations that are zero at every edge.
        factors: of the machine; measured on a CPU if not given.
    """
    factors, counts = factors or CPU_FACTORS, work(plan)
    rank = plan.hidden * (PRUNED_FRACTION if compress else 1)
    nodes = num_nodes * factors.node_product * counts.node * rank
    products = factors.slot_product * counts.slot + factors.slot_coupling * counts.coupling
    slots = products * rank + factors.slot_feature * counts.features
    starts = (RAGGED_CHUNKS + padded_edges / source_chunk(plan)) * counts.source_products
    return nodes + padded_edges * slots + starts * factors.source_start

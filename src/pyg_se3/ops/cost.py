"""What a kernel's work on a convolution costs, so that the cheaper one can be chosen.

Estimates are in multiply-adds of a large matrix product: the products' own, and for each feature
that is gathered, rotated or scattered and each product of a chunk that is started as many as take
the same time. ``benchmarks/kernel_constants.py`` measures the factors; only their ratios matter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from pyg_se3.ops.plan import TFNPlan


@dataclass(frozen=True)
class CostFactors:
    """Time of a training step's work in units of one multiply-add of a large forward product.

    Attributes:
        edge_product: per multiply-add of the edge form.
        edge_feature: per feature of an edge, incoming or outgoing, in the edge form.
        edge_start: per product and chunk of the edge form.
        node_product: per multiply-add of the source-node form that belongs to a node.
        slot_product: per multiply-add of the source-node form that belongs to an edge or padding.
        slot_feature: per feature of an edge or padding in the source-node form.
        source_start: per product and chunk of the source-node form.
    """

    edge_product: float
    edge_feature: float
    edge_start: float
    node_product: float
    slot_product: float
    slot_feature: float
    source_start: float


CPU_FACTORS = CostFactors(
    edge_product=3.3,
    edge_feature=2.4e3,
    edge_start=0.0,
    node_product=7.0,
    slot_product=1.9,
    slot_feature=110.0,
    source_start=1.8e7,
)
"""Of one core of an AMD EPYC shared with other work, torch 2.13, float32, uncompressed. The fit is
within 10 % of 19 of the 22 times it was made from and within 16 % of all. The terms grow together
in these cases, so a single factor says little: use them for the sum only."""

CHUNK = 512
"""Edges per chunk in the measurements."""


@dataclass(frozen=True)
class Work:
    """Multiply-adds of a convolution per unit of radial rank.

    Attributes:
        edge: of the edge form per edge, ``sum c^2 C_in(m) C_out(m)`` with c = 1 for m = 0, else 2.
        node: of the source-node form per node, ``sum c (2l+1) C_l C_out(m)``.
        slot: of the source-node form per edge, ``sum c^2 (2l+1) C_out(m)``.
        features: incoming and outgoing features of an edge.
        edge_products: products of the edge form per chunk.
        source_products: products of the source-node form per chunk.
    """

    edge: int
    node: int
    slot: int
    features: int
    edge_products: int
    source_products: int


def work(plan: TFNPlan) -> Work:
    """Count the multiply-adds of a plan."""
    edge = node = slot = edge_products = source_products = 0
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
    features = plan.fiber_in.dim + plan.fiber_out.dim
    return Work(edge, node, slot, features, edge_products, source_products)


def edge_cost(
    plan: TFNPlan, num_edges: int, rank_fraction: float = 1.0, factors: CostFactors | None = None
) -> float:
    """Cost of the edge form.

    Args:
        plan: the convolution.
        num_edges: number of edges E.
        rank_fraction: columns that compression leaves of the H radial activations, over H.
        factors: of the machine; measured on a CPU if not given.
    """
    factors, counts = factors or CPU_FACTORS, work(plan)
    products = factors.edge_product * counts.edge * plan.hidden * rank_fraction
    starts = math.ceil(num_edges / CHUNK) * counts.edge_products
    per_edge = products + factors.edge_feature * counts.features
    return num_edges * per_edge + starts * factors.edge_start


def source_cost(
    plan: TFNPlan,
    num_nodes: int,
    padded_edges: int,
    rank_fraction: float = 1.0,
    factors: CostFactors | None = None,
) -> float:
    """Cost of the source-node form.

    Args:
        plan: the convolution.
        num_nodes: nodes that have outgoing edges.
        padded_edges: edges and padding, ``SourceSchedule.num_slots``.
        rank_fraction: as for :func:`edge_cost`; blocks of edges that are sorted by source rather
            than by length compress less.
        factors: of the machine; measured on a CPU if not given.
    """
    factors, counts = factors or CPU_FACTORS, work(plan)
    rank = plan.hidden * rank_fraction
    nodes = num_nodes * factors.node_product * counts.node * rank
    slots = factors.slot_product * counts.slot * rank + factors.slot_feature * counts.features
    starts = math.ceil(padded_edges / CHUNK) * counts.source_products
    return nodes + padded_edges * slots + starts * factors.source_start

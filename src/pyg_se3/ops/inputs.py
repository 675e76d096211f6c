"""What the kernels are given: one description of a convolution's inputs, checked at the door."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from pyg_se3.ops.attention_shape import AttentionShape
from pyg_se3.ops.autograd_tools import Layout, flatten_tensors
from pyg_se3.ops.packing import PackedWeights, pack_plan
from pyg_se3.ops.plan import PairWeights, TFNPlan
from pyg_se3.ops.radial_expansion import RadialExpansion
from pyg_se3.so3 import EdgeGeometry


@dataclass(frozen=True)
class ConvInputs:
    """Inputs of a TFN convolution.

    Attributes:
        plan: the convolution.
        x: packed node features ``[N, fiber_in.dim]``.
        source: source node of every edge ``[E]``.
        radial: radial activations ``[E, H]``, one tensor per group of the plan.
        geometry: of the edges.
        weights: ``{(l, k): [2 min(l, k) + 1, H, C_l, C_k]}``.
        packed: gives the weights as :func:`pyg_se3.ops.packing.pack_plan` packs them, if they may
            be at hand.
        tangents: per group columns ``[E, s]`` that span the derivatives of the activations with
            respect to the parameters of their radial MLP. Handing them over says that nothing else
            needs a gradient through the activations; the edge kernel may then compress them in
            the backward pass, too.
        expansion: the activations as functions of the edge lengths; ``radial`` are its values.
    """

    plan: TFNPlan
    x: Tensor
    source: Tensor
    radial: Sequence[Tensor]
    geometry: EdgeGeometry
    weights: PairWeights
    packed: Callable[[], PackedWeights] | None = None
    tangents: Sequence[Tensor] = ()
    expansion: RadialExpansion | None = None

    @property
    def num_edges(self) -> int:
        """Number of edges E."""
        return self.source.shape[0]

    @property
    def wigner(self) -> tuple[Tensor, ...]:
        """Wigner-D matrices ``[E, 2l+1, 2l+1]`` of the degrees that the convolution has."""
        return self.geometry.wigner[: self.plan.max_degree + 1]

    def packed_weights(self) -> PackedWeights:
        """The weights, packed for the frame of an edge."""
        return self.packed() if self.packed else pack_plan(self.plan, self.weights)

    def flat(self) -> tuple[Layout, list[Tensor | None]]:
        """What is differentiated besides the features, as autograd functions take it."""
        packed = self.packed_weights()
        layout = Layout.of(self.radial, self.wigner, packed)
        return layout, flatten_tensors(self.radial, self.wigner, packed, layout)

    def in_type_of_geometry(self) -> ConvInputs:
        """Features and activations in the type of the geometry: only products are done in less."""
        dtype = self.geometry.distance.dtype
        expansion = None if self.expansion is None else self.expansion.to(dtype)
        return ConvInputs(
            self.plan,
            self.x.to(dtype),
            self.source,
            [g.to(dtype) for g in self.radial],
            self.geometry,
            self.weights,
            self.packed,
            self.tangents,
            expansion,
        )

    def check(self) -> None:
        """Raise a ``ValueError`` that says what does not fit the plan."""
        plan, geometry, edges = self.plan, self.geometry, self.num_edges
        plan.fiber_in.check(self.x, "node features")
        if geometry.num_edges != edges:
            raise ValueError(
                f"the geometry is of {geometry.num_edges} edges, edge_index of {edges}"
            )
        if geometry.max_degree < plan.max_degree:
            raise ValueError(
                f"the geometry has degrees up to {geometry.max_degree}, "
                f"the convolution {plan.fiber_in} -> {plan.fiber_out} needs {plan.max_degree}"
            )
        if len(self.radial) != len(plan.groups):
            raise ValueError(
                f"got {len(self.radial)} tensors of radial activations "
                f"for {len(plan.groups)} groups"
            )
        for activations in self.radial:
            if activations.shape != (edges, plan.hidden):
                raise ValueError(
                    f"radial activations have shape {list(activations.shape)}, "
                    f"expected [{edges}, {plan.hidden}]"
                )


@dataclass(frozen=True)
class AttentionInputs:
    """What attention needs besides the convolution that makes its keys and values.

    Attributes:
        shape: of the attention; the convolution's output fiber is ``shape.value + shape.key``.
        query: packed queries ``[M, shape.key.dim]``, one row per receiving node.
        target: receiving node of every edge ``[E]``.
    """

    shape: AttentionShape
    query: Tensor
    target: Tensor

    def over(self, messages: Tensor, inputs: ConvInputs) -> Tensor:
        """Attention ``[M, value.dim]`` over messages ``[E, fiber_out.dim]`` that are there."""
        query = self.query.to(messages.dtype)
        return self.shape.attend(messages, inputs.plan.fiber_out, query, self.target)

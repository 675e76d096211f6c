"""Radial weights of a convolution as neither side stores them, to carry them across."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor

from pyg_se3.compat.layout import join_rows
from pyg_se3.compat.se3_transformer.model.layers.convolution import ConvSE3
from pyg_se3.nn import TFNConv
from pyg_se3.ops.plan import Pair


@dataclass(frozen=True)
class ConvWeights:
    """Radial MLPs of a convolution.

    Attributes:
        trunks: per radial MLP its degree pairs and the parameters of its hidden layers.
        pairs: ``{(l, k): [2 min(l, k) + 1, H, C_l, C_k]}`` in this package's convention.
    """

    trunks: list[tuple[frozenset[Pair], dict[str, Tensor]]]
    pairs: Mapping[Pair, Tensor]

    @classmethod
    def of_native(cls, conv: TFNConv) -> ConvWeights:
        """Of a convolution of this package."""
        trunks = [
            (frozenset(group.pairs), dict(profile.state_dict()))
            for group, profile in zip(conv.plan.groups, conv.radial, strict=True)
        ]
        return cls(trunks, {k: v.detach() for k, v in conv.weight.by_pair().items()})

    @classmethod
    def of_interface(cls, conv: ConvSE3) -> ConvWeights:
        """Of a convolution with NVIDIA's interface."""
        trunks = [
            (frozenset(piece.pairs), dict(part.radial_func.hidden_layers().state_dict()))
            for piece, part in conv.radial_pieces()
        ]
        return cls(trunks, {k: v.detach() for k, v in conv.pair_weights().items()})

    def trunk(self, pairs: Iterable[Pair]) -> dict[str, Tensor]:
        """Hidden layers for a set of pairs that is to share them.

        Raises:
            ValueError: here these pairs have MLPs of their own.
        """
        wanted = frozenset(pairs)
        for available, parameters in self.trunks:
            if wanted <= available:
                return parameters
        shown = ", ".join(f"{i}->{o}" for i, o in sorted(wanted))
        raise ValueError(
            f"the degree pairs {shown} have hidden layers of their own; one radial MLP cannot "
            "compute what several do. Sharing can be given up exactly (each pair gets a copy), "
            "but not introduced: that needs training"
        )

    def native_state(self, conv: TFNConv, prefix: str) -> dict[str, Tensor]:
        """Parameters of a convolution of this package, with their names."""
        state = {}
        for index, group in enumerate(conv.plan.groups):
            for name, value in self.trunk(group.pairs).items():
                state[f"{prefix}radial.{index}.{name}"] = value.clone()
        for (i, o), value in self.pairs.items():
            state[f"{prefix}weight.weights.{i},{o}"] = value.clone()
        return state

    def interface_state(self, conv: ConvSE3, prefix: str) -> dict[str, Tensor]:
        """Parameters of a convolution with NVIDIA's interface, with their names."""
        state = {}
        for piece, part in conv.radial_pieces():
            net = f"{prefix}{piece.key}.radial_func.net."
            for name, value in self.trunk(piece.pairs).items():
                state[net + name] = value.clone()
            last = len(part.radial_func.net) - 1
            state[f"{net}{last}.weight"] = join_rows(self.pairs, piece, conv.cg_convention)
        return state

"""Graph convolution over the members of an entity whose dependencies the observation tells (`Field.scale` "adjacency")."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def normalised_adjacency(edges: Tensor, exists: Tensor) -> Tensor:
    """`D^-1/2 (A + A^T + I) D^-1/2` of Kipf & Welling (2017), on dense batches.

    Messages go both ways along an edge: what a subtask needs and what waits for it both matter to a schedule.

    Args:
        edges: `[..., J, J]` float32, 1 where the column's node depends on the row's.
        exists: `[..., J]` float32, 1 for nodes that exist; the others stay without neighbours.
    """
    both_ways = torch.maximum(edges, edges.transpose(-1, -2)) + torch.diag_embed(exists)
    scale = both_ways.sum(-1).clamp(min=1.0).rsqrt()
    return scale.unsqueeze(-1) * both_ways * scale.unsqueeze(-2)


class DagEncoder(nn.Module):
    """Two graph convolutions, and a mean over the nodes brought to a fixed size (UCB-COMA, Sec. 4.1.1).

    Args:
        features: Numbers that describe a node.
        hidden: Width of both layers (64 in the paper).
        size: Numbers in the encoding of the whole graph (16 in the paper).
    """

    def __init__(self, features: int, hidden: int, size: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(features, hidden), nn.Linear(hidden, hidden)])
        self.pooled = nn.Linear(hidden, size)

    def forward(self, nodes: Tensor, edges: Tensor, exists: Tensor) -> tuple[Tensor, Tensor]:
        """`[..., J, features]`, `[..., J, J]` and `[..., J]` to nodes `[..., J, hidden]` and graphs `[..., size]`.

        What is returned for nodes that do not exist is 0.
        """
        adjacency = normalised_adjacency(edges, exists)
        weight = exists.unsqueeze(-1)
        for layer in self.layers:
            nodes = torch.relu(layer(adjacency @ nodes)) * weight
        mean = nodes.sum(-2) / exists.sum(-1, keepdim=True).clamp(min=1.0)
        return nodes, self.pooled(mean)

"""The request encoder of LRS and DLRS: a Transformer encoder reads an embedding as patches, linear layers compress it (Yao et
al., "Enhancing LLM QoS Through Cloud-Edge Collaboration", eq. 8, Sec. IV-B and Table II)."""

from __future__ import annotations

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F


class RequestEncoderConfig(BaseModel):
    """Sizes of the request encoder; heads, number of linear layers and size are Table II's."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    field: str | None = Field(
        "request", description="plain field of the observation that it reads; null: all plain fields as one vector"
    )
    patches: int = Field(6, ge=1, description="parts of the vector that attend to each other")
    width: int = Field(48, ge=1, description="width of a part in the Transformer encoder")
    heads: int = Field(6, ge=1, description="attention heads")
    layers: int = Field(1, ge=1, description="layers of the Transformer encoder")
    linear: int = Field(128, ge=1, description="width of the linear layers after it")
    size: int = Field(30, ge=1, description="numbers that it makes of a request (D)")

    @model_validator(mode="after")
    def _heads_share_the_width(self) -> RequestEncoderConfig:
        if self.width % self.heads:
            raise ValueError(f"width = {self.width}: expected a multiple of heads = {self.heads}")
        return self


class RequestEncoder(nn.Module):
    """`T[f]` of eq. 8: patches with learned positions, self-attention, and five linear layers with tanh."""

    LINEAR_LAYERS = 5

    def __init__(self, inputs: int, config: RequestEncoderConfig) -> None:
        super().__init__()
        self._patches = config.patches
        self._missing = -inputs % config.patches  # zeros that make the last patch whole
        self.patch = nn.Linear((inputs + self._missing) // config.patches, config.width)
        self.position = nn.Parameter(torch.randn(config.patches, config.width) * 0.1)
        self.transformer = nn.Sequential(
            *(
                nn.TransformerEncoderLayer(config.width, config.heads, 2 * config.width, dropout=0.0, batch_first=True)
                for _ in range(config.layers)
            )
        )
        sizes = [config.patches * config.width, *[config.linear] * (self.LINEAR_LAYERS - 1), config.size]
        self.linear = nn.Sequential(
            *(part for k in range(self.LINEAR_LAYERS) for part in (_tanh_layer(sizes[k], sizes[k + 1]), nn.Tanh()))
        )

    def forward(self, x: Tensor) -> Tensor:
        """`[rows, inputs]` to `[rows, size]`, each in -1 to 1."""
        parts = F.pad(x, (0, self._missing)).unflatten(-1, (self._patches, -1))
        return self.linear(self.transformer(self.patch(parts) + self.position).flatten(1))


def _tanh_layer(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer through whose tanh signals keep their size; torch's own start would lose them in five layers."""
    layer = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(layer.weight, gain=nn.init.calculate_gain("tanh"))
    nn.init.zeros_(layer.bias)
    return layer

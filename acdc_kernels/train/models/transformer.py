"""A small decoder-only transformer over characters (pre-norm, as GPT-2: Radford et al., 2019)."""

from __future__ import annotations

from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..data import Dataset
from .names import BadName, whole_numbers

HEAD_WIDTH = 32


def from_name(rest: str, dataset: Dataset) -> nn.Module:
    """``transformer-LAYERS-WIDTH``, with a head for every 32 of WIDTH."""
    rule = f"LAYERS a positive whole number, WIDTH a multiple of {HEAD_WIDTH}"
    layers, width = whole_numbers(rest, 2, rule)
    if width % HEAD_WIDTH:
        raise BadName(rule)
    return CharTransformer(layers, width, dataset.example.shape[1], dataset.classes)


class CharTransformer(nn.Module):
    """Characters int64 [B, T], T <= `block`, to logits [B, T, vocabulary] of each next one.

    Learned positions, causal attention, GELU, no dropout. Every product's weights are those of a Linear layer, so all
    of them compete in pruning; the embeddings don't, and aren't tied to the last layer.
    """

    def __init__(self, layers: int, width: int, block: int, vocabulary: int) -> None:
        super().__init__()
        self.characters = nn.Embedding(vocabulary, width)
        self.positions = nn.Embedding(block, width)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(layers)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, vocabulary, bias=False)
        for name, module in self.named_modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                # what adds to the residual stream starts smaller the more layers add to it
                into_residual = name.endswith(("attention.out", "mlp.2"))
                nn.init.normal_(module.weight, std=0.02 / sqrt(2 * layers) if into_residual else 0.02)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        h = self.characters(x) + self.positions(torch.arange(x.shape[1], device=x.device))
        return self.head(self.norm(self.blocks(h)))


class Block(nn.Module):
    """Attention and a perceptron four times as wide, each normalised before and added."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = SelfAttention(width)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class SelfAttention(nn.Module):
    """Causal attention; queries, keys and values come from one Linear layer."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.attend = CausalAttention()
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        heads = x.shape[-1] // HEAD_WIDTH
        q, k, v = self.qkv(x).unflatten(-1, (3, heads, HEAD_WIDTH)).permute(2, 0, 3, 1, 4)  # each [B, heads, T, 32]
        return self.out(self.attend(q, k, v).transpose(1, 2).flatten(-2))


class CausalAttention(nn.Module):
    """softmax(Q K^T / sqrt(d)) V over earlier positions; a module of its own so that its FLOPs can be counted."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True)

    def fixed_flops(self, inputs: tuple[Any, ...], output: Tensor) -> int:
        """Of one sample: 2 T^2 d for scores and as much for values, over all heads, causally masked or not."""
        _, heads, positions, width = inputs[0].shape
        return 2 * 2 * positions**2 * heads * width

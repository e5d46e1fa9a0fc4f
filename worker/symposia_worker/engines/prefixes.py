"""Keys and values of prompts' beginnings, kept so that no turn reads what another has read: same system and question, other member.

Blocks of tokens in a tree, the least recently used leaf given up first (after vLLM's automatic prefix caching and SGLang's
RadixAttention, Zheng et al. 2024, arXiv:2312.07104). A block's keys and values depend on the tokens before it and on no column:
positions are counted from the prompt's first token, and what depends on distance (ALiBi, local windows) is added when it is read.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence as Ids
from dataclasses import dataclass
from typing import Any

import torch

#: tokens of a block; a prompt's last, incomplete block is read again
BLOCK = 64

#: one layer's keys and values of some tokens of one row, each (heads, tokens, head size)
Layers = tuple[tuple[torch.Tensor, torch.Tensor], ...]


@dataclass(frozen=True, slots=True)
class Piece:
    """Some tokens' keys and values."""

    layers: Layers
    tokens: int
    bytes: int

    @classmethod
    def of(cls, layers: Ids[Any], row: int, begin: int, end: int) -> Piece:
        """A copy of the columns of one row of a cache's layers."""
        mine = tuple((x.keys[row, :, begin:end].clone(), x.values[row, :, begin:end].clone()) for x in layers)
        return cls(mine, end - begin, sum(k.nbytes + v.nbytes for k, v in mine))


@dataclass(frozen=True, slots=True)
class Prefix:
    """The beginning of a prompt, already read."""

    pieces: tuple[Piece, ...]

    @property
    def tokens(self) -> int:
        """How many tokens it spares."""
        return sum(piece.tokens for piece in self.pieces)

    @property
    def bytes(self) -> int:
        """What it holds."""
        return sum(piece.bytes for piece in self.pieces)

    @property
    def layers(self) -> int:
        """Layers of the model it is of."""
        return len(self.pieces[0].layers)

    def empty(self, layer: int, rows: int, columns: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Zeros for ``rows`` rows of one layer's keys and values, (rows, heads, columns, head size)."""
        keys, values = self.pieces[0].layers[layer]
        return keys.new_zeros(rows, keys.shape[0], columns, keys.shape[2]), values.new_zeros(rows, values.shape[0], columns, values.shape[2])

    def write(self, layer: int, keys: torch.Tensor, values: torch.Tensor, *, at: int, tokens: int) -> None:
        """Copy the first ``tokens`` tokens of a layer into the columns from ``at`` on of one row."""
        for piece in self.pieces:
            if tokens <= 0:
                break
            some = min(tokens, piece.tokens)
            keys[:, at : at + some] = piece.layers[layer][0][:, :some]
            values[:, at : at + some] = piece.layers[layer][1][:, :some]
            at, tokens = at + some, tokens - some


class Prefixes:
    """The blocks of all checkpoints of one device, at most ``limit_bytes`` of them."""

    def __init__(self, limit_bytes: float, *, block: int = BLOCK) -> None:
        self.limit_bytes, self.block = limit_bytes, block
        self.bytes = 0
        self._last = 0
        # (owner, number of the block before, tokens) → (number, piece); the least recently used first
        self._blocks: OrderedDict[tuple[str, int, tuple[int, ...]], tuple[int, Piece]] = OrderedDict()

    def find(self, owner: str, ids: Ids[int], *, most: int) -> Prefix | None:
        """The longest beginning of ``ids`` that is kept, of at most ``most`` tokens."""
        keys = self._path(owner, ids, most)
        for key in reversed(keys):  # so that a block is never older than what follows it
            self._blocks.move_to_end(key)
        return Prefix(tuple(self._blocks[key][1] for key in keys)) if keys else None

    def keep(self, owner: str, ids: Ids[int], layers: Ids[Any], row: int, begin: int, *, room: float) -> None:
        """Keep the whole blocks of ``ids``, whose keys and values stand in ``layers``' columns from ``begin`` on of a row;
        ``room``: the bytes all blocks may take now."""
        path = self._path(owner, ids, len(ids))
        before = self._blocks[path[-1]][0] if path else 0
        for n in range(len(path), len(ids) // self.block):
            at = begin + n * self.block
            piece = Piece.of(layers, row, at, at + self.block)
            if not self._fits(piece.bytes, min(room, self.limit_bytes), path):
                break
            key = (owner, before, tuple(ids[n * self.block : (n + 1) * self.block]))
            self._last += 1
            before = self._last
            self._blocks[key] = (before, piece)
            self.bytes += piece.bytes
            path.append(key)
        for key in reversed(path):
            self._blocks.move_to_end(key)

    def blocks_shared(self, one: Ids[int], other: Ids[int]) -> int:
        """Tokens of the whole blocks that two prompts begin with."""
        same = 0
        while same + self.block <= min(len(one), len(other)) and one[same : same + self.block] == other[same : same + self.block]:
            same += self.block
        return same

    def shrink(self, most_bytes: float) -> None:
        """Give up blocks until they take at most ``most_bytes``."""
        while self._blocks and self.bytes > most_bytes:
            self.bytes -= self._blocks.popitem(last=False)[1][1].bytes

    def forget(self, owner: str) -> None:
        """Give up a checkpoint's blocks."""
        for key in [key for key in self._blocks if key[0] == owner]:
            self.bytes -= self._blocks.pop(key)[1].bytes

    def _fits(self, more: int, room: float, path: Ids[tuple[str, int, tuple[int, ...]]]) -> bool:
        """Whether a block has room once older ones are given up; those of its own ``path`` stay."""
        own = set(path)
        while self.bytes + more > room:
            oldest = next(iter(self._blocks), None)
            if oldest is None or oldest in own:
                return False
            self.bytes -= self._blocks.pop(oldest)[1].bytes
        return True

    def _path(self, owner: str, ids: Ids[int], most: int) -> list[tuple[str, int, tuple[int, ...]]]:
        path, before = [], 0
        for end in range(self.block, most + 1, self.block):
            key = (owner, before, tuple(ids[end - self.block : end]))
            if key not in self._blocks:
                break
            path.append(key)
            before = self._blocks[key][0]
        return path

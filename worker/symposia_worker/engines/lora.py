"""LoRA adapters over a base that stays what it is: each linear layer they name adds one adapter's ``B A x`` while that one is asked.

The base's weights are in memory once, whatever number of adapters goes on from them; only one adapter is in force in a forward pass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from symposia_shared.errors import BadInput, Damaged
from symposia_worker.engines.loading import Model, load_tokenizer
from symposia_worker.engines.packed import PackedLinear
from symposia_worker.engines.split import is_dispatched
from symposia_worker.families import Renderer, family_of
from symposia_worker.families.adapters import WEIGHTS, Adapter, module_and_side, read_adapter

_LINEAR = (torch.nn.Linear, PackedLinear)


@dataclass(frozen=True, slots=True)
class Low:
    """An adapter's part at one layer. ``a``: (rank, in), ``b``: (out, rank), ``scaling`` what their product is multiplied with."""

    a: torch.Tensor
    b: torch.Tensor
    scaling: float

    @property
    def bytes(self) -> int:
        """Of both matrices."""
        return self.a.nbytes + self.b.nbytes

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """x: (…, in) → (…, out)."""
        return torch.nn.functional.linear(torch.nn.functional.linear(x, self.a), self.b) * self.scaling


class Adaptable(torch.nn.Module):
    """A linear layer of the base, and what is added to its result now."""

    def __init__(self, base: torch.nn.Module) -> None:
        super().__init__()
        self.base = base
        self.in_features, self.out_features = base.in_features, base.out_features
        self.low: Low | None = None
        #: adapters that name it
        self.named_by = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """x: (…, in) → (…, out)."""
        y: torch.Tensor = self.base(x)
        return y if self.low is None else y + self.low(x)


class Adapted:
    """A base's network as one adapter has it answer. To a batch it is a network like any other."""

    def __init__(self, network: Any, parts: Mapping[str, Low]) -> None:
        self.network, self._parts = network, dict(parts)
        self._layers = {name: _adaptable(network, name) for name in self._parts}
        self.forward = network.forward

    @property
    def config(self) -> Any:
        """The base's."""
        return self.network.config

    @property
    def device(self) -> torch.device:
        """The base's."""
        device: torch.device = self.network.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """The base's."""
        dtype: torch.dtype = self.network.dtype
        return dtype

    @property
    def bytes(self) -> int:
        """Of its own matrices."""
        return sum(low.bytes for low in self._parts.values())

    @property
    def parameters(self) -> int:
        """Of its own matrices."""
        return sum(low.a.numel() + low.b.numel() for low in self._parts.values())

    def __call__(self, **given: Any) -> Any:
        """The base's forward pass with this adapter in force."""
        with self._in_force():
            return self.network(**given)

    @contextmanager
    def _in_force(self) -> Iterator[None]:
        for name, layer in self._layers.items():
            layer.low = self._parts[name]
        try:
            yield
        finally:
            for layer in self._layers.values():
                layer.low = None

    def leave(self) -> None:
        """Give the base its own layers back where no other adapter names them."""
        for name, layer in self._layers.items():
            layer.named_by -= 1
            if not layer.named_by:
                _put(self.network, name, layer.base)
        self._layers, self._parts = {}, {}


def adapt(base: Model, checkpoint: str, folder: Path, *, room_bytes: float) -> Model:
    """The adapter in ``folder`` over the resident ``base``, whose weights it shares. Raises BadInput or Damaged."""
    if base.kind != "generate":
        raise BadInput(f"{checkpoint} adapts {base.checkpoint}, which generates nothing.", field="base", remedy="Adapters of decoders are served.")
    if is_dispatched(base.network):
        raise BadInput(f"{checkpoint} adapts {base.checkpoint}, which is split over several devices.", field="base",
                       remedy="Merge the adapter into its base and push that, or serve it on a device that holds the base whole.")
    described = read_adapter(folder)
    needed = (folder / WEIGHTS).stat().st_size
    if needed > room_bytes:
        raise BadInput(f"{checkpoint} needs {needed / 1e6:.1f} MB beside its base, and {max(room_bytes, 0) / 1e6:.1f} MB are left.", field="memory",
                       remedy="Unload another checkpoint, or give the device more memory.")
    renderer, parts = _renderer(checkpoint, folder, base), _parts(checkpoint, folder, described, base)
    network = Adapted(base.network, parts)  # last: it changes the base's layers, and what is refused must leave them as they are
    return replace(base, checkpoint=checkpoint, network=network, renderer=renderer, bytes=network.bytes, parameters=network.parameters)


def _parts(checkpoint: str, folder: Path, described: Adapter, base: Model) -> dict[str, Low]:
    """Its matrices by the base's layers, each fitting its layer."""
    pairs: dict[str, dict[str, torch.Tensor]] = {}
    try:
        with safe_open(folder / WEIGHTS, framework="pt", device=str(base.network.device)) as file:  # type: ignore[no-untyped-call]
            for key in sorted(file.keys()):
                module, side = module_and_side(key)
                pairs.setdefault(module, {})[side] = file.get_tensor(key).to(base.network.dtype)
    except SafetensorError as error:
        raise Damaged(f"{checkpoint}'s weights cannot be read ({error}). Verify and pull it again.") from None
    if not pairs:
        raise Damaged(f"{checkpoint} has no matrices. Push a whole adapter again.")
    return {module: _fitting(checkpoint, module, pair, described, base) for module, pair in sorted(pairs.items())}


def _fitting(checkpoint: str, module: str, pair: dict[str, torch.Tensor], described: Adapter, base: Model) -> Low:
    layer = _layer(base.network, module)
    if layer is None:
        raise BadInput(f"{checkpoint} adapts {module}, and {base.checkpoint} has no linear layer of that name.", field="base",
                       remedy="Name the base it was trained on.")
    if set(pair) != {"A", "B"}:
        raise Damaged(f"{checkpoint} has only one of lora_A and lora_B for {module}. Push a whole adapter again.")
    rank = described.rank_of(module)
    wanted = ((rank, layer.in_features), (layer.out_features, rank))
    if (tuple(pair["A"].shape), tuple(pair["B"].shape)) != wanted:
        raise BadInput(f"{checkpoint}'s matrices for {module} are {tuple(pair['A'].shape)} and {tuple(pair['B'].shape)}, where {base.checkpoint} and "
                       f"a rank of {rank} need {wanted[0]} and {wanted[1]}.", field="base", remedy="Name the base it was trained on.")
    if not all(torch.isfinite(matrix).all() for matrix in pair.values()):
        raise Damaged(f"{checkpoint}'s matrices for {module} hold numbers that are none. Push a whole adapter again.")
    return Low(pair["A"].contiguous(), pair["B"].contiguous(), described.scaling(module))


def _renderer(checkpoint: str, folder: Path, base: Model) -> Renderer:
    """Its own tokenizer and chat template where it brings them, within the base's vocabulary; else the base's."""
    if not (folder / "tokenizer_config.json").is_file():
        return base.renderer
    renderer = Renderer(family_of(base.model_type), load_tokenizer(checkpoint, folder), eos=sorted(base.renderer.stop_ids))
    if renderer.vocabulary > max(base.embeddings, base.renderer.vocabulary):
        raise BadInput(f"{checkpoint}'s tokenizer has {renderer.vocabulary} tokens, and {base.checkpoint} knows {base.embeddings}.", field="base",
                       remedy="Adapters that enlarge the vocabulary are merged into their base and pushed as a checkpoint.")
    return renderer


def _layer(network: Any, name: str) -> Any:
    """The linear layer called so, adaptable already or not; None where there is none."""
    try:
        found = network.get_submodule(name)
    except AttributeError:
        return None
    return found if isinstance(found, (*_LINEAR, Adaptable)) else None


def _adaptable(network: Any, name: str) -> Adaptable:
    layer = _layer(network, name)
    if not isinstance(layer, Adaptable):
        layer = Adaptable(layer)
        _put(network, name, layer)
    layer.named_by += 1
    return layer


def _put(network: Any, name: str, layer: torch.nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(network.get_submodule(parent), last, layer)

"""What a training step needs, worked out and not measured: the bytes of its tensors and its floating-point operations.

The step is taken by the trainee's own modules on fake tensors, which have shapes and no numbers: no memory, no time, the same operations.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from benchmarks.trainees import SCALES, TRAINEES, Trainee, random_inputs
from train.adapter.objective import Inputs

CPU_ATTENTION = {  # PyTorch counts the GPUs' fused attention, but not the CPU's
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: lambda out, q, k, v, *_, **__: sdpa_backward_flop_count(out, q, k, v),
}


@dataclass(frozen=True)
class Account:
    """One step after the first, fp32. trained, frozen: numbers of weights; then bytes; then FLOPs (a multiply-add is two) of matrix
    products, convolutions and attention, which are nearly all but the optimiser's.
    """

    trained: int
    frozen: int
    weights: int
    gradients: int
    moments: int
    saved: int
    """What the forward keeps for the backward, beside the weights."""
    peak: int
    """The most that lives at once, with the temporaries that operations return; what a kernel needs inside is not seen."""
    forward: int
    backward: int

    @property
    def flops(self) -> int:
        return self.forward + self.backward


def account(trainee: str, scale: str, size: int, batch: int) -> Account:
    """The account of one of TRAINEES at one of SCALES, for pictures of size x size px."""
    with FakeTensorMode():
        return counted(TRAINEES[trainee](SCALES[scale]), random_inputs(SCALES[scale], size, batch))


def counted(trainee: Trainee, inputs: Inputs) -> Account:
    """The account of a trainee, on fake tensors or true ones. It takes two steps."""
    trainee.step(inputs)  # the first makes the moments
    trained, frozen = list(trainee.trained.parameters()), list(trainee.frozen.parameters())
    moments = [value for state in trainee.optimiser.state.values() for value in state.values()]
    kept = [value.grad for value in trained if value.grad is not None]
    given = [value for value in vars(inputs).values() if value is not None]
    saved, forward = forward_alone(trainee, inputs)
    live = LiveTensors([*trained, *frozen, *moments, *kept, *given])
    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as flops, live:
        trainee.step(inputs)
    return Account(
        count(trained), count(frozen), size_of(trained + frozen), size_of(trained), size_of(moments), saved, live.peak,
        forward, flops.get_total_flops() - forward,
    )  # fmt: skip


def forward_alone(trainee: Trainee, inputs: Inputs) -> tuple[int, int]:
    """Bytes that a forward keeps for its backward, weights left out, and its FLOPs."""
    weights = {storage_of(value) for module in (trainee.trained, trainee.frozen) for value in module.parameters()}
    kept: dict[int, Tensor] = {}  # by storage: a tensor that is saved twice is one

    def keep(value: Tensor) -> Tensor:
        if storage_of(value) not in weights:
            kept[storage_of(value)] = value
        return value

    with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as flops, saved_tensors_hooks(keep, lambda value: value):
        trainee.loss(inputs)
    return sum(value.untyped_storage().nbytes() for value in kept.values()), flops.get_total_flops()


class LiveTensors(TorchDispatchMode):
    """Counts the bytes of all tensors that live, and their peak; a storage counts once, from its first tensor to its end."""

    def __init__(self, tensors: Iterable[Tensor]):
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.live = self.peak = 0
        for value in tensors:
            self.note(value)

    def note(self, value: Tensor) -> None:
        storage, key = value.untyped_storage(), storage_of(value)
        if key not in self.sizes:
            self.sizes[key] = storage.nbytes()
            self.live += storage.nbytes()
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        self.live -= self.sizes.pop(key)

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                self.note(value)
        return result


def storage_of(value: Tensor) -> int:
    """What tells one living storage from another, also where there is no memory behind it."""
    return value.untyped_storage()._cdata


def count(tensors: Iterable[Tensor]) -> int:
    return sum(value.numel() for value in tensors)


def size_of(tensors: Iterable[Tensor]) -> int:
    """Bytes."""
    return sum(value.nbytes for value in tensors)

"""Mask2Former's cross-attention, from mask logits on, against nn.MultiheadAttention and SDPA."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.harness.agreement import relative_norm
from benchmarks.harness.case import Case, Run, Setting
from benchmarks.harness.inputs import generator, object_masks

HEADS, CHANNELS = 8, 256


@dataclass(frozen=True)
class Workload:
    """One layer's attention: queries, sides of the level's map and of the predicted masks."""

    setting: Setting
    queries: int
    side: int
    mask_side: int

    @property
    def size(self) -> tuple[int, int]:
        return (self.side, self.side)

    def inputs(self) -> tuple[list[Tensor], Tensor]:
        """Query, key, value, [1, 8, rows, 32], as views of projections; mask logits of objects."""
        random = generator()
        rows = (self.queries, self.side**2, self.side**2)
        projected = [torch.randn(1, count, CHANNELS, generator=random) for count in rows]
        scale = 1024 // self.mask_side  # of an image of 1024 x 1024
        masks = object_masks(self.queries, 1024, 1024, random)[None, :, ::scale, ::scale]
        noise = torch.randn(masks.shape, generator=random)
        logits = (10 * masks - 5 + noise).to(self.setting.device, self.setting.dtype)
        views = [
            x.to(self.setting.device, self.setting.dtype).unflatten(2, (HEADS, -1)).transpose(1, 2)
            for x in projected
        ]
        return views, logits


def cases(setting: Setting) -> Iterator[Case]:
    """The two finest levels of an image of 1024x1024; masks were predicted at 256x256."""
    on_cpu = setting.device.type == "cpu"
    for queries in (100,) if on_cpu or setting.quick else (100, 200):
        for side in (8,) if setting.quick else (64, 128):
            work = Workload(setting, queries, side, 16 if setting.quick else 256)
            yield _core(work, "forward")
            yield _core(work, "backward")
            yield _layer(work)


def _core(work: Workload, direction: str) -> Case:
    """What lies between the projections."""
    views, logits = work.inputs()
    bytes_moved = sum(x.numel() * x.element_size() for x in (*views, views[0], logits))
    backward = direction == "backward"
    providers = {
        "fastseg": _provider(_fastseg, views, logits, work, direction),
        "MultiheadAttention's core": _provider(_multihead_core, views, logits, work, direction),
        "torch SDPA": _provider(_sdpa, views, logits, work, direction),
    }
    return Case(
        name=f"{direction} Q{work.queries} {work.side}x{work.side} keys, {HEADS}x32, from logits",
        providers=providers,
        bytes_moved=bytes_moved * (2 if backward else 1),
        flops=(10 if backward else 4) * work.queries * work.side**2 * CHANNELS,
        agreement=_agreement(work.setting),
        needs_grad=backward,
    )


def _agreement(setting: Setting) -> Any:
    return relative_norm(1e-5 if setting.dtype == torch.float32 else 0.02)


def _provider(
    attend: Callable[[list[Tensor], Tensor, Workload], Tensor],
    views: list[Tensor],
    logits: Tensor,
    work: Workload,
    direction: str,
) -> Callable[[], Run]:
    def prepare() -> Run:
        if direction == "forward":
            return lambda: attend(views, logits, work)
        leaves = [x.detach().requires_grad_() for x in views]
        output = attend(leaves, logits, work)
        grad = torch.randn(output.shape, generator=generator()).to(output)
        return lambda: torch.autograd.grad(output, leaves, grad, retain_graph=True)

    return prepare


def _fastseg(views: list[Tensor], logits: Tensor, work: Workload) -> Tensor:
    from fastseg import ops

    return ops.masked_attention(*views, mask_logits=logits, size=work.size)


def _blocked(logits: Tensor, work: Workload, heads: int) -> Tensor:
    """Mask2Former's attention mask, [1, heads, Q, S] bool; transformers makes the same."""
    resized = F.interpolate(logits, work.size, mode="bilinear", align_corners=False)
    blocked = (resized.sigmoid().flatten(2)[:, None].repeat(1, heads, 1, 1) < 0.5).detach()
    return blocked & ~blocked.all(-1, keepdim=True)


def _multihead_core(views: list[Tensor], logits: Tensor, work: Workload) -> Tensor:
    """F.multi_head_attention_forward with the weights that Mask2Former lets it make."""
    query, key, value = (x.flatten(0, 1) for x in views)
    blocked = _blocked(logits, work, HEADS).flatten(0, 1)
    added = torch.zeros_like(blocked, dtype=query.dtype).masked_fill_(blocked, -torch.inf)
    scores = torch.baddbmm(added, query * query.shape[2] ** -0.5, key.transpose(1, 2))
    weights = torch.softmax(scores, dim=-1)
    output = torch.bmm(weights, value)[None]
    weights.unflatten(0, (1, HEADS)).mean(dim=1)  # made for the caller, who drops them
    return output


def _sdpa(views: list[Tensor], logits: Tensor, work: Workload) -> Tensor:
    allowed = ~_blocked(logits, work, 1)
    return F.scaled_dot_product_attention(*views, attn_mask=allowed)


def _layer(work: Workload) -> Case:
    """With the projections of queries, keys, values and output."""
    from fastseg import ops
    from fastseg.layers.attention import MultiHeadAttention

    random = generator()
    dtype, device = work.setting.dtype, work.setting.device
    torch.manual_seed(0)
    module = nn.MultiheadAttention(CHANNELS, HEADS, batch_first=True).to(device, dtype)
    own = MultiHeadAttention(channels=CHANNELS, num_heads=HEADS).to(device, dtype)
    own.load_state_dict(module.state_dict())
    target = torch.randn(1, work.queries, CHANNELS, generator=random).to(device, dtype)
    memory = torch.randn(1, work.side**2, CHANNELS, generator=random).to(device, dtype)
    _, logits = work.inputs()

    def ours() -> Tensor:
        bits = ops.pack_attention_mask(logits, work.size)
        return own(target, memory, memory, bits)

    def theirs() -> Tensor:
        blocked = _blocked(logits, work, HEADS).flatten(0, 1)
        return module(target, memory, memory, attn_mask=blocked)[0]

    return Case(
        name=f"layer Q{work.queries} {work.side}x{work.side} keys, with projections, from logits",
        providers={"fastseg": lambda: ours, "nn.MultiheadAttention": lambda: theirs},
        bytes_moved=memory.numel() * memory.element_size(),
        flops=(4 * work.queries + 4 * CHANNELS) * work.side**2 * CHANNELS,
        agreement=_agreement(work.setting),
    )

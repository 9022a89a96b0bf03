"""Swin Transformer (Liu et al., 2021), the features at strides 4, 8, 16 and 32.

Maps are [B, H, W, C] inside. Parameters are named as in the authors' object detection code, which
Mask2Former took over.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastseg.layers.linear import Linear

# What separates tokens that only the cyclic shift made neighbours, before the softmax.
SEPARATED = -100.0


class PatchEmbed(nn.Module):
    """Splits an image into patches of 4 x 4 pixels and projects each to a token.

    Args:
        channels: of a token.
        patch_size: height and width of a patch.
    """

    def __init__(self, *, channels: int, patch_size: int = 4) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(3, channels, patch_size, stride=patch_size)
        self.norm = nn.LayerNorm(channels)

    def forward(self, pixels: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, ceil(H / 4), ceil(W / 4), C]; zeros fill up the last patches."""
        pixels = F.pad(pixels, padding_to(self.patch_size, *pixels.shape[-2:]))
        x: Tensor = self.norm(self.proj(pixels).permute(0, 2, 3, 1))
        return x


class PatchMerging(nn.Module):
    """Joins 2 x 2 neighbours into one token of twice the channels.

    Args:
        channels: of the input.
    """

    def __init__(self, *, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels)
        self.reduction = Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, H, W, C] -> [B, ceil(H / 2), ceil(W / 2), 2 C]."""
        height, width = x.shape[1:3]
        x = F.pad(x, (0, 0, *padding_to(2, height, width)))
        batch, height, width, channels = x.shape
        x = x.reshape(batch, height // 2, 2, width // 2, 2, channels)
        # Neighbours in the order of the authors' weights: down first, then right.
        x = x.permute(0, 1, 3, 4, 2, 5).flatten(3)
        y: Tensor = self.reduction(self.norm(x))
        return y


class WindowAttention(nn.Module):
    """Multi-head self-attention within windows, with a bias by relative position (equation 4).

    Args:
        channels: of the tokens.
        num_heads: number of heads.
        window_size: M, height and width of a window in tokens.
    """

    def __init__(self, *, channels: int, num_heads: int, window_size: int) -> None:
        super().__init__()
        if channels % num_heads:
            raise ValueError(f"channels={channels} do not divide into num_heads={num_heads}")
        self.num_heads = num_heads
        self.window_size = window_size
        self.relative_position_bias_table = nn.Parameter(
            torch.zeros((2 * window_size - 1) ** 2, num_heads)
        )
        nn.init.normal_(self.relative_position_bias_table, std=0.02)
        self.qkv = Linear(channels, 3 * channels)
        self.proj = Linear(channels, channels)

    def forward(self, windows: Tensor, separated: Tensor | None) -> Tensor:
        """Attention in each window.

        Args:
            windows: [B, N, M * M, C], N windows of each image.
            separated: [N, M * M, M * M], True where a token must not attend to another; None if
                all of a window's tokens are neighbours.

        Returns:
            [B, N, M * M, C].
        """
        batch, number, tokens, channels = windows.shape
        head_channels = channels // self.num_heads
        qkv = self.qkv(windows).reshape(batch, number, tokens, 3, self.num_heads, head_channels)
        bias = self.relative_position_bias().to(qkv.dtype)
        if separated is None:
            q, k, v = qkv.flatten(0, 1).permute(2, 0, 3, 1, 4)
        else:
            # A window's heads are heads of the image, so that one bias serves the batch.
            q, k, v = qkv.permute(3, 0, 1, 4, 2, 5).flatten(2, 3)
            bias = (bias + SEPARATED * separated[:, None].to(bias.dtype)).flatten(0, 1)
        x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None])
        x = x.reshape(batch, number, self.num_heads, tokens, head_channels)
        x = x.transpose(2, 3).flatten(3)
        y: Tensor = self.proj(x)
        return y

    def relative_position_bias(self) -> Tensor:
        """[heads, M * M, M * M], of every token (row) to every other (column) of a window.

        For tokens at (i, j) and (k, l) it is the table's entry (i - k + M - 1, j - l + M - 1).
        """
        size = self.window_size
        table = self.relative_position_bias_table.view(2 * size - 1, 2 * size - 1, self.num_heads)
        # The windows of M x M entries of the table: [i, j, head, M - 1 - k, M - 1 - l].
        bias = table.unfold(0, size, 1).unfold(1, size, 1).flip(3, 4)
        return bias.permute(2, 0, 1, 3, 4).reshape(self.num_heads, size**2, size**2)


class MLP(nn.Module):
    """Two linear layers around a GELU.

    Args:
        channels: of input and output.
        hidden_channels: between the layers.
    """

    def __init__(self, *, channels: int, hidden_channels: int) -> None:
        super().__init__()
        self.fc1 = Linear(channels, hidden_channels)
        self.fc2 = Linear(hidden_channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] -> [..., C]."""
        y: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return y


class DropPath(nn.Module):
    """Stochastic depth (Huang et al., 2016): in training leaves a branch out for some images.

    Args:
        rate: probability of leaving it out, less than 1.
    """

    def __init__(self, *, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        """[B, ...] -> [B, ...], either zero or divided by the probability of keeping it."""
        if not self.training or self.rate == 0:
            return branch
        keep = 1 - self.rate
        kept = branch.new_empty((len(branch),) + (1,) * (branch.dim() - 1)).bernoulli_(keep)
        return branch * (kept / keep)


class SwinBlock(nn.Module):
    """Window attention and an MLP, each after a norm and around a shortcut (figure 3b).

    Args:
        channels: of input and output.
        num_heads: number of heads.
        window_size: height and width of a window in tokens.
        shift: by how many tokens the windows are shifted, 0 for the regular partition.
        drop_path: probability of leaving out a branch in training.
    """

    def __init__(
        self,
        *,
        channels: int,
        num_heads: int,
        window_size: int,
        shift: int,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        self.window_size = window_size
        self.shift = shift
        self.norm1 = nn.LayerNorm(channels)
        self.attn = WindowAttention(channels=channels, num_heads=num_heads, window_size=window_size)
        self.drop_path = DropPath(rate=drop_path)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = MLP(channels=channels, hidden_channels=4 * channels)

    def forward(self, x: Tensor, separated: Tensor | None) -> Tensor:
        """Applies the block.

        Args:
            x: [B, H, W, C].
            separated: of ``separated_by_shift``, used if the windows are shifted.

        Returns:
            [B, H, W, C].
        """
        x = x + self.drop_path(self.window_attention(self.norm1(x), separated))
        return x + self.drop_path(self.mlp(self.norm2(x)))

    def window_attention(self, x: Tensor, separated: Tensor | None) -> Tensor:
        """Attention of [B, H, W, C] in the regular or the shifted windows."""
        height, width = x.shape[1:3]
        x = F.pad(x, (0, 0, *padding_to(self.window_size, height, width)))
        padded_height, padded_width = x.shape[1:3]
        windows = partition(shifted(x, -self.shift), self.window_size)
        windows = self.attn(windows, separated if self.shift else None)
        x = shifted(joined(windows, self.window_size, padded_height, padded_width), self.shift)
        return x[:, :height, :width]


class SwinStage(nn.Module):
    """Blocks whose windows are regular and shifted in turn, and a patch merging but in the last.

    Args:
        channels: of the blocks.
        num_heads: number of heads.
        window_size: height and width of a window in tokens.
        drop_paths: per block, the probability of leaving out a branch in training.
        merge: whether patches are merged after the blocks.
    """

    def __init__(
        self,
        *,
        channels: int,
        num_heads: int,
        window_size: int,
        drop_paths: Sequence[float],
        merge: bool,
    ) -> None:
        super().__init__()
        self.window_size = window_size
        self.shift = window_size // 2
        self.blocks = nn.ModuleList(
            SwinBlock(
                channels=channels,
                num_heads=num_heads,
                window_size=window_size,
                shift=self.shift if i % 2 else 0,
                drop_path=drop_path,
            )
            for i, drop_path in enumerate(drop_paths)
        )
        self.downsample = PatchMerging(channels=channels) if merge else None

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """[B, H, W, C] -> the same shape for the output, and the input of the next stage."""
        separated = separated_by_shift(
            *x.shape[1:3], window_size=self.window_size, shift=self.shift, device=x.device
        )
        for block in self.blocks:
            x = block(x, separated)
        return x, x if self.downsample is None else self.downsample(x)


class SwinTransformer(nn.Module):
    """Patch embedding and stages of Swin blocks, with a norm for each stage's output.

    Windows that are larger than the map are filled up with zeros and shifted as all others: so do
    the authors' code for object detection, Mask2Former, mmdetection and transformers' backbone.
    (Classifiers such as torchvision's do not shift where one window covers the map.)

    Args:
        embed_channels: channels of the first stage; each further stage has twice as many.
        depths: number of blocks per stage.
        num_heads: number of heads per stage.
        window_size: height and width of a window in tokens.
        drop_path: probability of leaving out a branch of the last block in training; it grows
            linearly from 0 at the first.
    """

    def __init__(
        self,
        *,
        embed_channels: int,
        depths: Sequence[int],
        num_heads: Sequence[int],
        window_size: int = 7,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        if len(depths) != len(num_heads):
            raise ValueError(
                f"depths and num_heads need one number per stage, got {depths} and {num_heads}"
            )
        if not 0 <= drop_path < 1:
            raise ValueError(f"drop_path must be at least 0 and less than 1, got {drop_path}")
        if window_size < 2:
            raise ValueError(f"window_size must be at least 2, got {window_size}")
        self.patch_embed = PatchEmbed(channels=embed_channels)
        self.out_channels = [embed_channels * 2**i for i in range(len(depths))]
        last_block = max(sum(depths) - 1, 1)
        self.layers = nn.ModuleList()
        for i, channels in enumerate(self.out_channels):
            first = sum(depths[:i])
            self.layers.append(
                SwinStage(
                    channels=channels,
                    num_heads=num_heads[i],
                    window_size=window_size,
                    drop_paths=[drop_path * (first + j) / last_block for j in range(depths[i])],
                    merge=i < len(depths) - 1,
                )
            )
            self.add_module(f"norm{i}", nn.LayerNorm(channels))
        self.apply(initialise)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """[B, 3, H, W] -> features at strides 4, 8, 16, 32, whose sizes are rounded up."""
        x = self.patch_embed(pixels)
        stages = []
        for i, layer in enumerate(self.layers):
            y, x = layer(x)
            stages.append(self.get_submodule(f"norm{i}")(y).permute(0, 3, 1, 2))
        return stages


def initialise(module: nn.Module) -> None:
    """The authors' initial weights of linear layers.

    They cut the normal distribution at 2, a hundred standard deviations.
    """
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def padding_to(multiple: int, height: int, width: int) -> tuple[int, int, int, int]:
    """Argument of ``F.pad`` that makes height and width multiples, at the right and below."""
    return 0, -width % multiple, 0, -height % multiple


def shifted(x: Tensor, by: int) -> Tensor:
    """Moves [B, H, W, C] cyclically down and right (figure 4)."""
    return torch.roll(x, shifts=(by, by), dims=(1, 2)) if by else x


def partition(x: Tensor, size: int) -> Tensor:
    """[B, H, W, C], multiples of the size -> windows [B, N, size * size, C], row by row."""
    batch, height, width, channels = x.shape
    rows, columns = height // size, width // size
    x = x.reshape(batch, rows, size, columns, size, channels)
    return x.transpose(2, 3).reshape(batch, rows * columns, size * size, channels)


def joined(windows: Tensor, size: int, height: int, width: int) -> Tensor:
    """The reverse of ``partition``: [B, N, size * size, C] -> [B, H, W, C]."""
    batch, _, _, channels = windows.shape
    x = windows.reshape(batch, height // size, width // size, size, size, channels)
    return x.transpose(2, 3).reshape(batch, height, width, channels)


def separated_by_shift(
    height: int, width: int, *, window_size: int, shift: int, device: torch.device
) -> Tensor:
    """Pairs of tokens that only the cyclic shift brought into one window.

    Those are in the last row or column of windows: of a pair, one was moved there from the other
    side of the map.

    Args:
        height: of the map, before it is padded to the windows.
        width: likewise.
        window_size: M.
        shift: by how many tokens the map is moved up and left.
        device: of the result.

    Returns:
        bool [N, M * M, M * M] for the N windows, row by row.
    """
    height += -height % window_size
    width += -width % window_size
    from_above = torch.arange(height, device=device) >= height - shift
    from_left = torch.arange(width, device=device) >= width - shift
    side = from_above[:, None] * 2 + from_left.long()
    side = partition(side[None, :, :, None], window_size)[0, :, :, 0]
    return side[:, :, None] != side[:, None, :]


def swin_t(*, window_size: int = 7, drop_path: float = 0.3) -> SwinTransformer:
    """Swin-T; the rate of stochastic depth here and below is Mask2Former's."""
    return SwinTransformer(
        embed_channels=96,
        depths=(2, 2, 6, 2),
        num_heads=(3, 6, 12, 24),
        window_size=window_size,
        drop_path=drop_path,
    )


def swin_s(*, window_size: int = 7, drop_path: float = 0.3) -> SwinTransformer:
    """Swin-S."""
    return SwinTransformer(
        embed_channels=96,
        depths=(2, 2, 18, 2),
        num_heads=(3, 6, 12, 24),
        window_size=window_size,
        drop_path=drop_path,
    )


def swin_b(*, window_size: int = 12, drop_path: float = 0.3) -> SwinTransformer:
    """Swin-B as pre-trained on images of 384 pixels; on 224 pixels the window is 7."""
    return SwinTransformer(
        embed_channels=128,
        depths=(2, 2, 18, 2),
        num_heads=(4, 8, 16, 32),
        window_size=window_size,
        drop_path=drop_path,
    )


def swin_l(*, window_size: int = 12, drop_path: float = 0.3) -> SwinTransformer:
    """Swin-L as pre-trained on images of 384 pixels; on 224 pixels the window is 7."""
    return SwinTransformer(
        embed_channels=192,
        depths=(2, 2, 18, 2),
        num_heads=(6, 12, 24, 48),
        window_size=window_size,
        drop_path=drop_path,
    )

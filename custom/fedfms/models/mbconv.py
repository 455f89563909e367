"""TinyViT's convolutional parts: stem, inverted bottleneck, merging; their batch statistics stand still."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

EXPAND = 4  # of an inverted bottleneck


class FixedBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation by its running statistics, always, in training too: (B, C, H, W) -> the same shape.

    Statistics of a batch of a few slices are noise, and they would make an image's features depend on its
    neighbours, so that no prefix could be cached. Running statistics that move are worse: buffers are never
    shared, so every site would drift away to an encoder of its own under adapters that are averaged.
    """

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> the same shape."""
        return F.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, training=False, eps=self.eps
        )

    def as_line(self) -> tuple[Tensor, Tensor]:
        """(scale, shift) of each channel: this norm is x -> scale x + shift."""
        assert self.running_mean is not None and self.running_var is not None
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return scale, self.bias - self.running_mean * scale


class ConvBN(nn.Module):
    """Convolution without bias, batch normalisation: (B, in, H, W) -> (B, out, H / stride, W / stride)."""

    def __init__(self, in_dim: int, out_dim: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.c = nn.Conv2d(in_dim, out_dim, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = FixedBatchNorm2d(out_dim)
        # Fixed statistics do not rescale, so random weights must keep the variance by themselves.
        nn.init.kaiming_normal_(self.c.weight, nonlinearity="relu")

    def forward(self, x: Tensor, *, plain: bool) -> Tensor:
        """(B, in, H, W) -> (B, out, H / stride, W / stride); `plain`: one after the other, not both at once."""
        if plain:
            out: Tensor = self.bn(self.c(x))
            return out
        scale, shift = self.bn.as_line()
        weight = self.c.weight * scale[:, None, None, None]
        return F.conv2d(x, weight, shift, self.c.stride, self.c.padding, groups=self.c.groups)


class PatchEmbed(nn.Module):
    """The stem: (B, 3, S, S) -> (B, dim, s, s), s = S / stride^2."""

    def __init__(self, dim: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.seq = nn.Sequential(ConvBN(3, dim // 2, kernel, stride), nn.GELU(), ConvBN(dim // 2, dim, kernel, stride))

    def forward(self, x: Tensor, plain: bool) -> Tensor:
        """(B, 3, S, S) -> (B, dim, s, s)."""
        first, act, second = self.seq
        out: Tensor = second(act(first(x, plain=plain)), plain=plain)
        return out


class MBConv(nn.Module):
    """Inverted bottleneck with a skip connection: (B, dim, H, W) -> the same shape."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        hidden = dim * EXPAND
        self.conv1 = ConvBN(dim, hidden)
        self.conv2 = ConvBN(hidden, hidden, 3, groups=hidden)
        self.conv3 = ConvBN(hidden, dim)

    def forward(self, x: Tensor, plain: bool) -> Tensor:
        """(B, dim, H, W) -> the same shape; the last activation comes after the sum."""
        inner = F.gelu(self.conv2(F.gelu(self.conv1(x, plain=plain)), plain=plain))
        return F.gelu(x + self.conv3(inner, plain=plain))


class PatchMerging(nn.Module):
    """Between stages: (B, in, H, W) -> (B, out, H / stride, W / stride)."""

    def __init__(self, in_dim: int, out_dim: int, stride: int) -> None:
        super().__init__()
        self.conv1 = ConvBN(in_dim, out_dim)
        self.conv2 = ConvBN(out_dim, out_dim, 3, stride=stride, groups=out_dim)
        self.conv3 = ConvBN(out_dim, out_dim)

    def forward(self, x: Tensor, plain: bool) -> Tensor:
        """(B, in, H, W) -> (B, out, H', W')."""
        inner = F.gelu(self.conv2(F.gelu(self.conv1(x, plain=plain)), plain=plain))
        out: Tensor = self.conv3(inner, plain=plain)
        return out

"""TinyViT's convolutional parts: stem, inverted bottleneck, merging, all with fixed batch statistics."""

from torch import Tensor, nn
from torch.nn import functional as F

EXPAND = 4  # of an inverted bottleneck


class FixedBatchNorm2d(nn.BatchNorm2d):
    """Batch normalisation with fixed running statistics, also in training: (B, C, H, W) -> the same shape.

    Statistics of a few slices are noisy, and features would depend on the other images of a batch, so no prefix could
    be cached. Running statistics must not move either: buffers are not shared, so the sites' encoders would drift
    apart under averaged adapters.
    """

    def forward(self, x: Tensor) -> Tensor:
        mean, var = self.running_mean, self.running_var
        return F.batch_norm(x, mean, var, self.weight, self.bias, training=False, eps=self.eps)

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """(scale, shift) of each channel: the norm is x -> scale x + shift."""
        assert self.running_mean is not None and self.running_var is not None
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return scale, self.bias - self.running_mean * scale


class ConvBN(nn.Module):
    """Convolution without bias, batch normalisation: (B, in, H, W) -> (B, out, H / stride, W / stride).

    `plain` runs one after the other; otherwise the norm is fused into the convolution.
    """

    def __init__(self, in_dim: int, out_dim: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.c = nn.Conv2d(in_dim, out_dim, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = FixedBatchNorm2d(out_dim)
        # Fixed statistics do not rescale, so random weights must preserve the variance.
        nn.init.kaiming_normal_(self.c.weight, nonlinearity="relu")

    def forward(self, x: Tensor, *, plain: bool) -> Tensor:
        if plain:
            out: Tensor = self.bn(self.c(x))
            return out
        scale, shift = self.bn.scale_and_shift()
        weight = self.c.weight * scale[:, None, None, None]
        return F.conv2d(x, weight, shift, self.c.stride, self.c.padding, groups=self.c.groups)


class PatchEmbed(nn.Module):
    """The stem: (B, 3, S, S) -> (B, dim, s, s), s = S / stride^2."""

    def __init__(self, dim: int, kernel: int, stride: int) -> None:
        super().__init__()
        self.seq = nn.Sequential(ConvBN(3, dim // 2, kernel, stride), nn.GELU(), ConvBN(dim // 2, dim, kernel, stride))

    def forward(self, x: Tensor, plain: bool) -> Tensor:
        first, act, second = self.seq
        out: Tensor = second(act(first(x, plain=plain)), plain=plain)
        return out


class MBConv(nn.Module):
    """Inverted bottleneck with a skip connection, activation after the sum: (B, dim, H, W) -> the same shape."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        hidden = dim * EXPAND
        self.conv1 = ConvBN(dim, hidden)
        self.conv2 = ConvBN(hidden, hidden, 3, groups=hidden)
        self.conv3 = ConvBN(hidden, dim)

    def forward(self, x: Tensor, plain: bool) -> Tensor:
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
        inner = F.gelu(self.conv2(F.gelu(self.conv1(x, plain=plain)), plain=plain))
        out: Tensor = self.conv3(inner, plain=plain)
        return out

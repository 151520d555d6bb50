"""Networks for dense prediction as their authors' repositories write them, made tiny.

Encoders and decoders with skips, pyramids, several paths, several outputs: one of each kind. All
take images of 32 by 32.
"""

import torch
import torch.nn.functional as F
from torch import nn

SHAPE = (1, 3, 32, 32)
CLASSES = 5


def cbr(inputs, outputs, kernel=3, stride=1, dilation=1, groups=1, act=nn.ReLU):
    """Convolution, norm, activation."""
    padding = dilation * (kernel // 2)
    conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), act())


def resize(x, like, mode="bilinear"):
    corners = None if mode == "nearest" else False
    return F.interpolate(x, size=like.shape[-2:], mode=mode, align_corners=corners)


class UNet(nn.Module):
    """Skips by concatenation, nearest upsampling, double convolutions."""

    def __init__(self, transposed=False):
        super().__init__()
        self.inc = nn.Sequential(cbr(3, 4), cbr(4, 4))
        self.down1 = nn.Sequential(nn.MaxPool2d(2), cbr(4, 8), cbr(8, 8))
        self.down2 = nn.Sequential(nn.MaxPool2d(2), cbr(8, 8), cbr(8, 8))
        up = nn.ConvTranspose2d(8, 8, 2, stride=2) if transposed else nn.Upsample(scale_factor=2)
        self.up1, self.merge1 = up, nn.Sequential(cbr(16, 8), cbr(8, 4))
        up = nn.ConvTranspose2d(4, 4, 2, stride=2) if transposed else nn.Upsample(scale_factor=2)
        self.up2, self.merge2 = up, nn.Sequential(cbr(8, 4), cbr(4, 4))
        self.outc = nn.Conv2d(4, CLASSES, 1)

    def forward(self, x):
        x1 = self.inc(x)
        x2 = self.down1(x1)
        x3 = self.down2(x2)
        x = self.merge1(torch.cat([x2, self.up1(x3)], dim=1))
        return self.outc(self.merge2(torch.cat([x1, self.up2(x)], dim=1)))


class TransposedUNet(UNet):
    """The same by transposed convolutions."""

    def __init__(self):
        super().__init__(transposed=True)


class ENet(nn.Module):
    """An initial block of a convolution and a pool, dilated bottlenecks, unpooling."""

    def __init__(self):
        super().__init__()
        self.initial = nn.Conv2d(3, 5, 3, 2, 1, bias=False)
        self.norm, self.act = nn.BatchNorm2d(8), nn.PReLU(8)
        self.reduce = cbr(8, 4, 1, act=nn.PReLU)
        self.dilated = cbr(4, 4, dilation=2, act=nn.PReLU)
        self.rows, self.columns = nn.Conv2d(4, 4, (5, 1), padding=(2, 0)), cbr(4, 4, 1)
        self.expand, self.drop = cbr(4, 8, 1, act=nn.Identity), nn.Dropout2d(0.1)
        self.back = nn.Conv2d(8, 8, 1, bias=False)
        self.full = nn.ConvTranspose2d(8, CLASSES, 3, 2, 1, 1, bias=False)

    def forward(self, x):
        x = torch.cat([self.initial(x), F.max_pool2d(x, 2, 2)], 1)
        x = self.act(self.norm(x))
        pooled, places = F.max_pool2d(x, 2, 2, return_indices=True)
        y = self.columns(self.rows(self.dilated(self.reduce(pooled))))
        y = F.relu(pooled + self.drop(self.expand(y)))
        return self.full(F.max_unpool2d(self.back(y), places, 2, output_size=x.shape[-2:]))


class FastSCNN(nn.Module):
    """Learning to downsample, depthwise convolutions, pyramid pooling, feature fusion."""

    def __init__(self):
        super().__init__()
        self.down = nn.Sequential(cbr(3, 4, stride=2), cbr(4, 4, stride=2, groups=4), cbr(4, 8, 1))
        self.deep = nn.Sequential(cbr(8, 16, 1), cbr(16, 16, stride=2, groups=16), cbr(16, 8, 1))
        self.pyramid = nn.ModuleList(cbr(8, 2, 1) for _ in range(2))
        self.fuse = cbr(12, 8, 1)
        self.lower, self.higher = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.classifier = nn.Sequential(cbr(8, 8, groups=8), nn.Dropout(0.1), nn.Conv2d(8, 5, 1))

    def forward(self, x):
        size = x.size()[2:]
        higher = self.down(x)
        low = self.deep(higher)
        maps = [
            resize(conv(F.adaptive_avg_pool2d(low, bins)), low)
            for bins, conv in zip((1, 2), self.pyramid, strict=True)
        ]
        low = self.fuse(torch.cat([low, *maps], 1))
        x = F.relu(self.lower(F.interpolate(low, scale_factor=2.0)) + self.higher(higher))
        return (F.interpolate(self.classifier(x), size, mode="bilinear", align_corners=True),)


class NonBottleneck1d(nn.Module):
    def __init__(self, channels, dilation):
        super().__init__()
        self.conv3x1 = nn.Conv2d(
            channels, channels, (3, 1), padding=(dilation, 0), dilation=(dilation, 1)
        )
        self.conv1x3 = nn.Conv2d(
            channels, channels, (1, 3), padding=(0, dilation), dilation=(1, dilation)
        )
        self.norm = nn.BatchNorm2d(channels, eps=1e-3)

    def forward(self, x):
        y = F.relu(self.conv3x1(x))
        return F.relu(self.norm(self.conv1x3(y)) + x)


class ERFNet(nn.Module):
    """Factorised dilated residual blocks; a pool beside each strided convolution."""

    def __init__(self):
        super().__init__()
        self.first, self.norm1 = nn.Conv2d(3, 5, 3, 2, 1), nn.BatchNorm2d(8)
        self.second, self.norm2 = nn.Conv2d(8, 8, 3, 2, 1), nn.BatchNorm2d(16)
        self.blocks = nn.Sequential(NonBottleneck1d(16, 1), NonBottleneck1d(16, 2))
        self.up, self.norm3 = nn.ConvTranspose2d(16, 8, 3, 2, 1, 1), nn.BatchNorm2d(8)
        self.output_conv = nn.ConvTranspose2d(8, CLASSES, 2, stride=2)

    def forward(self, x):
        x = F.relu(self.norm1(torch.cat([self.first(x), F.max_pool2d(x, 2)], 1)))
        x = F.relu(self.norm2(torch.cat([self.second(x), F.max_pool2d(x, 2)], 1)))
        x = F.relu(self.norm3(self.up(self.blocks(x))))
        return self.output_conv(x)


class LinkNet(nn.Module):
    """Skips by addition; bottleneck decoders."""

    def __init__(self):
        super().__init__()
        self.stem = cbr(3, 4, stride=2)
        self.down1, self.down2 = cbr(4, 8, stride=2), cbr(8, 8, stride=2)
        self.up2 = nn.Sequential(
            cbr(8, 4, 1), nn.ConvTranspose2d(4, 4, 3, 2, 1, 1, groups=2), cbr(4, 8, 1)
        )
        self.up1 = nn.Sequential(cbr(8, 4, 1), nn.ConvTranspose2d(4, 4, 4, 2, 1), cbr(4, 4, 1))
        self.final = nn.Sequential(
            nn.ConvTranspose2d(4, 4, 3, 2, 1, 1), nn.ReLU(), nn.Conv2d(4, 5, 1)
        )

    def forward(self, x):
        x = self.stem(x)
        e1 = self.down1(x)
        e2 = self.down2(e1)
        d2 = self.up2(e2) + e1
        return self.final(self.up1(d2) + x)


class FPN(nn.Module):
    """Laterals, a way down, and one prediction per level by a shared head."""

    def __init__(self):
        super().__init__()
        self.c1, self.c2, self.c3 = cbr(3, 4, stride=2), cbr(4, 8, stride=2), cbr(8, 8, stride=2)
        self.laterals = nn.ModuleList(nn.Conv2d(c, 8, 1) for c in (4, 8, 8))
        self.smooth = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(3))
        self.tower, self.predict = cbr(8, 8), nn.Conv2d(8, CLASSES, 3, padding=1)

    def forward(self, x):
        c1 = self.c1(x)
        c2 = self.c2(c1)
        p = [lateral(c) for lateral, c in zip(self.laterals, (c1, c2, self.c3(c2)), strict=True)]
        for i in (1, 0):
            p[i] = p[i] + resize(p[i + 1], p[i], "nearest")
        p = [smooth(one) for smooth, one in zip(self.smooth, p, strict=True)]
        return [self.predict(self.tower(one)) for one in p]


class HRNet(nn.Module):
    """Two resolutions side by side that exchange what they know."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(cbr(3, 8, stride=2), cbr(8, 8))
        self.to_low = cbr(8, 8, stride=2)
        self.high, self.low = cbr(8, 8), cbr(8, 8)
        self.up = nn.Sequential(nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8))
        self.down = nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8))
        self.last = nn.Sequential(cbr(16, 8, 1), nn.Conv2d(8, CLASSES, 1))

    def forward(self, x):
        high = self.stem(x)
        high, low = self.high(high), self.low(self.to_low(high))
        high, low = F.relu(high + resize(self.up(low), high)), F.relu(low + self.down(high))
        return self.last(torch.cat([high, resize(low, high)], 1))


class PSPNet(nn.Module):
    """A pooling pyramid, and an auxiliary map beside the one that is wanted."""

    def __init__(self):
        super().__init__()
        self.layer0, self.layer1 = cbr(3, 8, stride=2), cbr(8, 8, stride=2)
        self.layer2 = cbr(8, 8, dilation=2)
        self.features = nn.ModuleList(
            nn.Sequential(nn.AdaptiveAvgPool2d(b), cbr(8, 2, 1)) for b in (1, 2, 4)
        )
        self.cls = nn.Sequential(cbr(14, 8), nn.Dropout2d(0.1), nn.Conv2d(8, CLASSES, 1))
        self.aux = nn.Sequential(cbr(8, 4), nn.Conv2d(4, CLASSES, 1))

    def forward(self, x):
        size = x.shape[2:]
        middle = self.layer1(self.layer0(x))
        y = self.layer2(middle)
        y = torch.cat([y, *(resize(feature(y), y) for feature in self.features)], 1)
        maps = {"out": self.cls(y), "aux": self.aux(middle)}
        return {name: F.interpolate(m, size, mode="bilinear") for name, m in maps.items()}


class SegNet(nn.Module):
    """Unpooling by the places of the maxima."""

    def __init__(self):
        super().__init__()
        self.enc1, self.enc2 = nn.Sequential(cbr(3, 4), cbr(4, 4)), nn.Sequential(cbr(4, 8))
        self.pool, self.unpool = nn.MaxPool2d(2, 2, return_indices=True), nn.MaxUnpool2d(2, 2)
        self.dec2, self.dec1 = (
            cbr(8, 4),
            nn.Sequential(cbr(4, 4), nn.Conv2d(4, CLASSES, 3, padding=1)),
        )

    def forward(self, x):
        x, first = self.pool(self.enc1(x))
        x, second = self.pool(self.enc2(x))
        return self.dec1(self.unpool(self.dec2(self.unpool(x, second)), first))


class BiSeNet(nn.Module):
    """Two paths that both read the image; channel attention; outputs of each depth."""

    def __init__(self):
        super().__init__()
        self.spatial = nn.Sequential(cbr(3, 4, stride=2), cbr(4, 8, stride=2))
        self.context = nn.Sequential(cbr(3, 4, stride=2), cbr(4, 8, stride=2), cbr(8, 8, stride=2))
        self.attention = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8), nn.Sigmoid()
        )
        self.fuse = cbr(16, 8, 1)
        self.out, self.out16 = nn.Conv2d(8, CLASSES, 1), nn.Conv2d(8, CLASSES, 1)

    def forward(self, x):
        spatial, context = self.spatial(x), self.context(x)
        context = context * self.attention(context)
        fused = self.fuse(torch.cat([spatial, resize(context, spatial)], 1))
        fused = fused + fused * torch.sigmoid(fused.mean((2, 3), keepdim=True))
        return resize(self.out(fused), x), resize(self.out16(context), x)


class DeepLabV3Plus(nn.Module):
    """Dilated convolutions side by side, pooling over the image, a decoder of low features."""

    def __init__(self):
        super().__init__()
        self.low, self.high = cbr(3, 8, stride=2), cbr(8, 8, stride=2)
        self.aspp = nn.ModuleList([cbr(8, 4, 1), cbr(8, 4, dilation=2), cbr(8, 4, dilation=3)])
        self.pooled = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 4, 1), nn.ReLU())
        self.project, self.reduce = cbr(16, 8, 1), cbr(8, 4, 1)
        self.classifier = nn.Sequential(cbr(12, 8), nn.Conv2d(8, CLASSES, 1))

    def forward(self, x):
        low = self.low(x)
        high = self.high(low)
        found = [branch(high) for branch in self.aspp]
        found.append(resize(self.pooled(high), high))
        high = self.project(torch.cat(found, 1))
        return resize(self.classifier(torch.cat([self.reduce(low), resize(high, low)], 1)), x)

"""Networks that return less while they train, or numbers beside maps: detectors, several tasks."""

import torch
import torch.nn.functional as F
from torch import nn

from tests.dense.segmentation import CLASSES, cbr


class Detect(nn.Module):
    """Maps of anchors; boxes are made of them in evaluation alone."""

    anchors: torch.Tensor

    def __init__(self, channels):
        super().__init__()
        self.kinds, self.sides, self.strides = 2, 5 + CLASSES, (4, 8)
        self.maps = nn.ModuleList(nn.Conv2d(c, self.kinds * self.sides, 1) for c in channels)
        self.register_buffer("anchors", torch.arange(1.0, 9.0).view(2, 1, 2, 1, 1, 2))

    def forward(self, features):
        maps, boxes = [], []
        for index, feature in enumerate(features):
            found = self.maps[index](feature)
            batch, _, rows, columns = found.shape
            found = found.view(batch, self.kinds, self.sides, rows, columns)
            maps.append(found.permute(0, 1, 3, 4, 2).contiguous())
            if not self.training:
                boxes.append(self.decode(index, maps[-1].sigmoid(), rows, columns))
        return maps if self.training else (torch.cat(boxes, 1), maps)

    def decode(self, index, found, rows, columns):
        places = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
        grid = torch.stack(places[::-1], 2).view(1, 1, rows, columns, 2).float()
        centre = (found[..., :2] * 2 - 0.5 + grid) * self.strides[index]
        size = (found[..., 2:4] * 2) ** 2 * self.anchors[index]
        return torch.cat([centre, size, found[..., 4:]], -1).flatten(1, 3)


class YOLO(nn.Module):
    """Two scales, swish, a detection layer of its own."""

    def __init__(self):
        super().__init__()
        self.stem = cbr(3, 8, stride=2, act=nn.SiLU)
        self.low = cbr(8, 8, stride=2, act=nn.SiLU)
        self.high = cbr(8, 8, stride=2, act=nn.SiLU)
        self.fuse = cbr(16, 8, act=nn.SiLU)
        self.detect = Detect((8, 8))

    def forward(self, x):
        low = self.low(self.stem(x))
        high = self.high(low)
        return self.detect(
            [self.fuse(torch.cat([low, F.interpolate(high, scale_factor=2)], 1)), high]
        )


class Decode(nn.Module):
    """Scores of all places in evaluation; the maps themselves in training."""

    def forward(self, maps):
        if self.training:
            return maps
        return torch.cat([m.flatten(2).sigmoid() for m in maps], 2), maps


class OnePlace(nn.Module):
    """What differs is in a module without layers."""

    def __init__(self):
        super().__init__()
        self.stem, self.body = cbr(3, 8, stride=2), cbr(8, 8, stride=2)
        self.high, self.low = nn.Conv2d(8, CLASSES, 1), nn.Conv2d(8, CLASSES, 1)
        self.decode = Decode()

    def forward(self, x):
        body = self.body(self.stem(x))
        return self.decode([self.high(body), self.low(F.avg_pool2d(body, 2))])


class Tasks(nn.Module):
    """A number, classes and points of one face."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(cbr(3, 8, stride=2), cbr(8, 8, stride=2), cbr(8, 16))
        self.age = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 1))
        self.kind, self.points = nn.Linear(16, 2), nn.Linear(16, 10)

    def forward(self, x):
        found = self.body(x).mean((2, 3))
        points = self.points(found).view(-1, 5, 2)
        return {"age": self.age(found).squeeze(1), "kind": self.kind(found), "points": points}

"""Index and image to training sample: a pure function of (seed, epoch, index), whatever was drawn before."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from data.augment import Affine, Picture, Tile, compose, flip, hsv_draw, letterbox, mixup, mosaic, recolour
from data.cache import ImageCache, ImageList, build_cache, load_indexed, resized_sizes
from utils.errors import UserError
from utils.seed import rng

SAME = np.eye(3, dtype=np.float32)
NEAR = 64  # images before a sample, in the order of its epoch, that its partners are drawn from
KEPT = 2 * NEAR  # decoded images that a process remembers: with room for those that other workers' samples share


class Labels(ImageList, Protocol):
    """What a data set needs of an index."""

    boxes: np.ndarray  # float32 [T, 4], xyxy in pixels
    classes: np.ndarray  # int32 [T]
    crowd: np.ndarray  # bool [T]
    offsets: np.ndarray  # int64 [N + 1]: labels of image i are offsets[i] to offsets[i + 1]


class Augmentation(Protocol):
    """The hyper-parameters that this file reads."""

    hsv_h: float
    hsv_s: float
    hsv_v: float
    degrees: float
    translate: float
    scale: float
    shear: float
    perspective: float
    flipud: float
    fliplr: float
    mosaic: float
    mixup: float
    close_mosaic: int


class SampleKey(NamedTuple):
    """Which sample: the draws of an image differ from epoch to epoch."""

    epoch: int
    index: int


@dataclass(frozen=True)
class Sample:
    """One picture, ready for a batch."""

    image: Tensor  # uint8 [3, H, W], RGB; its memory is ordered [H, W, 3]
    boxes: Tensor  # float32 [n, 4], xyxy in pixels of `image`
    classes: Tensor  # int64 [n]
    index: int
    letterbox: Tensor  # float32 [4]: gain x, gain y, pad x, pad y: x_in = x_original · gain + pad. NaN if augmented
    colour: Tensor = field(
        default_factory=lambda: torch.eye(3)
    )  # float32 [3, 3]: its RGB is yet to be multiplied by it


@lru_cache(maxsize=2)
def epoch_order(seed: int, epoch: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """The order of `count` images in an epoch, and the place of each in it: int32 `[count]` both."""
    order = rng(seed, "order", epoch).permutation(count).astype(np.int32)
    place = np.empty_like(order)
    place[order] = np.arange(count, dtype=np.int32)
    return order, place


class DetectionDataset(Dataset[Sample]):
    """Samples of an index at one image size.

    `augment` gives training samples: mosaic, mixup, affine, HSV and flips as `hyp` says, of side `imgsz`; mosaic and
    mixup are off in the last `hyp.close_mosaic` of `epochs` epochs. Otherwise a sample is the letterboxed image.
    `rect` gives every image the smallest shape of multiples of `stride` that holds it (no mosaic, no mixup: they need
    pictures of one shape). Boxes of crowds are in no sample: they are no example of anything.
    `defer_colour` leaves a sample's colours as they are and says in `Sample.colour` what they shall become: a GPU does
    that to a whole batch (`Batch.recoloured`).
    `cache`: None, 'ram' or 'disk', see `build_cache`; the samples are the same.
    """

    def __init__(
        self,
        index: Labels,
        imgsz: int,
        hyp: Augmentation,
        *,
        seed: int,
        epochs: int,
        augment: bool,
        rect: bool = False,
        stride: int = 32,
        cache: str | None = None,
        single_cls: bool = False,
        defer_colour: bool = False,
    ) -> None:
        if imgsz % stride:
            raise UserError(f"--imgsz {imgsz}: must be a multiple of the model's stride {stride}")
        self.defer_colour = defer_colour
        self.index, self.imgsz, self.hyp, self.seed = index, imgsz, hyp, seed
        self.augment, self.rect, self.stride, self.single_cls = augment, rect, stride, single_cls
        self._first_plain_epoch = epochs - hyp.close_mosaic
        self._affine = Affine(hyp.degrees, hyp.translate, hyp.scale, hyp.shear, hyp.perspective)
        self._cache: ImageCache | None = build_cache(index, imgsz, cache) if cache else None
        self._recent: OrderedDict[int, np.ndarray] = OrderedDict()

    def __len__(self) -> int:
        return len(self.index)

    def shapes(self) -> np.ndarray:
        """Height and width of every image's samples: int64 `[N, 2]`."""
        if not self.rect:
            return np.full((len(self), 2), self.imgsz, np.int64)
        return self._rect_shape(self.index.sizes)

    def __getitem__(self, key: SampleKey) -> Sample:
        return self._training_sample(key) if self.augment else self._plain_sample(key.index)

    def _rect_shape(self, sizes: np.ndarray) -> np.ndarray:
        return -(-resized_sizes(sizes, self.imgsz)[..., ::-1] // self.stride) * self.stride

    def _shape(self, i: int) -> tuple[int, int]:
        return tuple(self._rect_shape(self.index.sizes[i]).tolist()) if self.rect else (self.imgsz, self.imgsz)

    def _load(self, i: int) -> Picture:
        """Image `i`, its long side resized to `imgsz`, with its boxes."""
        image = self._cache[i] if self._cache is not None else self._decode(i)
        labels = slice(self.index.offsets[i], self.index.offsets[i + 1])
        single = ~self.index.crowd[labels]
        gain = (image.shape[1::-1] / self.index.sizes[i]).astype(np.float32)
        boxes = self.index.boxes[labels][single] * np.tile(gain, 2)
        classes = self.index.classes[labels][single].astype(np.int64)
        return Picture(image, boxes, np.zeros_like(classes) if self.single_cls else classes)

    def _decode(self, i: int) -> np.ndarray:
        """Image `i` from its file, or from memory where it was among the last of a training set."""
        image = self._recent.get(i)
        if image is None:
            image = load_indexed(self.index, i, self.imgsz)
            if self.augment:
                self._recent[i] = image
            if len(self._recent) > KEPT:
                self._recent.popitem(last=False)
        return image

    def _plain_sample(self, i: int) -> Sample:
        image, boxes, classes = self._load(i)
        gain = image.shape[1::-1] / self.index.sizes[i]
        canvas, left, top = letterbox(image, *self._shape(i))
        boxes = boxes + np.array([left, top, left, top], np.float32)
        return _sample(Picture(canvas, boxes, classes), i, [*gain, left, top])

    def _training_sample(self, key: SampleKey) -> Sample:
        hyp, composite = self.hyp, not self.rect and key.epoch < self._first_plain_epoch
        picture = self._warped(key, 0, composite)
        if composite and hyp.mixup:
            draw = rng(self.seed, "mixup", *key)
            if draw.random() < hyp.mixup:
                partner = int(self._partners(key, draw, 1)[0])
                other = self._warped(SampleKey(key.epoch, partner), 1 + key.index, composite)
                picture = mixup(picture, other, draw.beta(32.0, 32.0))
        colour = hsv_draw(picture.image, rng(self.seed, "hsv", *key), hyp.hsv_h, hyp.hsv_s, hyp.hsv_v)
        image = picture.image if self.defer_colour else recolour(picture.image, colour)
        left_right, top_bottom = rng(self.seed, "flip", *key).random(2) < (hyp.fliplr, hyp.flipud)
        picture = flip(picture._replace(image=image), bool(left_right), bool(top_bottom))
        return _sample(picture, key.index, [np.nan] * 4, colour if self.defer_colour else SAME)

    def _warped(self, key: SampleKey, role: int, composite: bool) -> Picture:
        """A mosaic or a single picture, warped. `role`: 0, or 1 + the index of the sample that it is mixed into."""
        draw = rng(self.seed, "mosaic", *key, role)
        if composite and draw.random() < self.hyp.mosaic:
            tiles = self._mosaic(key, draw)
            source, target = (2 * self.imgsz,) * 2, (self.imgsz,) * 2
        else:
            picture = self._load(key.index)
            source = target = self._shape(key.index)[::-1]
            left, top = ((side - own) // 2 for side, own in zip(target, picture.image.shape[1::-1], strict=True))
            tiles = [Tile(picture, left, top)]
        matrix = self._affine.draw(rng(self.seed, "affine", *key, role), source, target)
        return compose(tiles, source, matrix, target)

    def _partners(self, key: SampleKey, draw: np.random.Generator, count: int) -> np.ndarray:
        """Draw images from those just before this one in the epoch's order: whoever loads them in turn has them."""
        order, place = epoch_order(self.seed, key.epoch, len(self))
        back = draw.integers(1, max(min(NEAR, len(self) - 1), 1) + 1, size=count)
        return order[(place[key.index] - back) % len(self)]

    def _mosaic(self, key: SampleKey, draw: np.random.Generator) -> list[Tile]:
        """Image `key.index` and three others, in drawn places."""
        members = np.array([key.index, *self._partners(key, draw, 3)])[draw.permutation(4)]
        center_x, center_y = draw.integers(self.imgsz // 2, 3 * self.imgsz // 2 + 1, size=2)
        return mosaic([self._load(int(member)) for member in members], int(center_x), int(center_y))


def _sample(picture: Picture, index: int, way: list[float], colour: np.ndarray = SAME) -> Sample:
    image, boxes, classes = picture
    return Sample(
        torch.from_numpy(image).permute(2, 0, 1),
        torch.from_numpy(np.ascontiguousarray(boxes, np.float32)),
        torch.from_numpy(classes),
        index,
        torch.tensor(way, dtype=torch.float32),
        torch.from_numpy(colour),
    )

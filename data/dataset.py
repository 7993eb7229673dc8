"""Index and image to training sample: a pure function of (seed, epoch, index), whatever was drawn before."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import permutations
from typing import NamedTuple, Protocol

import numpy as np
from torch.utils.data import Dataset

from data.augment import (
    MIN_SIDE,
    SAME,
    Affine,
    Composite,
    Picture,
    Tile,
    compose,
    finish,
    hsv_draw,
    letterbox,
    mixup,
    mosaic,
    settle,
)
from data.cache import AUTO_SHARE, ImageCache, ImageList, available_memory, build_cache, load_indexed, resized_sizes
from data.processes import FORKS
from data.recent import RecentImages
from utils import dist
from utils.errors import UserError, many
from utils.seed import rng

NEAR = 64  # images before a sample, in the order of its epoch, that its partners are drawn from
NO_WAY = np.full(4, np.nan, np.float32)  # the letterbox of a sample that is none
ORDERS = tuple(permutations(range(4)))
TOGETHER = 8  # samples that are made step by step
KEPT = 2 * NEAR  # decoded images that a process remembers, at most
DROPPED = 8  # of them at a time


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


class Numbers(NamedTuple):
    """All that a sample draws, uniform in [0, 1), by what it is for: no setting shifts what another draws."""

    composite: float
    partners: Sequence[float]  # 3
    order: float
    center: Sequence[float]  # 2
    affine: Sequence[float]  # 8
    colour: Sequence[float]  # 3
    flips: Sequence[float]  # 2
    mixup: Sequence[float]  # 2

    @classmethod
    def draw(cls, seed: int, key: SampleKey, role: int) -> Numbers:
        """role: 0, or 1 + the index of the sample that the one of `key` is mixed into."""
        u = rng(seed, "mosaic", *key, role).random(22).tolist()  # one generator: to make it costs most of it
        return cls(u[0], u[1:4], u[4], u[5:7], u[7:15], u[15:18], u[18:20], u[20:22])


class Sample(NamedTuple):
    """One picture, ready for a batch."""

    image: np.ndarray  # uint8 [H, W, 3], RGB
    boxes: np.ndarray  # float32 [n, 4], xyxy in pixels of `image`
    classes: np.ndarray  # int64 [n]
    index: int
    letterbox: np.ndarray  # float32 [4]: gain x, gain y, pad x, pad y: x_in = x_original · gain + pad. NaN if augmented
    colour: np.ndarray = SAME  # float32 [3, 3]: its RGB is yet to be multiplied by it


@lru_cache(maxsize=4)
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
        defer_colour: bool = False,
    ) -> None:
        if imgsz % stride:
            raise UserError(f"--imgsz {imgsz}: must be a multiple of the model's stride {stride}")
        self.defer_colour = defer_colour
        self.index, self.imgsz, self.hyp, self.seed = index, imgsz, hyp, seed
        self.augment, self.rect, self.stride = augment, rect, stride
        self._first_plain_epoch = epochs - hyp.close_mosaic
        self._affine = Affine(hyp.degrees, hyp.translate, hyp.scale, hyp.shear, hyp.perspective)
        self._cache: ImageCache | None = build_cache(index, imgsz, cache) if cache else None
        self._recent: dict[int, Picture] = {}
        self.shared: RecentImages | None = None  # in a worker: see `room_to_share`
        self._boxes, self._classes, self._offsets = without_crowds(index)

    def __len__(self) -> int:
        return len(self.index)

    def doubts(self) -> list[str]:
        """What is odd about training at this image size: objects that hardly a sample shows."""
        gains = np.repeat(self.imgsz / self.index.sizes.max(1), np.diff(self._offsets))
        small = int(((self._boxes[:, 2:] - self._boxes[:, :2]).min(1, initial=np.inf) * gains <= MIN_SIDE).sum())
        if not small:
            return []
        share = f"{small:,} of {many(len(gains), 'training object')}"
        text = f"{share} {'is' if small == 1 else 'are'} {MIN_SIDE:g} pixels across or less at --img {self.imgsz}"
        return [f"{'warning' if 2 * small > len(gains) else 'note'}: {text}: such are left out of the samples"]

    def shapes(self) -> np.ndarray:
        """Height and width of every image's samples: int64 `[N, 2]`."""
        if not self.rect:
            return np.full((len(self), 2), self.imgsz, np.int64)
        return self._rect_shape(self.index.sizes)

    def __getitem__(self, key: SampleKey) -> Sample:
        return self.samples([key])[0]

    def samples(self, keys: Sequence[SampleKey], pixels: np.ndarray | None = None) -> list[Sample]:
        """The samples of `keys`, as `self[key]` is for each, in less time for several.

        All are of one shape; their images lie side by side in `pixels`, uint8 of `batch_shape`, or in new memory.
        """
        if pixels is None:
            pixels = np.empty(self.batch_shape(keys), np.uint8)
        if not self.augment:
            return [self._plain_sample(key.index, image) for key, image in zip(keys, pixels, strict=True)]
        chunks = (slice(first, first + TOGETHER) for first in range(0, len(keys), TOGETHER))
        return [sample for some in chunks for sample in self._training_samples(keys[some], pixels[some])]

    def batch_shape(self, keys: Sequence[SampleKey]) -> tuple[int, int, int, int]:
        """Of the pixels of these samples, which are of one shape: their number, height, width and 3."""
        return len(keys), *self._shape(keys[0].index), 3

    def _rect_shape(self, sizes: np.ndarray) -> np.ndarray:
        return -(-resized_sizes(sizes, self.imgsz)[..., ::-1] // self.stride) * self.stride

    def _shape(self, i: int) -> tuple[int, int]:
        return tuple(self._rect_shape(self.index.sizes[i]).tolist()) if self.rect else (self.imgsz, self.imgsz)

    def room_to_share(self, samples: int) -> RecentImages | None:
        """Room for the decoded images of workers that have `samples` samples in hand among them, to be their `shared`.

        It is one for all trainers of a machine, who call this at the same moment, and takes a tenth of the free memory
        at most. None where no worker wants an image that another decodes, or where workers don't inherit memory.
        """
        if self._cache is not None or not self.augment or not self._composes(0) or not FORKS:
            return None
        size, room = 3 * int(resized_sizes(self.index.sizes, self.imgsz).prod(-1).max(initial=1)), None
        if dist.is_first_here():
            slots = min(NEAR + samples, int(AUTO_SHARE * (available_memory() or 0) / size))
            room = RecentImages(slots, size) if slots else None
        found = dist.from_first_here((len(room), size, room.path) if room else None)
        return room or (RecentImages(*found) if found else None)

    def _composes(self, epoch: int) -> bool:
        """Whether samples of an epoch may be made of several images."""
        return not self.rect and epoch < self._first_plain_epoch and max(self.hyp.mosaic, self.hyp.mixup) > 0

    def _load(self, i: int, key: SampleKey | None = None) -> Picture:
        """Image `i`, its long side resized to `imgsz`, with its boxes, for a training sample or a plain one."""
        if self._cache is not None:
            return self._labelled(i, self._cache[i])
        if key is None:
            return self._labelled(i, load_indexed(self.index, i, self.imgsz))
        picture = self._recent.get(i)
        if picture is None:
            picture = self._labelled(i, self._decode_once(i, key.epoch))
            if len(self._recent) >= KEPT:
                self._forget(key)
            self._recent[i] = picture
        return picture

    def _labelled(self, i: int, image: np.ndarray) -> Picture:
        begin, end = self._offsets[i : i + 2].tolist()
        boxes = self._boxes[begin:end]
        (width, height), (own_height, own_width, _) = self.index.sizes[i].tolist(), image.shape
        if (own_width, own_height) != (width, height):
            boxes = boxes * np.array([own_width / width, own_height / height] * 2, np.float32)
        return Picture(image, boxes, self._classes[begin:end])

    def _decode_once(self, i: int, epoch: int) -> np.ndarray:
        """Image `i` from another worker that has decoded it, or else from its file, for the others too."""
        if self.shared is None or not self._composes(epoch):
            return load_indexed(self.index, i, self.imgsz)
        place = int(epoch_order(self.seed, epoch, len(self))[1][i])
        image = self.shared.get(place, i)
        if image is None:
            image = load_indexed(self.index, i, self.imgsz)
            self.shared.put(place, i, image)
        return image

    def _forget(self, key: SampleKey) -> None:
        """Drop those images in memory that are needed last, for their own sample or for those just after it."""
        kept = np.fromiter(self._recent, np.int64)
        now, after = (epoch_order(self.seed, epoch, len(self))[1] for epoch in (key.epoch, key.epoch + 1))
        passed = now[kept] + NEAR < now[key.index]
        needed = np.where(passed, len(self) + after[kept], now[kept])
        for i in kept[needed.argsort()[-DROPPED:]].tolist():
            del self._recent[i]

    def _plain_sample(self, i: int, out: np.ndarray) -> Sample:
        image, boxes, classes = self._load(i)
        gain = image.shape[1::-1] / self.index.sizes[i]
        left, top = letterbox(image, out)
        boxes = boxes + np.array([left, top, left, top], np.float32)
        letterbox_way = np.array([*gain, left, top], np.float32)
        return Sample(out, boxes, classes.astype(np.int64), i, letterbox_way)

    def _training_samples(self, keys: Sequence[SampleKey], pixels: np.ndarray) -> list[Sample]:
        """A few samples, one step after the other for all of them: what a step needs stays in the processor's caches.

        What is done to the pixels of one picture is one step: they would not stay.
        """
        numbers = [Numbers.draw(self.seed, key, 0) for key in keys]
        if self._cache is None:
            for key in keys:
                self._load(key.index, key)
        painted = [self._painted(*each) for each in zip(keys, numbers, pixels, strict=True)]
        pictures = settle([composite for composite, _ in painted])
        return [
            Sample(*picture, key.index, NO_WAY, colour)
            for key, picture, (_, colour) in zip(keys, pictures, painted, strict=True)
        ]

    def _painted(self, key: SampleKey, numbers: Numbers, out: np.ndarray) -> tuple[Composite, np.ndarray]:
        """A sample but for its boxes, its pixels in `out`, with the matrix that they are yet to be multiplied by."""
        hyp, composite = self.hyp, self._warped(key, numbers, out)
        if self._composes(key.epoch) and numbers.mixup[0] < hyp.mixup:
            (partner,) = self._partners(key, numbers.mixup[1:])
            own = SampleKey(key.epoch, partner)
            other = self._warped(own, Numbers.draw(self.seed, own, 1 + key.index), np.empty_like(out))
            composite = mixup(composite, other, rng(self.seed, "mixup", *key).beta(32.0, 32.0))
        colour = hsv_draw(composite.image, numbers.colour, hyp.hsv_h, hyp.hsv_s, hyp.hsv_v)
        now, later = (SAME, colour) if self.defer_colour else (colour, SAME)
        left_right, top_bottom = numbers.flips
        return finish(composite, now, (left_right < hyp.fliplr, top_bottom < hyp.flipud)), later

    def _warped(self, key: SampleKey, numbers: Numbers, out: np.ndarray) -> Composite:
        """A mosaic or a single picture, warped into `out`."""
        target = out.shape[1::-1]
        if self._composes(key.epoch) and numbers.composite < self.hyp.mosaic:
            tiles, source = self._mosaic(key, numbers), (2 * self.imgsz,) * 2
        else:
            picture, source = self._load(key.index, key), target
            left, top = ((side - own) // 2 for side, own in zip(target, picture.image.shape[1::-1], strict=True))
            tiles = [Tile(picture, left, top)]
        return compose(tiles, source, self._affine.draw(numbers.affine, source, target), out)

    def _partners(self, key: SampleKey, numbers: Sequence[float]) -> list[int]:
        """An image for each number, from those just before this one in the epoch's order: whoever loads them in turn
        has them."""
        order, place = epoch_order(self.seed, key.epoch, len(self))
        reach, own = max(min(NEAR, len(self) - 1), 1), int(place[key.index])
        return [int(order[(own - 1 - int(reach * number)) % len(self)]) for number in numbers]

    def _mosaic(self, key: SampleKey, numbers: Numbers) -> list[Tile]:
        """Image `key.index` and three others, in drawn places."""
        members = (key.index, *self._partners(key, numbers.partners))
        pictures = [self._load(members[place], key) for place in ORDERS[int(len(ORDERS) * numbers.order)]]
        first, last = self.imgsz // 2, 3 * self.imgsz // 2
        return mosaic(pictures, *(first + int((last + 1 - first) * number) for number in numbers.center))


def without_crowds(index: Labels) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes, classes and offsets of the single objects: the index's own arrays where there are no crowds."""
    single = ~index.crowd
    if single.all():
        return index.boxes, index.classes, index.offsets
    before = np.concatenate([[0], np.cumsum(single)])
    return index.boxes[single], index.classes[single], before[index.offsets]

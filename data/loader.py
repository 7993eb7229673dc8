"""Samples to batches: the order of an epoch, worker processes, and batches of one picture size."""

from __future__ import annotations

import contextlib
import math
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, Sampler

from data.dataset import DetectionDataset, Sample, SampleKey, epoch_order
from data.handover import Pixels, Slots
from data.processes import FORKS, cores
from data.recent import RecentImages
from utils import dist, signals
from utils.device import keep_freed_memory
from utils.errors import UserError
from utils.seed import rng

WORKER_DIED = re.compile(r"DataLoader worker \(pid.*\) exited unexpectedly")  # torch's words
PREFETCH = 2  # batches that a worker is ahead
SPARE = 4  # and those that the trainer has at once
DIED = "a loader worker ended by itself (killed, perhaps for want of memory)"


@dataclass(frozen=True)
class Batch:
    """Pictures of one shape with their boxes, padded to the largest number of boxes, which is at least 1."""

    images: Tensor  # uint8 [B, 3, H, W], RGB, in channels-last memory
    boxes: Tensor  # float32 [B, M, 4], xyxy in pixels; zeros where padding
    classes: Tensor  # int64 [B, M]; -1 where padding
    indices: Tensor  # int64 [B]: the images' places in the index
    letterbox: Tensor  # float32 [B, 4]: gain x, gain y, pad x, pad y, see Sample
    colour: Tensor  # float32 [B, 3, 3], see Sample

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device | str) -> Batch:
        """The batch on a device; the copy runs beside the computation where the memory is pinned."""
        return Batch(*(getattr(self, field.name).to(device, non_blocking=True) for field in fields(self)))

    def recoloured(self) -> Batch:
        """The batch with the colours that it is to have, made where it lies (as `augment.recolour` of each image)."""
        pixels = self.images.permute(0, 2, 3, 1).flatten(1, 2).float()  # [B, H · W, 3]
        pixels = torch.bmm(pixels, self.colour.transpose(1, 2)).round_().clamp_(0, 255).to(torch.uint8)
        images = pixels.unflatten(1, self.images.shape[2:]).permute(0, 3, 1, 2)
        same = torch.eye(3, device=self.colour.device).expand_as(self.colour)
        return replace(self, images=images, colour=same)

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory (called by torch's DataLoader)."""
        return Batch(*(getattr(self, field.name).pin_memory() for field in fields(self)))


@dataclass(frozen=True)
class Handed:
    """A batch on its way from a worker to the trainer: torch would make a file of each tensor."""

    pixels: Pixels
    shape: tuple[int, int]  # height, width
    rest: dict[str, np.ndarray]  # what else is in a batch

    def batch(self) -> Batch:
        """The batch, in the memory that it was handed over in."""
        rest = {name: torch.from_numpy(array) for name, array in self.rest.items()}
        images = torch.from_numpy(self.pixels.array).view(-1, *self.shape, 3)  # it keeps the array, and that the slot
        return Batch(images.permute(0, 3, 1, 2), **rest)

    def pin_memory(self) -> Batch:
        """The batch in page-locked memory (called by torch's DataLoader)."""
        return self.batch().pin_memory()


def collate(samples: Sequence[Sample], pixels: np.ndarray) -> Batch:
    """Make a batch of samples whose images lie side by side in `pixels`, uint8 `[B, H, W, 3]`."""
    size, most = len(samples), max(1, *(len(sample.classes) for sample in samples))
    boxes, classes = np.zeros((size, most, 4), np.float32), np.full((size, most), -1, np.int64)
    for i, sample in enumerate(samples):
        boxes[i, : len(sample.boxes)] = sample.boxes
        classes[i, : len(sample.classes)] = sample.classes
    indices = np.array([sample.index for sample in samples], np.int64)
    letterbox, colour = (np.array([getattr(s, name) for s in samples]) for name in ("letterbox", "colour"))
    rest = map(torch.from_numpy, (boxes, classes, indices, letterbox, colour))
    # Images are decoded as [H, W, 3]; kept so, nothing is transposed, and convolutions on CPUs and tensor cores are
    # quicker on channels-last memory.
    return Batch(torch.from_numpy(pixels).permute(0, 3, 1, 2), *rest)


def resize_batch(batch: Batch, size: int, stride: int = 32) -> Batch:
    """Resize a batch so that its long side is `size`, both sides multiples of `stride`, with its boxes (bilinear)."""
    height, width = batch.images.shape[2:]
    gain = size / max(height, width)
    new_h, new_w = (max(round(side * gain / stride), 1) * stride for side in (height, width))
    if (new_h, new_w) == (height, width):
        return batch
    resized = F.interpolate(batch.images.float(), (new_h, new_w), mode="bilinear", align_corners=False)
    scale = torch.tensor([new_w / width, new_h / height] * 2).to(batch.boxes.device, non_blocking=True)
    return replace(
        batch,
        images=resized.round().to(torch.uint8),
        boxes=batch.boxes * scale,
        letterbox=batch.letterbox * scale,
    )


def multi_scale_range(imgsz: int, share: float, stride: int) -> tuple[int, int]:
    """The least and the greatest multiple of `stride` within ±`share` of `imgsz`, in strides; at least 1."""
    low, high = (round(imgsz * (1 + part) / stride, 6) for part in (-share, share))  # 6.000000000000001 is 6
    low = max(math.ceil(low), 1)
    return low, max(math.floor(high), low)


def multi_scale_size(seed: int, epoch: int, batch: int, imgsz: int, share: float, stride: int) -> int:
    """The side for one training batch: any multiple of `stride` within ±`share` of `imgsz`, all equally likely."""
    low, high = multi_scale_range(imgsz, share, stride)
    return stride * int(rng(seed, "multi_scale", epoch, batch).integers(low, high + 1))


def default_workers(device: torch.device) -> int:
    """On a CPU all cores compute, and loading is a few percent of a step; on a GPU loading needs cores of its own."""
    if device.type != "cuda":
        return 0 if cores() <= 4 else 2
    return min(8, max(1, cores() // dist.local_world_size()))


class Plan:
    """The batches of an epoch, as lists of sample keys: a pure function of (seed, epoch, rank).

    All ranks split one order: a batch of every rank together is a batch of one rank that is `world_size` times as
    large. Where the images don't divide by `world_size`, the first are repeated, so that all ranks have the same
    number; nothing is dropped. A batch holds pictures of one shape only.
    """

    def __init__(
        self, shapes: np.ndarray, batch_size: int, *, seed: int, shuffle: bool, rank: int = 0, world_size: int = 1
    ) -> None:
        """`shapes`: int `[N, 2]`, the height and width of every sample."""
        self.seed, self.shuffle, self.rank, self.world_size = seed, shuffle, rank, world_size
        self.batch_size = batch_size
        self._group = np.unique(shapes, axis=0, return_inverse=True)[1].reshape(-1)

    def __len__(self) -> int:
        whole = self.batch_size * self.world_size
        return int(sum(-(-count // whole) for count in np.bincount(self._group)))

    def batches(self, epoch: int) -> list[np.ndarray]:
        """Indices of every batch of an epoch on this rank."""
        count, whole = len(self._group), self.batch_size * self.world_size
        order = epoch_order(self.seed, epoch, count)[0] if self.shuffle else np.arange(count)
        batches = []
        for group in range(self._group.max(initial=-1) + 1):
            members = order[self._group[order] == group]
            members = np.resize(members, -(-len(members) // self.world_size) * self.world_size)
            batches += [members[first : first + whole] for first in range(0, len(members), whole)]
        if self.shuffle and self._group.any():
            batches = [batches[i] for i in rng(self.seed, "order", epoch, 1).permutation(len(batches))]
        return [batch[self.rank :: self.world_size] for batch in batches]

    def keys(self, epoch: int, start_batch: int = 0) -> Iterator[list[SampleKey]]:
        """The samples of batches `start_batch` … of an epoch."""
        for batch in self.batches(epoch)[start_batch:]:
            yield [SampleKey(epoch, int(i)) for i in batch]

    def after(self, epoch: int) -> int:
        """The epoch that is likely to be asked for next: one without an order of its own is the same again."""
        return epoch + 1 if self.shuffle else epoch


class _Onward(Sampler[list[SampleKey]]):
    """The batches of a plan from one on, epoch after epoch: workers prepare the next one's while the trainer validates.

    Its end is not known here: the run may be stopped early.
    """

    def __init__(self, plan: Plan) -> None:
        self._plan, self.begin = plan, (0, 0)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        epoch, start_batch = self.begin
        while len(self._plan):
            yield from self._plan.keys(epoch, start_batch)
            epoch, start_batch = self._plan.after(epoch), 0


class Loader:
    """Batches of a data set, epoch by epoch, the same for every number of workers and from any batch on.

    Close it when done: workers live from the first epoch on.
    """

    def __init__(
        self,
        dataset: DetectionDataset,
        batch_size: int,
        *,
        workers: int,
        seed: int,
        shuffle: bool,
        rank: int = 0,
        world_size: int = 1,
        pin_memory: bool = False,
    ) -> None:
        shapes = dataset.shapes()
        self._plan = Plan(shapes, batch_size, seed=seed, shuffle=shuffle, rank=rank, world_size=world_size)
        decoders = workers * dist.local_world_size()
        shared = dataset.room_to_share((workers + 1) * batch_size * world_size) if decoders > 1 else None
        self._source = _BatchSource(dataset, shared)
        self._workers, self._onward = workers, _Onward(self._plan)
        self._largest = 3 * batch_size * int(shapes.prod(-1).max(initial=1))  # bytes of a batch's pixels
        self._pin_memory = pin_memory and torch.cuda.is_available()
        self._torch_loader = self._start() if workers > 0 else None
        self._batches: Iterator[Handed | Batch | UserError] = iter(())
        self._next: tuple[int, int] | None = None  # the epoch and number of what `_batches` gives next

    def __len__(self) -> int:
        return len(self._plan)

    @property
    def smallest_batch(self) -> int:
        """How many images the smallest batch of an epoch has."""
        return min(map(len, self._plan.batches(0)), default=0)

    def epoch(self, epoch: int, start_batch: int = 0) -> Iterator[Batch]:
        """Batches `start_batch` … of an epoch. An error of the user's in a worker is raised here as it was there.

        At the end of an epoch workers go on with the next; they begin anew where another batch than that is asked for.
        """
        if self._torch_loader is None:
            yield from (self._source.load(keys) for keys in self._plan.keys(epoch, start_batch))
            return
        for number in range(start_batch, len(self._plan)):
            batch = self._from_workers(epoch, number)
            if isinstance(batch, UserError):
                raise batch
            self._next = (epoch, number + 1) if number + 1 < len(self._plan) else (self._plan.after(epoch), 0)
            yield batch.batch() if isinstance(batch, Handed) else batch

    def _from_workers(self, epoch: int, number: int) -> Handed | Batch | UserError:
        """A batch of an epoch. Where a worker has died, others take the place of all, once for a batch: they make the
        same of it."""
        for first in (True, False):
            if self._next != (epoch, number):
                self._onward.begin = epoch, number
                # Workers that are half started could not be ended by `close`.
                with signals.deferred(), _no_word_on_workers():
                    self._batches = iter(self._torch_loader)
                    signals.ignore_deaths()
            self._next = None  # unknown, should this be the last that is heard of them
            try:
                return next(self._batches)
            except RuntimeError as error:
                if not WORKER_DIED.search(str(error)):
                    raise
            if first:
                print(f"warning: {DIED}: the workers are started anew, and make the same batches", file=sys.stderr)
                self.close()
                self._torch_loader = self._start()
        raise UserError(f"{DIED}, twice at one batch: use fewer --workers or a smaller --batch, or --workers 0")

    def close(self) -> None:
        """End the workers, at once whatever they do. A loader that is closed still loads, in this process."""
        iterator = getattr(self._torch_loader, "_iterator", None)
        if hasattr(iterator, "_pin_memory_thread"):
            # It must be gone before the workers: of one that is killed in the middle of a message it would wait for the
            # rest. A word to it, as torch gives it, but now.
            iterator._pin_memory_thread_done_event.set()
            iterator._worker_result_queue.put((None, None))
            iterator._pin_memory_thread.join(timeout=2)  # a worker that died by itself may have left half a message
        signals.kill(getattr(iterator, "_workers", ()))  # torch itself would wait for each to end its batch
        self._torch_loader, self._batches, self._next = None, iter(()), None

    def _start(self) -> DataLoader[Batch]:
        self._source.slots = Slots(PREFETCH * self._workers + SPARE, self._largest) if FORKS else None
        # Forking takes milliseconds and shares the index; spawned workers would import torch for seconds each. It is
        # safe beside CUDA and OpenMP as long as the child touches neither: it only runs NumPy and OpenCV, without
        # threads, and torch on the CPU with one thread. Elsewhere the platform's own way is used: all of this pickles.
        with _no_word_on_workers():
            return DataLoader(
                self._source,
                batch_size=None,  # an item of the source is a whole batch
                sampler=self._onward,
                num_workers=self._workers,
                collate_fn=_as_it_is,
                pin_memory=self._pin_memory,
                worker_init_fn=_init_worker,
                multiprocessing_context="fork" if FORKS else None,
                generator=torch.Generator(),  # else each epoch would draw from torch's global generator
                prefetch_factor=PREFETCH,
                persistent_workers=True,
            )


@contextlib.contextmanager
def _no_word_on_workers() -> Iterator[None]:
    """Without torch's paragraph on workers beyond the cores: the trainer says it in a line."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create", UserWarning)
        yield


class _BatchSource(Dataset[Batch]):
    """Whole batches by their list of keys."""

    slots: Slots | None = None

    def __init__(self, dataset: DetectionDataset, shared: RecentImages | None) -> None:
        self._dataset, self._shared = dataset, shared

    def load(self, keys: list[SampleKey]) -> Batch:
        return self._filled(keys, np.empty(self._dataset.batch_shape(keys), np.uint8))

    def _filled(self, keys: list[SampleKey], pixels: np.ndarray) -> Batch:
        return collate(self._dataset.samples(keys, pixels), pixels)

    def __getitem__(self, keys: list[SampleKey]) -> Handed | Batch | UserError:
        """In a worker."""
        self._dataset.shared = self._shared
        try:
            # Without slots, where workers don't inherit memory, torch hands the batch over.
            return self.load(keys) if self.slots is None else self._handed(keys, self.slots)
        except UserError as error:  # returned: torch would wrap the one line of a raised one in the worker's traceback
            return UserError(str(error))

    def _handed(self, keys: list[SampleKey], slots: Slots) -> Handed:
        """A batch on its way."""
        shape = self._dataset.batch_shape(keys)
        with slots.filling(math.prod(shape)) as pixels:
            batch = self._filled(keys, pixels.array.reshape(shape))
        rest = {field.name: getattr(batch, field.name).numpy() for field in fields(batch) if field.name != "images"}
        return Handed(pixels, shape[1:3], rest)


def _as_it_is(batch: Handed | Batch | UserError) -> Handed | Batch | UserError:
    return batch


def _init_worker(_: int) -> None:
    """Run one thread, keep freed memory (half the time of a large sample), and leave signals to the trainer.

    It ends its step and saves before it ends its workers.
    """
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    keep_freed_memory()
    signals.leave_to_parent()

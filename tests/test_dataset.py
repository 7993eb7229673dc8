"""A sample is a function of (seed, epoch, index), and its boxes lie on its pixels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from data import dataset as dataset_module
from data.cache import load_image
from data.dataset import DROPPED, KEPT, NEAR, TOGETHER, DetectionDataset, Numbers, Sample, SampleKey, epoch_order
from data.loader import collate
from utils.errors import UserError


@dataclass(frozen=True)
class Settings:
    """The hyper-parameters that matter here; by default nothing is augmented."""

    hsv_h: float = 0.0
    hsv_s: float = 0.0
    hsv_v: float = 0.0
    degrees: float = 0.0
    translate: float = 0.0
    scale: float = 0.0
    shear: float = 0.0
    perspective: float = 0.0
    flipud: float = 0.0
    fliplr: float = 0.0
    mosaic: float = 0.0
    mixup: float = 0.0
    close_mosaic: int = 0


PLAIN = Settings()
ALL = Settings(0.1, 0.7, 0.4, 20.0, 0.1, 0.5, 10.0, 0.0005, 0.5, 0.5, 0.7, 0.5, 2)


class Labelled:
    """An index of images in a folder."""

    def __init__(self, paths: list[Path], sizes: list[tuple[int, int]], boxes: list[list[list[float]]]) -> None:
        self.paths, self.sizes = paths, np.array(sizes, np.int32)
        self.offsets = np.cumsum([0, *map(len, boxes)])
        self.boxes = np.array([box for own in boxes for box in own], np.float32).reshape(-1, 4)
        self.classes = np.repeat(np.arange(len(boxes)), [len(own) for own in boxes]).astype(np.int32)
        self.crowd = np.zeros(len(self.boxes), bool)

    def __len__(self) -> int:
        return len(self.paths)

    def path(self, i: int) -> str:
        return str(self.paths[i])


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Labelled:
    """Eight images of two shapes with a white rectangle each on the padding's grey; class = number of the image."""
    folder = tmp_path_factory.mktemp("rectangles")
    draw = np.random.default_rng(0)
    paths, sizes, boxes = [], [], []
    for i in range(8):
        width, height = ((128, 96), (70, 140))[i % 2]
        x, y = draw.integers(8, 20, 2)
        box = [x, y, x + draw.integers(20, 40), y + draw.integers(30, 60)]
        image = np.full((height, width, 3), 114, np.uint8)
        image[box[1] : box[3], box[0] : box[2]] = 255
        paths.append(folder / f"{i}.png")
        cv2.imwrite(str(paths[-1]), image)
        sizes.append((width, height))
        boxes.append([[float(value) for value in box]])
    return Labelled(paths, sizes, boxes)


def make(index: Labelled, hyp: Settings = PLAIN, augment: bool = True, imgsz: int = 128, **options) -> DetectionDataset:
    return DetectionDataset(index, imgsz, hyp, augment=augment, **({"seed": 5, "epochs": 20} | options))


def same(first: Sample, second: Sample) -> bool:
    pairs = [(getattr(first, name), getattr(second, name)) for name in ("image", "boxes", "classes", "letterbox")]
    return first.index == second.index and all(
        a.dtype == b.dtype and np.array_equal(a, b, equal_nan=True) for a, b in pairs
    )


def bright_boxes(image: np.ndarray) -> list[np.ndarray]:
    """Boxes of the bright regions of more than 40 pixels."""
    mask = (image[..., 0] > 184).astype(np.uint8)
    stats = cv2.connectedComponentsWithStats(mask, connectivity=4)[2][1:]
    return [np.array([x, y, x + w, y + h]) for x, y, w, h, area in stats if area > 40]


def test_a_sample_does_not_depend_on_what_was_drawn_before(index: Labelled) -> None:
    keys = [SampleKey(epoch, i) for epoch in (0, 1, 19) for i in range(8)]
    dataset = make(index, ALL)
    first = {key: dataset[key] for key in keys}
    np.random.seed(1)
    torch.manual_seed(1)
    other = make(index, ALL)
    for key in reversed(keys):
        assert same(other[key], first[key])


@pytest.mark.parametrize("augment", [True, False])
def test_samples_made_together_are_those_made_alone(index: Labelled, augment: bool) -> None:
    keys = [SampleKey(epoch, i) for epoch in (0, 1, 19) for i in range(8)][: 2 * TOGETHER + 3]
    pixels = np.zeros((len(keys), 128, 128, 3), np.uint8)
    together, alone = make(index, ALL, augment).samples(keys, pixels), make(index, ALL, augment)
    assert len(together) == len(keys)
    for key, sample, image in zip(keys, together, pixels, strict=True):
        assert same(sample, alone[key])
        assert (sample.image == image).all() and np.shares_memory(sample.image, image)


def test_epochs_images_and_seeds_draw_differently(index: Labelled) -> None:
    dataset = make(index, ALL)
    assert not same(dataset[SampleKey(0, 0)], dataset[SampleKey(1, 0)])
    assert not same(dataset[SampleKey(0, 0)], make(index, ALL, seed=6)[SampleKey(0, 0)])


RANGES = {"translate": 0.2, "scale": 0.5, "degrees": 30.0, "shear": 20.0, "perspective": 0.001, "hsv_v": 0.4}


@pytest.mark.parametrize(("name", "value"), [*RANGES.items(), ("mosaic", 1.0), ("mixup", 1.0)])
def test_each_augmentation_is_drawn_anew_for_every_epoch_and_image(index: Labelled, name: str, value: float) -> None:
    twice = Labelled(index.paths[:1] * 2, [(128, 96)] * 2, [[[10, 10, 50, 50]]] * 2)  # the same image again
    source = index if name in ("mosaic", "mixup") else twice
    dataset, plain = make(source, replace(PLAIN, **{name: value})), make(source, PLAIN)
    images = [dataset[SampleKey(epoch, 0)].image for epoch in range(4)]
    assert not any((images[a] == images[b]).all() for a in range(4) for b in range(a))
    assert not all((image == plain[SampleKey(0, 0)].image).all() for image in images)
    assert (dataset[SampleKey(0, 1)].image != images[0]).any()


def test_gains_of_a_slim_image_differ(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "slim.png"), np.zeros((5, 100, 3), np.uint8))
    slim = Labelled([tmp_path / "slim.png"], [(100, 5)], [[[50, 0, 100, 5]]])
    sample = make(slim, augment=False, imgsz=32)[SampleKey(0, 0)]
    # 100×5 becomes 32×2 (1.6 rounded), 15 px from the top.
    assert sample.boxes[0].tolist() == pytest.approx([16, 15, 32, 17], abs=1e-5)
    assert sample.letterbox.tolist() == pytest.approx([0.32, 0.4, 0, 15])


@pytest.mark.parametrize("mode", ["ram", "disk"])
@pytest.mark.parametrize("augment", [True, False])
def test_a_cache_changes_nothing(index: Labelled, mode: str, augment: bool) -> None:
    plain, cached = make(index, ALL, augment), make(index, ALL, augment, cache=mode)
    for i in range(8):
        assert same(plain[SampleKey(3, i)], cached[SampleKey(3, i)])


@pytest.mark.parametrize("mosaic", [0.0, 1.0])
def test_boxes_hug_the_bright_pixels_whatever_is_done(index: Labelled, mosaic: float) -> None:
    # Not too much of a slant: the sharp tip that the picture's edge cuts off a shape fills no pixel.
    still = {"mixup": 0.0, "hsv_h": 0.0, "hsv_s": 0.0, "hsv_v": 0.0, "degrees": 12.0, "shear": 6.0}
    dataset = make(index, replace(ALL, mosaic=mosaic, **still))
    seen = 0
    for epoch in range(10):
        for i in range(8):
            sample = dataset[SampleKey(epoch, i)]
            assert sample.image.dtype == np.uint8 and sample.image.shape == (128, 128, 3)
            assert sample.boxes.dtype == np.float32 and sample.classes.dtype == np.int64
            regions = bright_boxes(sample.image)
            for box in sample.boxes:
                nearest = min((np.abs(region - box).max() for region in regions), default=0.0)
                assert nearest <= 2 or np.prod(box[2:] - box[:2]) < 100
            for region in regions:
                nearest = min((np.abs(region - box).max() for box in sample.boxes), default=np.inf)
                # A tenth of the largest rectangle, 40×60 at a zoom of 1.5, may be seen without its box.
                assert nearest <= 2 or np.prod(region[2:] - region[:2]) < 600
            seen += len(regions)
    assert seen > 60


def test_mosaic_shows_others_and_stops_for_the_last_epochs(index: Labelled) -> None:
    dataset = make(index, replace(PLAIN, mosaic=1.0, close_mosaic=4), epochs=50)
    shown = [set(dataset[SampleKey(epoch, 2)].classes.tolist()) for epoch in range(50)]
    assert all(classes <= {2} for classes in shown[46:])
    assert set.union(*shown[:46]) == set(range(8))
    assert len({frozenset(classes) for classes in shown[:46]}) > 20


def test_mosaic_of_no_epoch_or_of_all(index: Labelled) -> None:
    single = make(index, PLAIN)[SampleKey(0, 0)]
    assert same(make(index, replace(PLAIN, mosaic=1.0, close_mosaic=20))[SampleKey(0, 0)], single)
    assert not same(make(index, replace(PLAIN, mosaic=1.0, close_mosaic=0))[SampleKey(19, 0)], single)


def test_mosaic_is_drawn_as_often_as_asked(index: Labelled) -> None:
    dataset = make(index, replace(PLAIN, mosaic=0.5), imgsz=32, epochs=1000)
    single = make(index, PLAIN, imgsz=32)[SampleKey(0, 0)]
    alone = sum(bool((dataset[SampleKey(epoch, 0)].image == single.image).all()) for epoch in range(200))
    assert 70 < alone < 130  # within 4 deviations of 100


def test_mixup_blends_the_boxes_of_two(index: Labelled) -> None:
    dataset = make(index, replace(PLAIN, mixup=1.0), epochs=100)
    plain = make(index, PLAIN, epochs=100)
    for epoch in range(6):
        sample = dataset[SampleKey(epoch, 1)]
        own, other = sample.classes.tolist()
        assert own == 1
        parts = [plain[SampleKey(epoch, i)].image.astype(np.float32) for i in (own, other)]
        least, most = np.minimum(*parts) - 1, np.maximum(*parts) + 1
        assert ((sample.image >= least) & (sample.image <= most)).all()
    assert len({dataset[SampleKey(epoch, 1)].classes[1].item() for epoch in range(20)}) > 4


def test_without_augmentation_a_training_sample_is_the_letterboxed_image(index: Labelled) -> None:
    for i in range(8):
        trained, plain = make(index, PLAIN)[SampleKey(0, i)], make(index, PLAIN, augment=False)[SampleKey(0, i)]
        assert (trained.image == plain.image).all()
        assert np.allclose(trained.boxes, plain.boxes)
        assert np.isnan(trained.letterbox).all()


def test_flips_mirror_the_sample(index: Labelled) -> None:
    plain = make(index, PLAIN)[SampleKey(0, 0)]
    mirrored = make(index, replace(PLAIN, fliplr=1.0))[SampleKey(0, 0)]
    upside_down = make(index, replace(PLAIN, flipud=1.0))[SampleKey(0, 0)]
    assert (mirrored.image == plain.image[:, ::-1]).all() and (upside_down.image == plain.image[::-1]).all()
    half = make(index, replace(PLAIN, fliplr=0.5), epochs=300)
    count = sum(bool((half[SampleKey(epoch, 0)].image == mirrored.image).all()) for epoch in range(200))
    assert 70 < count < 130


@pytest.mark.parametrize("rect", [False, True])
def test_the_letterbox_leads_back_to_the_original(index: Labelled, rect: bool) -> None:
    dataset = make(index, ALL, augment=False, imgsz=64, rect=rect)
    for i, (height, width) in enumerate(dataset.shapes()):
        sample = dataset[SampleKey(0, i)]
        assert sample.image.shape == (height, width, 3)
        gain, pad = sample.letterbox[:2], sample.letterbox[2:]
        original = (sample.boxes.reshape(2, 2) - pad) / gain
        assert original.reshape(-1) == pytest.approx(index.boxes[i], abs=1e-3)
        (region,) = bright_boxes(sample.image)
        assert np.abs(region - sample.boxes[0]).max() <= 1


def test_rect_takes_the_smallest_multiple_of_the_stride(index: Labelled) -> None:
    # 128×96 and 70×140 at 128: 128×96 and 64×128; at 96: 96×72 and 48×96.
    assert make(index, augment=False, rect=True).shapes()[:2].tolist() == [[96, 128], [128, 64]]
    assert make(index, augment=False, rect=True, imgsz=96).shapes()[:2].tolist() == [[96, 96], [96, 64]]
    assert make(index, augment=False).shapes().tolist() == [[128, 128]] * 8


def test_rect_training_has_no_mosaic(index: Labelled) -> None:
    dataset = make(index, replace(ALL, mosaic=1.0, mixup=1.0), rect=True)
    for i, shape in enumerate(dataset.shapes()):
        sample = dataset[SampleKey(0, i)]
        assert sample.image.shape[:2] == tuple(shape)
        assert set(sample.classes.tolist()) <= {i}


def test_crowds_are_in_no_sample(index: Labelled) -> None:
    crowded = Labelled(index.paths[:1], [(128, 96)], [[[10, 10, 50, 50], [20, 20, 60, 60], [0, 0, 99, 99]]])
    crowded.crowd[1] = True
    crowded.classes[:] = 4, 5, 6
    for augment in (True, False):
        assert make(crowded, augment=augment)[SampleKey(0, 0)].classes.tolist() == [4, 6]


def test_objects_too_small_for_the_image_size_are_counted(index: Labelled) -> None:
    """Of 128 x 96 pixels at 64: half the size."""
    boxes = [[0, 0, 4, 40], [0, 0, 40, 4], [0, 0, 4.1, 4.1], [0, 0, 90, 90]]
    small = Labelled(index.paths[:1], [(128, 96)], [[[float(x) for x in box] for box in boxes]])
    assert make(small, imgsz=128).doubts() == []
    said = "2 of 4 training objects are 2 pixels across or less at --img 64: such are left out of the samples"
    assert make(small, imgsz=64).doubts() == [f"note: {said}"]
    assert make(small, imgsz=32).doubts()[0].startswith("warning: 3 of 4 training objects are ")
    small.crowd[:3] = True
    assert make(small, imgsz=32).doubts() == []


def test_images_without_boxes(index: Labelled) -> None:
    empty = Labelled(index.paths[:2], [(128, 96), (70, 140)], [[], []])
    for hyp in (PLAIN, ALL):
        for augment in (True, False):
            sample = make(empty, hyp, augment)[SampleKey(0, 1)]
            assert sample.boxes.shape == (0, 4) and sample.classes.shape == (0,)


def test_a_cached_image_is_never_written_to(index: Labelled) -> None:
    dataset = make(index, ALL, cache="ram")
    for i in range(8):
        dataset[SampleKey(0, i)].image[:] = 0
    plain = make(index, PLAIN, augment=False, cache="ram", imgsz=128)[SampleKey(0, 0)]
    assert (plain.image[16:112] == load_image(index.path(0), 128)).all()


def test_an_image_size_off_the_stride_is_refused(index: Labelled) -> None:
    with pytest.raises(UserError, match="--imgsz 100.*32"):
        make(index, imgsz=100)


def test_a_missing_image_is_named(index: Labelled, tmp_path: Path) -> None:
    gone = Labelled([tmp_path / "gone.jpg"], [(10, 10)], [[]])
    with pytest.raises(UserError, match=r"gone\.jpg"):
        make(gone)[SampleKey(0, 0)]


def test_real_images(bccd: Path) -> None:
    paths = sorted((bccd / "JPEGImages").iterdir())[:6]
    cells = Labelled(paths, [(640, 480)] * 6, [[[100, 100, 300, 250], [0, 0, 640, 480]]] * 6)
    for hyp in (ALL, replace(ALL, mosaic=0.0)):
        dataset = make(cells, hyp, imgsz=160, epochs=10)
        for i in range(6):
            sample = dataset[SampleKey(1, i)]
            sides = sample.boxes[:, 2:] - sample.boxes[:, :2]
            assert (sides > 2).all() and (sample.boxes >= 0).all() and (sample.boxes <= 160).all()


def test_the_order_of_an_epoch_holds_every_image_once() -> None:
    order, place = epoch_order(3, 1, 500)
    assert sorted(order.tolist()) == list(range(500)) and (order[place] == np.arange(500)).all()
    assert (order != epoch_order(3, 2, 500)[0]).any() and (order != epoch_order(4, 1, 500)[0]).any()


def test_partners_come_from_just_before_in_the_order_of_the_epoch_and_every_other_image_is_one() -> None:
    class Many(Labelled):
        def __len__(self) -> int:
            return 1000

    many = make(Many([], [], []), replace(PLAIN, mosaic=1.0))
    order, place = epoch_order(5, 2, 1000)
    back = []
    for i in range(1000):
        partners = np.array(many._partners(SampleKey(2, i), np.random.default_rng(i).random(3)))
        back += ((place[i] - place[partners]) % 1000).tolist()
    assert min(back) == 1 and max(back) == NEAR
    counts = np.bincount(back, minlength=NEAR + 1)[1:]
    assert abs(counts - 3000 / NEAR).max() < 6 * np.sqrt(3000 / NEAR)


def test_the_places_of_a_mosaic_and_its_centre_are_drawn_evenly(index: Labelled) -> None:
    dataset = make(index, replace(PLAIN, mosaic=1.0))
    corners, centers = np.zeros(4), []
    for epoch in range(500):
        key = SampleKey(epoch, 3)
        tiles = dataset._mosaic(key, Numbers.draw(5, key, 0))
        own = [corner for corner, tile in enumerate(tiles) if tile.picture.classes.tolist() == [3]]
        corners[own] += 1 / len(own)
        centers.append((tiles[3].x, tiles[3].y))  # the first pixel of the last tile
        for corner, ((image, _, _), x, y) in enumerate(tiles):
            met = (x if corner % 2 else x + image.shape[1], y if corner // 2 else y + image.shape[0])
            assert met == centers[-1]
    assert abs(corners - 125).max() < 6 * np.sqrt(125 * 0.75)
    centers = np.array(centers)
    assert 64 <= centers.min() < 66 and 190 < centers.max() <= 192
    counts = [np.histogram(centers[:, axis], 8, (64, 193))[0] for axis in (0, 1)]
    assert abs(np.array(counts) - 62.5).max() < 5 * np.sqrt(62.5)
    assert abs(np.corrcoef(centers.T)[0, 1]) < 0.2


@pytest.mark.parametrize("count", [1, 2, 8])
def test_small_sets_have_partners_too(index: Labelled, count: int) -> None:
    few = Labelled(index.paths[:count], index.sizes[:count].tolist(), index.boxes[:count, None].tolist())
    dataset = make(few, replace(PLAIN, mosaic=1.0, mixup=1.0))
    shown = [np.unique(dataset[SampleKey(epoch, 0)].classes).tolist() for epoch in range(15)]
    assert set().union(*shown) == set(range(count))


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of the images that are decoded, in turn."""
    numbers: list[int] = []
    load = dataset_module.load_indexed

    def count(source: Labelled, i: int, imgsz: int) -> np.ndarray:
        numbers.append(i)
        return load(source, i, imgsz)

    monkeypatch.setattr(dataset_module, "load_indexed", count)
    return numbers


def repeated(index: Labelled, count: int) -> Labelled:
    """The eight images, again and again."""
    numbers = [i % 8 for i in range(count)]
    boxes = index.boxes[numbers][:, None].tolist()
    return Labelled([index.paths[i] for i in numbers], index.sizes[numbers].tolist(), boxes)


@pytest.mark.parametrize(("count", "most"), [(20 * NEAR, [1.01, 1.01, 1.0]), (292, [1.01, 0.97, 0.93])])
def test_an_epoch_in_its_order_decodes_each_image_once_at_most(
    count: int, most: list[float], index: Labelled, read: list[int]
) -> None:
    """Of a small set, some images are still there from the epoch before."""
    dataset = make(repeated(index, count), replace(PLAIN, mosaic=1.0), imgsz=32)
    for epoch, share in enumerate(most):
        read.clear()
        for i in epoch_order(5, epoch, count)[0]:
            dataset[SampleKey(epoch, int(i))]
        assert len(read) <= share * count
    assert KEPT - DROPPED < len(dataset._recent) <= KEPT


@pytest.mark.parametrize("workers", [2, 8])
def test_workers_that_share_decode_each_image_about_once(workers: int, index: Labelled, read: list[int]) -> None:
    many = repeated(index, 20 * NEAR)
    hyp, order = replace(PLAIN, mosaic=1.0), epoch_order(5, 0, len(many))[0]

    def load(share: bool) -> list[Sample]:
        """As workers do, in turn, each a batch of 16."""
        sets = [make(many, hyp, imgsz=32) for _ in range(workers)]
        room = sets[0].room_to_share(16 * (workers + 1))
        for one in sets:
            one.shared = room if share else None
        return [sets[place // 16 % workers][SampleKey(0, int(i))] for place, i in enumerate(order)]

    alone, decoded = load(share=False), len(read)
    assert decoded > (1.6 if workers == 2 else 2.4) * len(many)  # what there is to save
    shared = load(share=True)
    assert len(read) - decoded <= len(many) + 4 * NEAR
    for a, b in zip(alone, shared, strict=True):
        assert (a.image == b.image).all() and (a.boxes == b.boxes).all()


def test_what_no_other_sample_wants_is_not_shared(index: Labelled) -> None:
    composing = replace(PLAIN, mosaic=1.0, close_mosaic=2)
    assert make(index, PLAIN).room_to_share(64) is None
    assert make(index, composing, augment=False).room_to_share(64) is None
    assert make(index, composing, rect=True).room_to_share(64) is None
    assert make(index, composing, cache="ram").room_to_share(64) is None
    for epoch, shares in ((0, True), (18, False)):
        dataset = make(index, composing)
        dataset.shared = dataset.room_to_share(64)
        dataset[SampleKey(epoch, 3)]
        place = int(epoch_order(5, epoch, len(index))[1][3])
        assert (dataset.shared.get(place, 3) is not None) == shares


def test_the_room_to_share_is_a_tenth_of_the_free_memory_at_most(
    index: Labelled, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset = make(index, replace(PLAIN, mosaic=1.0), imgsz=64)
    size = max(dataset._load(i).image.nbytes for i in range(len(index)))
    slots = []
    for free in (10**12, 10 * size * 40, 10 * size * 40 - 1, size):
        monkeypatch.setattr(dataset_module, "available_memory", lambda free=free: free)
        room = dataset.room_to_share(100)
        slots.append(room and len(room))
    assert slots == [NEAR + 100, 40, 39, None]


def test_colours_left_to_the_device_are_those_of_the_loader(index: Labelled) -> None:
    hyp = replace(ALL, mosaic=1.0)
    now, later = make(index, hyp), make(index, hyp, defer_colour=True)
    space = np.empty((2, 8, now.imgsz, now.imgsz, 3), np.uint8)
    for keys in ([SampleKey(0, i) for i in range(8)], [SampleKey(3, i) for i in range(8)]):
        done, left = (
            collate(one.samples(keys, pixels), pixels) for one, pixels in ((now, space[0]), (later, space[1]))
        )
        assert (done.colour == torch.eye(3)).all() and (left.colour != torch.eye(3)).any()
        assert (done.images.int() - left.images.int()).abs().max() > 8  # there was something to do
        changed = left.recoloured()
        assert (changed.images.int() - done.images.int()).abs().max() <= 1  # OpenCV counts in fixed point
        assert (changed.colour == torch.eye(3)).all() and torch.equal(changed.boxes, done.boxes)
        assert torch.equal(changed.recoloured().images, changed.images)


def test_without_augmentation_no_colour_is_left_to_do(index: Labelled) -> None:
    sample = make(index, ALL, augment=False, defer_colour=True)[SampleKey(0, 0)]
    assert (sample.colour == np.eye(3)).all()

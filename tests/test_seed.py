"""utils/seed.py: a draw depends on its key and on nothing else."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from utils.seed import PURPOSES, rng, seed_torch, torch_seeded

KEYS = [(0, "order", 0), (0, "order", 1), (1, "order", 0), (0, "mosaic", 0), (0, "mosaic", 0, 0), (0, "mosaic", 0, 1)]


def test_the_same_key_draws_the_same_whatever_was_drawn_before() -> None:
    first = {key: rng(*key).random(8).tolist() for key in KEYS}
    np.random.seed(3)
    rng(7, "hsv", 1).random(1000)
    assert {key: rng(*key).random(8).tolist() for key in reversed(KEYS)} == first


def test_different_keys_draw_differently() -> None:
    draws = {tuple(rng(*key).random(4)) for key in KEYS}
    assert len(draws) == len(KEYS)


def test_the_numbers_of_purposes_never_move() -> None:
    """A trained weight of yesterday is reproduced only while these numbers stand: the test restates them."""
    numbers = {"init": 0, "order": 1, "mosaic": 2, "affine": 3, "mixup": 4, "hsv": 5, "flip": 6, "multi_scale": 7}
    assert {purpose: PURPOSES.index(purpose) for purpose in numbers} == numbers
    sequence = np.random.SeedSequence(42, spawn_key=(2, 5, 17))
    expected = np.random.Generator(np.random.Philox(sequence)).integers(0, 2**32, 4)
    assert rng(42, "mosaic", 5, 17).integers(0, 2**32, 4).tolist() == expected.tolist()


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1, 2**32, 2**70 + 5])
@pytest.mark.parametrize("key", [(), (0,), (0, 0), (7, 2**32 - 1, 0), (2**32, 1), (3, 2**64)])
def test_a_key_of_any_size_is_the_spawn_key_of_a_seed_sequence(seed: int, key: tuple[int, ...]) -> None:
    expected = np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=(4, *key))))
    assert rng(seed, "mixup", *key).random(3).tolist() == expected.random(3).tolist()


def test_draws_of_neighbouring_keys_are_uncorrelated_and_even() -> None:
    draws = np.array([rng(0, "flip", epoch, index).random(2) for epoch in range(20) for index in range(100)])
    assert abs(draws.mean() - 0.5) < 0.03
    assert abs(np.corrcoef(draws[:-1, 0], draws[1:, 0])[0, 1]) < 0.08
    assert abs(np.corrcoef(draws[:, 0], draws[:, 1])[0, 1]) < 0.08


def test_an_unknown_purpose_is_a_fault_of_ours() -> None:
    with pytest.raises(ValueError):
        rng(0, "mosiac")


def test_torch_draws_under_a_key_and_gets_its_own_state_back() -> None:
    torch.manual_seed(5)
    undisturbed = torch.rand(3)
    torch.manual_seed(5)
    with torch_seeded(0, "init"):
        first = torch.rand(3)
    assert torch.equal(torch.rand(3), undisturbed)
    with torch_seeded(0, "init"):
        assert torch.equal(torch.rand(3), first)
    with torch_seeded(1, "init"):
        assert not torch.equal(torch.rand(3), first)


def test_torch_gets_its_state_back_after_a_fault() -> None:
    state = torch.get_rng_state()
    with pytest.raises(KeyError), torch_seeded(0, "init"):
        raise KeyError
    assert torch.equal(torch.get_rng_state(), state)


def test_a_device_with_a_generator_of_its_own_is_seeded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    monkeypatch.setattr(torch, "get_device_module", lambda device: SimpleNamespace(manual_seed=seeds.append))
    for device in ("cuda", "mps", "cpu"):
        seed_torch(torch.device(device), 1, "forward", 2, 3)
    assert len(seeds) == 2 and seeds[0] == seeds[1] == torch.initial_seed()

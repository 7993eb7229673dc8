"""What is known of an epoch's optimizer steps: gradient norms, clipped and skipped shares, and how far weights move."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.optim import Optimizer

MEASURED_PER_EPOCH = 8  # steps whose change of the weights is measured: each costs a copy of them


class Telemetry:
    """Running sums over an epoch's optimizer steps, in tensors on the device: no step waits for a number.

    They live in a dict that the caller keeps (`TrainState.means`), so they are saved and taken up again with it:
    - `steps` `[5]`: number of steps, of finite norms, the sum of those, steps clipped, steps skipped;
    - `updates` `[2, G]`: per parameter group the sum of update-to-weight ratios, and of how many steps.

    Args:
        optimizer: with named parameter groups.
        max_norm: what gradients are clipped to; 0 for no clipping.
        steps_per_epoch: optimizer steps of an epoch; about `MEASURED_PER_EPOCH` of them are measured.
    """

    def __init__(self, optimizer: Optimizer, max_norm: float, steps_per_epoch: int) -> None:
        self.optimizer, self.max_norm, self.steps_per_epoch = optimizer, max_norm, steps_per_epoch
        self.interval = max(1, steps_per_epoch // MEASURED_PER_EPOCH)

    def measures(self, step: int) -> bool:
        """Is the change of the weights measured at this step (counted from 0 over the run)? It depends on it alone."""
        return step % self.steps_per_epoch % self.interval == 0

    @contextmanager
    def step(self, means: dict[str, Tensor], step: int, norm: Tensor, skipped: Tensor) -> Iterator[None]:
        """Wrap the optimizer's step number `step` (counted from 0 over the run).

        Args:
            means: the running sums to add to.
            norm: scalar, of all gradients before clipping.
            skipped: scalar bool: the step will change nothing.
        """
        before = self._copies() if self.measures(step) else []
        yield
        _add(means, "steps", self._step_terms(norm, skipped))
        if before:
            _add(means, "updates", self._update_terms(before, skipped))

    def take(self, means: dict[str, Tensor]) -> dict[str, float]:
        """Return the epoch's numbers for its row, and start the sums anew; what was never measured is left out."""
        row: dict[str, float] = {}
        if "steps" in means:
            steps, norms, norm_sum, clipped, skipped = means.pop("steps").tolist()
            if norms:
                row["train/grad_norm"] = norm_sum / norms
            row |= {"train/clipped": clipped / steps, "train/skipped": skipped / steps}
        if "updates" in means:
            sums, counts = means.pop("updates").tolist()
            for group, ratio, count in zip(self.optimizer.param_groups, sums, counts, strict=True):
                if count:
                    row[f"update/{group['name']}"] = ratio / count
        return row

    def _step_terms(self, norm: Tensor, skipped: Tensor) -> Tensor:
        finite = torch.isfinite(norm)
        clipped = (norm > self.max_norm) & finite & ~skipped if self.max_norm > 0 else torch.zeros_like(finite)
        terms = (torch.ones_like(norm), finite, torch.where(finite, norm, 0.0), clipped, skipped)
        return torch.stack([term.to(norm.dtype) for term in terms])

    def _copies(self) -> list[list[Tensor]]:
        """The weights of each group, as they are now."""
        with torch.no_grad():
            groups = [group["params"] for group in self.optimizer.param_groups]
            copies = [[torch.empty_like(parameter) for parameter in group] for group in groups]
            for copy, group in zip(copies, groups, strict=True):
                torch._foreach_copy_(copy, group)
        return copies

    @torch.no_grad()
    def _update_terms(self, before: list[list[Tensor]], skipped: Tensor) -> Tensor:
        """`[2, G]`: each group's ratio and 1; 0 and 0 where it has none: a skipped step, weights that are all 0."""
        ratios = []
        for copies, group in zip(before, self.optimizer.param_groups, strict=True):
            weights = _norm(copies)
            torch._foreach_sub_(copies, group["params"])
            ratios.append(_norm(copies) / weights)
        ratio = torch.stack(ratios)
        counts = torch.isfinite(ratio) & ~skipped
        return torch.stack([torch.where(counts, ratio, 0.0), counts.to(ratio.dtype)])


def _norm(tensors: list[Tensor]) -> Tensor:
    """The 2-norm of all numbers together."""
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(tensors)))


def _add(means: dict[str, Tensor], name: str, terms: Tensor) -> None:
    means[name] = means[name].to(terms.device) + terms if name in means else terms

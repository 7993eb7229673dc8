"""Best fitness so far, and when to stop for want of a better one."""

from __future__ import annotations


def is_evaluated(done: int, epochs: int, every: int, noval: bool) -> bool:
    """Is a run of so many epochs evaluated when `done` are: every so many, unless `noval`, and at the end."""
    return done == epochs or (not noval and done % every == 0)


class EarlyStopping:
    """Stop after `patience` epochs without a better fitness; 0 never stops.

    Call `update` once per validated epoch, and `should_stop` after it: an epoch that was not validated ends no run.
    Epochs count from 0.
    """

    def __init__(self, patience: int) -> None:
        self.patience = patience
        self.best_fitness, self.best_epoch = -1.0, -1
        self.since = 0  # the epoch that patience counts from, at the earliest

    def update(self, epoch: int, fitness: float) -> bool:
        """Take in an epoch's fitness; return True where it is the best so far, the later of two where it is still 0."""
        better = fitness > self.best_fitness or fitness == self.best_fitness == 0
        if better:
            self.best_fitness, self.best_epoch = fitness, epoch
        return better

    def should_stop(self, epoch: int) -> bool:
        return self.patience > 0 and self.best_epoch >= 0 and epoch - max(self.best_epoch, self.since) >= self.patience

    def restart(self, epoch: int) -> None:
        """Be as patient again as at the start: a run that was over goes on from `epoch`."""
        self.since = epoch

    def state_dict(self) -> dict[str, float | int]:
        return {"best_fitness": self.best_fitness, "best_epoch": self.best_epoch, "since": self.since}

    def load_state_dict(self, state: dict[str, float | int]) -> None:
        self.best_fitness, self.best_epoch = float(state["best_fitness"]), int(state["best_epoch"])
        self.since = int(state["since"])

"""What the policy remembers of a run: its last points, and the best level before them."""

from typing import Any

import numpy as np
import numpy.typing as npt

from optwatch.series.points import Points

F8 = npt.NDArray[np.float64]
KEPT = 1_024
"""Points kept: 200 before an event, 200 after the action, and what lies between."""
BLOCK = 20
"""Points whose median is one level of the loss: a single batch does not move it."""
START = 5
"""First losses that a run is compared with."""


class History:
    """The last `KEPT` points: step, loss and the first group's scheduled LR, each f8[n].

    A loss or LR that was not logged is NaN; a loss that was logged as non-finite is inf.
    """

    def __init__(self) -> None:
        self.step: F8 = np.empty(0)
        self.loss: F8 = np.empty(0)
        self.lr: F8 = np.empty(0)
        self.first: int | None = None
        """The run's first step that was seen."""
        self.start: float | None = None
        """The median of the first `START` losses that were logged."""
        self._first_losses: list[float] = []
        self._older_best = np.inf  # the best level among the points that were forgotten

    def __len__(self) -> int:
        return len(self.step)

    @property
    def now(self) -> int:
        """The last step, 0 before the first."""
        return int(self.step[-1]) if len(self.step) else 0

    @property
    def last_lr(self) -> float:
        """The last LR that was logged, NaN without one."""
        lrs = self.lr[~np.isnan(self.lr)]
        return float(lrs[-1]) if len(lrs) else float("nan")

    def append(self, points: Points) -> None:
        """Take the next points, at most `KEPT` // 4 of them at once."""
        loss, lr = points.column("loss"), points.column("lr")
        if self.first is None and len(points):
            self.first = int(points.step[0])
        if len(points) and points.step[0] <= self.now:  # a new incarnation repeats steps
            kept = self.step < points.step[0]
            self.step, self.loss, self.lr = self.step[kept], self.loss[kept], self.lr[kept]
        self._begin(loss.values[loss.logged & np.isfinite(loss.values)])
        broken = loss.logged & ~np.isfinite(loss.values)
        self.step = np.concatenate([self.step, points.step.astype(np.float64)])
        self.loss = np.concatenate([self.loss, np.where(broken, np.inf, loss.values)])
        self.lr = np.concatenate([self.lr, np.where(np.isfinite(lr.values), lr.values, np.nan)])
        if (extra := len(self.step) - KEPT) > 0:
            # Forget whole blocks, so that the best level does not hang on how the points were cut.
            extra += -extra % BLOCK
            self._older_best = min(self._older_best, best_level(self.loss[:extra]))
            self.step, self.loss, self.lr = self.step[extra:], self.loss[extra:], self.lr[extra:]

    def _begin(self, losses: F8) -> None:
        if len(self._first_losses) < START:
            self._first_losses = [*self._first_losses, *losses.tolist()][:START]
            if len(self._first_losses) == START:
                self.start = float(np.median(self._first_losses))

    def losses(self, after: float, until: float) -> tuple[F8, F8]:
        """Steps and losses that were logged with after < step ≤ until; a non-finite loss is inf."""
        chosen = (self.step > after) & (self.step <= until) & ~np.isnan(self.loss)
        return self.step[chosen], self.loss[chosen]

    def best(self, before: int) -> float:
        """The lowest level of the loss before a step, inf where there was none yet."""
        _, losses = self.losses(-np.inf, before - 1)
        return min(self._older_best, best_level(losses))

    def lrs(self, after: float, until: float) -> F8:
        """LRs that were logged with after < step ≤ until."""
        chosen = (self.step > after) & (self.step <= until) & ~np.isnan(self.lr)
        return self.lr[chosen]

    def state(self) -> dict[str, Any]:
        """Everything `restore` needs, as plain values."""
        return {
            "points": np.stack([self.step, self.loss, self.lr]).astype("<f8").tobytes(),
            "first": self.first,
            "first_losses": self._first_losses,
            "older_best": self._older_best,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a `state`.

        Raises:
            ValueError: it is not one.
        """
        try:
            points = np.frombuffer(state["points"], dtype="<f8").reshape(3, -1)
            self.first = None if state["first"] is None else int(state["first"])
            self._older_best = float(state["older_best"])
            self._first_losses, self.start = [], None
            self._begin(np.array(state["first_losses"], dtype=np.float64))
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"not the state of a policy's history: {error}") from None
        self.step, self.loss, self.lr = (row.astype(np.float64) for row in points)


def best_level(losses: F8) -> float:
    """The lowest median over blocks of `BLOCK` consecutive logged losses, inf where there are none.

    A last block of less than half the size does not count, unless it is the only one.
    """
    losses = losses[~np.isnan(losses)]
    if not len(losses):
        return np.inf
    blocks = [losses[i : i + BLOCK] for i in range(0, len(losses), BLOCK)]
    if len(blocks) > 1 and len(blocks[-1]) < BLOCK // 2:
        blocks.pop()
    return float(min(np.median(block) for block in blocks))

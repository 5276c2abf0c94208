"""Which trials there are to be: those left over, the run's own settings, what the algorithm says, and repeats."""

from __future__ import annotations

from collections.abc import Sequence

from xmodal_dist.tune.algorithms import make_algorithm
from xmodal_dist.tune.choice import choose
from xmodal_dist.tune.ledger import Ledger, Planned, TrialRecord
from xmodal_dist.tune.run import RunSettings
from xmodal_dist.tune.settings import Metric, SearchSettings
from xmodal_dist.tune.space import Space
from xmodal_dist.tune.trial import objectives_of

__all__ = ["Plan"]

_DEFAULT_TRIALS = 32
_UNTIL_LATE = 10**9


class Plan:
    """The trials of a search, one after the other.

    Args:
        space: where to look.
        settings: of the search.
        run: settings that trials change.
        metrics: what is optimised.
        ledger: what there is already; all of it is told to the algorithm.
    """

    def __init__(
        self,
        space: Space,
        settings: SearchSettings,
        run: RunSettings,
        metrics: Sequence[Metric],
        ledger: Ledger,
    ) -> None:
        self._space, self._settings, self._run = space, settings, run
        self._metrics, self._ledger = metrics, ledger
        known = [record for record in ledger.records.values() if record.repeat_of is None]
        unfinished = ledger.unfinished()
        self._waiting = [planned for planned in unfinished if planned.repeat_of is None]
        self._repeats = [planned for planned in unfinished if planned.repeat_of is not None]
        begun = [*(record.trial for record in known), *(planned.number for planned in self._waiting)]
        numbers = [*ledger.records, *(planned.number for planned in unfinished)]
        self._has_own, self._count = 0 in begun, len(begun)
        self._number = max([0, *numbers]) + 1
        self._index_of: dict[int, int] = {}
        self._total = settings.trials or (_UNTIL_LATE if settings.budget_minutes else _DEFAULT_TRIALS)
        if len(numbers) > len(begun) and settings.trials is None:
            self._total = self._count  # the best were being repeated already
        self._own = space.base_point(run)
        self._algorithm = make_algorithm(space, settings, self._own, len(metrics), len(known))
        for record in known:
            self.tell(record)

    @property
    def has_next(self) -> bool:
        """Whether there may be more, repeats aside."""
        return bool(self._waiting) or self._count < self._total

    def next(self) -> Planned | None:
        """The next trial; None when there are no more."""
        if self._waiting:
            return self._waiting.pop(0)
        if self._count >= self._total:
            return None
        self._count += 1
        if not self._has_own:
            self._has_own = True
            return Planned(0, self._own, self._run.train.seed)
        index = self._count - 2  # of the algorithm's trials
        values = self._algorithm.ask(index)
        if values is None:
            self._count -= 1
            return None
        planned = Planned(self._number, values, self._run.train.seed)
        self._index_of[planned.number] = index
        self._number += 1
        return planned

    def tell(self, record: TrialRecord) -> None:
        """Tell the algorithm what a trial reached; one that was stopped tells what it had reached by then."""
        objectives = objectives_of(record.metrics, self._metrics) if record.metrics else None
        if record.state == "failed":
            objectives = None
        self._algorithm.tell(self._index_of.get(record.trial), record.values, objectives)

    def repeats(self) -> list[Planned]:
        """The best trials, and the run's own settings, with the seeds that they have not been trained with yet."""
        settings, found = self._settings, self._repeats
        if settings.repeat_seeds == 1:
            return found
        first = [r for r in self._ledger.records.values() if r.repeat_of is None]
        have = {(p.repeat_of, p.seed) for p in found}
        have |= {(r.repeat_of, r.seed) for r in self._ledger.records.values()}
        choices = choose(first, self._metrics)
        for best in (c.trials[0] for rank, c in enumerate(choices) if rank < settings.repeat_top or c.is_own):
            for seed in range(best.seed + 1, best.seed + settings.repeat_seeds):
                if (best.trial, seed) not in have:
                    found.append(Planned(self._number, best.values, seed, best.trial))
                    self._number += 1
        return found

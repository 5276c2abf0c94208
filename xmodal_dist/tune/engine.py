"""Trials run by Ray Tune: it asks for the next one, places it, hears its epochs and ends it; we keep the account."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import signal
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import ray
from ray import tune
from ray.tune.search import Searcher
from ray.tune.stopper import Stopper

from xmodal_dist import storage
from xmodal_dist.errors import RunAgainError
from xmodal_dist.train.log import read_epochs, read_metrics
from xmodal_dist.tune.ledger import Ledger, Planned, TrialRecord
from xmodal_dist.tune.schedulers import make_scheduler
from xmodal_dist.tune.settings import SearchSettings
from xmodal_dist.tune.space import Space
from xmodal_dist.tune.trial import Trial, TrialBase, name_of, number_of, score_of

__all__ = ["Running", "Search", "Watcher", "run_trials"]

_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # trials write their own logs
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",  # a failed trial reports no figure
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",  # the ledger is ours
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_RESULT_BUFFER_LENGTH": "1",
}
_STORAGE = "ray"
_KEPT_CHECKPOINTS = 4
"""Of a trial that was paused or is copied; one that another is to go on from must not go too early."""
_GRACE_S = 120.0
"""Trials whose epoch takes this long after the time is over are cut off; their last checkpoint counts."""


class Search(NamedTuple):
    """A search, checked.

    Attributes:
        base: what its trials share.
        settings: of the search.
        space: where it looks, and what ``pbt`` changes.
        ledger: gets a line for each trial that ends.
    """

    base: TrialBase
    settings: SearchSettings
    space: Space
    ledger: Ledger


class Running(NamedTuple):
    """A trial under way, as shown.

    Attributes:
        planned: which.
        epoch: epochs done.
        best: metrics of its best epoch so far, {} before the first.
    """

    planned: Planned
    epoch: int
    best: Mapping[str, float]


class Watcher(Protocol):
    """Is told whenever something changed."""

    def __call__(self, running: Sequence[Running], records: Mapping[int, TrialRecord]) -> None:
        """Show it."""


def run_trials(
    search: Search,
    planned: Callable[[], Planned | None],
    tell: Callable[[TrialRecord], None],
    watcher: Watcher,
    deadline_s: float | None,
) -> None:
    """Run trials until there are none left, or the time is over.

    Args:
        search: that they are of.
        planned: the next trial; None when there are no more.
        tell: called with every line.
        watcher: shows what goes on.
        deadline_s: time.time() after which no trial begins and each ends with its epoch.

    Raises:
        RunAgainError: it was interrupted; trials are left, and it was not the time.
    """
    base, ledger = search.base, search.ledger
    _set_up_tune(search.settings)
    account, place = _Account(search, planned, tell, watcher, deadline_s), storage.join(base.output, _STORAGE)
    # Standard output is for results, and Ray warns of its own use of its deprecated parts.
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), _interrupts_as_before():
        warnings.simplefilter("ignore")
        _tuner(search, account, place).fit()
    account.close()
    fs, inner = storage.filesystem(place)
    if fs.exists(inner):
        fs.rm(inner, recursive=True)
    left = len(ledger.unfinished())
    if not account.is_late and (left or not account.is_out_of_trials):
        raise RunAgainError(
            f"the search was stopped with {left} trials under way; the same command with --resume goes on with it"
        )


def _pauses(settings: SearchSettings) -> bool:
    """Whether trials are paused, to be compared with all others."""
    return settings.scheduler in ("hyperband", "pbt")


def _set_up_tune(settings: SearchSettings) -> None:
    """What Tune takes from its environment alone."""
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # As many as there are at once, where not all are.
    os.environ["TUNE_MAX_PENDING_TRIALS_PG"] = "1000" if _pauses(settings) else "auto"


def _tuner(search: Search, account: _Account, place: str) -> tune.Tuner:
    base, settings, space, ledger = search

    def called(trial: Any) -> str:
        return name_of(account.numbers[trial.trial_id])

    return tune.Tuner(
        tune.with_resources(
            tune.with_parameters(Trial, base=base), tune.PlacementGroupFactory(base.needs.bundles)
        ),
        tune_config=tune.TuneConfig(
            search_alg=account.searcher,
            scheduler=make_scheduler(settings, space, base.run.train, _past(base, ledger)),
            num_samples=-1,
            # Those that compare trials with each other need to know all of them. Others ask when a trial ends, knowing
            # more each time, but at first for as many as there are at once: actors that begin one after the other cost
            # a start each, as Tune gives the trial of one to the next that is free, and ends it.
            max_concurrent_trials=None if _pauses(settings) else base.needs.concurrent,
            reuse_actors=True,
            trial_name_creator=called,
            trial_dirname_creator=called,
        ),
        run_config=tune.RunConfig(
            name=f"search-{uuid.uuid4().hex[:12]}",
            storage_path=place,
            stop=account.stopper,
            callbacks=[account],
            checkpoint_config=tune.CheckpointConfig(
                num_to_keep=_KEPT_CHECKPOINTS,
                checkpoint_at_end=False,  # a trial's own are in its run directory
            ),
            failure_config=tune.FailureConfig(max_failures=settings.max_failures),
            verbose=0,
        ),
    )


@contextlib.contextmanager
def _interrupts_as_before() -> Iterator[None]:
    """Take an interrupt from Tune when the block ends: its handler would swallow the first one that comes after."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)


def _past(base: TrialBase, ledger: Ledger) -> list[list[float]]:
    """Scores after each epoch of the trials that have ended."""
    name, past = base.metrics[0], []
    for record in ledger.records.values():
        if record.state != "failed" and record.repeat_of is None and name != "parameters":
            lines = read_epochs(ledger.run_of(record.trial))
            for_each = ({str(name): line[f"val_{name}"], "loss": line["val_loss"]} for line in lines)
            past.append([score_of(metrics, (name,)) for metrics in for_each])
    return past


class _Account(tune.Callback):
    """What Tune is told of the trials, and what it tells of them, in one place."""

    def __init__(
        self,
        search: Search,
        planned: Callable[[], Planned | None],
        tell: Callable[[TrialRecord], None],
        watcher: Watcher,
        deadline_s: float | None,
    ) -> None:
        self._base, self._settings, _, self._ledger = search
        self._planned, self._tell, self._watcher, self._deadline_s = planned, tell, watcher, deadline_s
        self._begun: dict[int, tuple[Planned, float]] = {}
        self.numbers: dict[str, int] = {}
        self.is_out_of_trials = False
        self._results: dict[int, dict[str, Any]] = {}
        self._errors: dict[int, str] = {}
        self.searcher, self.stopper = _Searcher(self), _Stopper(self)

    def __getstate__(self) -> dict[str, Any]:
        """Nothing for Tune to pickle: a search is resumed from its own files."""
        return {}

    @property
    def is_late(self) -> bool:
        return self._deadline_s is not None and time.time() > self._deadline_s

    @property
    def is_very_late(self) -> bool:
        return self._deadline_s is not None and time.time() > self._deadline_s + _GRACE_S

    def next_config(self, trial_id: str) -> dict[str, Any] | None:
        planned = None if self.is_late else self._planned()
        if planned is None:
            self.is_out_of_trials = True
            return None
        self._begun[planned.number] = (planned, time.time())
        self.numbers[trial_id] = planned.number
        self._show()
        return {"seed": planned.seed, "repeat_of": planned.repeat_of, **planned.values}

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        del iteration, trials, info
        number = number_of(str(trial))
        before = self._results.get(number, {})
        sums = {name: _sum(before.get(name), result.get(name)) for name in ("wall_s", "cpu_s")}
        self._results[number] = {**before, **result, **sums}
        self._show()

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        del iteration, trials, info
        self._record(number_of(str(trial)), trial.config)

    def on_trial_recover(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        del iteration, trials, info
        self._free(number_of(str(trial)))

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        del iteration, trials, info
        number = number_of(str(trial))
        self._errors[number] = _last_line(trial.get_error()) or "its process died"
        self._free(number)
        self._record(number, trial.config)

    def close(self) -> None:
        """Lines for the trials that time cut off, if it was time."""
        if self.is_late:
            for number in [n for n in self._begun if n not in self._ledger.records and n in self._results]:
                self._free(number)
                self._record(number, self._ledger.planned(number).values)

    def _record(self, number: int, config: Mapping[str, Any]) -> None:
        planned, began_s = self._begun[number]
        result, needs = self._results.get(planned.number, {}), self._base.needs
        error = self._errors.get(planned.number)
        if error is not None:
            state, reason = "failed", "out_of_memory" if "OutOfMemory" in error else "crashed"
        elif "failed" in result:
            state, reason = "failed", result["failed"]
        elif result.get("finished"):
            state, reason = "finished", ""
        else:
            state, reason = "stopped", "budget" if self.is_late else self._settings.scheduler
        record = TrialRecord(
            trial=planned.number,
            state=state,  # type: ignore[arg-type]
            reason=reason,
            values={k: v for k, v in config.items() if "." in k},
            metrics=dict(result.get("best", {})),
            best_epoch=result.get("best_epoch", -1),
            epochs=result.get("epoch", 0),
            seed=planned.seed,
            repeat_of=planned.repeat_of,
            wall_s=result.get("wall_s") or 0.0,
            cpu_s=result.get("cpu_s"),
            cpus=needs.num_workers * (needs.cpus + needs.reader_cpus),
            gpus=needs.num_workers * needs.gpus,
            began_s=began_s,
            ended_s=time.time(),
            message=error or result.get("message", ""),
        )
        self._ledger.add(record)
        self._tell(record)
        self._show()

    def _free(self, number: int) -> None:
        """Remove what a nested trainer reserved whose trial died; Ray itself keeps it as long as the job runs."""
        if self._base.needs.num_workers == 1:
            return
        starts = [line for line in read_metrics(self._ledger.run_of(number)) if line["event"] == "start"]
        if starts and (group := starts[-1]["workers"][0].get("placement_group")):
            from ray.util.placement_group import PlacementGroup, remove_placement_group

            remove_placement_group(PlacementGroup(ray.PlacementGroupID(bytes.fromhex(group))))

    def _show(self) -> None:
        running = []
        for number, (planned, _) in self._begun.items():
            if number not in self._ledger.records:
                result = self._results.get(number, {})
                running.append(Running(planned, result.get("epoch", 0), result.get("best", {})))
        self._watcher(running, self._ledger.records)


class _Searcher(Searcher):
    """Hands Tune the next trial."""

    def __init__(self, account: _Account) -> None:
        super().__init__(metric=None, mode=None)
        self._account = account

    def set_search_properties(self, metric: str | None, mode: str | None, config: Any, **spec: Any) -> bool:
        return True

    def suggest(self, trial_id: str) -> Any:
        config = self._account.next_config(trial_id)
        return Searcher.FINISHED if config is None else config

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        pass

    def save(self, checkpoint_path: str) -> None:
        pass

    def restore(self, checkpoint_path: str) -> None:
        pass


class _Stopper(Stopper):
    """Ends every trial with its epoch when the time is over."""

    def __init__(self, account: _Account) -> None:
        self._account = account

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return self._account.is_late

    def stop_all(self) -> bool:
        return self._account.is_very_late


def _sum(one: float | None, other: float | None) -> float | None:
    return one if other is None else round((one or 0.0) + other, 3)


def _last_line(text: str | None) -> str:
    lines = [line.strip() for line in (text or "").splitlines() if line.strip()]
    return lines[-1] if lines else ""

"""Live progress: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from ..training import Event

__all__ = ["Bars", "Lines", "duration", "watch"]

CENTROIDS = "centroids"  # the step between the two phases, which has no events


def watch(console: Console) -> Bars | Lines:
    """Return what suits the console: bars if it can redraw a line, else plain lines.

    Parameters
    ----------
    console : rich.console.Console
        On standard error.
    """
    return Bars(console) if console.is_interactive else Lines(console)


def duration(seconds: float) -> str:
    """Return a time in words.

    >>> duration(8.2), duration(200), duration(8000)
    ('8 s', '3 min', '2 h 13 min')
    """
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"


class _Stage:
    """What is known of the running stage."""

    def __init__(self, name: str, start: float) -> None:
        self.name = name
        self.start = start
        self.facts: dict[str, str] = {}

    def take(self, event: Event, now: float) -> None:
        """Note losses, changed labels and the time left."""
        self.facts |= {name: f"{name} {value.item():.4g}" for name, value in event.losses.items()}
        if event.changed is not None:
            self.facts["changed"] = f"{event.changed:.2%} changed"
        self.facts.pop("left", None)
        if 0 < event.step < event.n_steps:
            left = (now - self.start) / event.step * (event.n_steps - event.step)
            # Self-training ends sooner when hardly any label changes.
            most = "at most " if event.phase == "self-train" else ""
            self.facts["left"] = f"{most}{duration(left)} left"

    def end(self) -> None:
        """Nothing is left: a stage may stop before its last step."""
        self.facts.pop("left", None)

    def __str__(self) -> str:
        return ", ".join(self.facts.values())


class Lines:
    """A line every few seconds and one at the end of each stage.

    Parameters
    ----------
    console : rich.console.Console
        Where to write.
    every : float, default=5.0
        Seconds between two lines of a stage.
    clock : callable, optional
        Seconds now.
    """

    def __init__(
        self, console: Console, every: float = 5.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.console = console
        self.every = every
        self.clock = clock
        self._last = clock()  # when the last event came
        self._stage: _Stage | None = None
        self._at = ""  # what has not been said yet
        self._said = self._last

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self._end_stage()

    def __call__(self, event: Event) -> None:
        """Tell about an event, if it is time to."""
        now = self.clock()
        if self._stage is None or self._stage.name != event.phase:
            self._end_stage()
            if self._stage is not None:
                self._say(f"{CENTROIDS}: placed in {duration(now - self._last)}")
            # The first event of a stage comes at step 0, or after some steps.
            self._stage = _Stage(event.phase, now if event.step == 0 else self._last)
            self._said = self._stage.start
        self._last = now
        self._stage.take(event, now)
        self._at = f"{event.phase}: step {event.step:,} of {event.n_steps:,}"
        if event.phase == "pretrain" and event.step == event.n_steps:
            self._end_stage()  # a last refresh may follow in self-training
        elif now - self._said >= self.every:
            self._say(f"{self._at}, {self._stage}")
            self._at, self._said = "", now

    def _end_stage(self) -> None:
        if self._stage is not None and self._at:
            self._stage.end()
            self._say(f"{self._at}, {self._stage}")
        self._at = ""

    def _say(self, line: str) -> None:
        self.console.out(line.rstrip(", "), highlight=False)


class _Facts(ProgressColumn):
    def render(self, task: Task) -> Text:
        return Text(str(task.fields.get("facts", "")))


class Bars:
    """A bar for each stage.

    Parameters
    ----------
    console : rich.console.Console
        A terminal.
    clock : callable, optional
        Seconds now.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self._bars = Progress(
            TextColumn("{task.description:<10}"),
            BarColumn(bar_width=24),
            _Facts(),
            console=console,
        )
        self._last = clock()
        self._stage: _Stage | None = None
        self._task = self._bars.add_task("prepare", total=None)

    def __enter__(self) -> Self:
        self._bars.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self._fill()
        self._bars.stop()

    def __call__(self, event: Event) -> None:
        """Draw an event."""
        now = self.clock()
        if self._stage is None or self._stage.name != event.phase:
            if self._stage is None:
                self._bars.remove_task(self._task)
            else:
                self._fill(f"placed in {duration(now - self._last)}")
            self._stage = _Stage(event.phase, now if event.step == 0 else self._last)
            self._task = self._bars.add_task(event.phase, total=event.n_steps)
        self._last = now
        self._stage.take(event, now)
        self._bars.update(self._task, completed=event.step, facts=str(self._stage))
        if event.phase == "pretrain" and event.step == event.n_steps:
            self._task = self._bars.add_task(CENTROIDS, total=None)

    def _fill(self, facts: str | None = None) -> None:
        """Show the last bar as done: a stage may stop before its last step."""
        if self._stage is not None:
            self._stage.end()
            self._bars.update(self._task, total=1, completed=1, facts=facts or str(self._stage))

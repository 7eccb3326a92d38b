"""A frame with two axes: from numbers to places in a picture."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from catonnx.reporting.svg import GRID, MUTED, element, label

LEFT, RIGHT, TOP, BOTTOM = 52.0, 14.0, 30.0, 44.0
"""Room around the frame, for labels."""


@dataclasses.dataclass(frozen=True)
class Axis:
    """Numbers along a line.

    Attributes:
        low: Number at the beginning.
        high: Number at the end; greater than `low`.
        ticks: Numbers that are written.
    """

    low: float
    high: float
    ticks: tuple[float, ...]

    @staticmethod
    def over(values: Sequence[float], *, count: int = 5, zero: bool = False) -> Axis:
        """Return an axis that holds all values, from one round number to another.

        Args:
            values: At least one.
            count: About how many ticks.
            zero: Begin at zero.
        """
        low, high = (0.0 if zero else min(values)), max(values)
        if high <= low:
            low, high = (low, low + 1) if zero else (low - 1, high + 1)
        step = _round_step((high - low) / count)
        first, last = math.floor(low / step), math.ceil(high / step)
        if first == last:  # so far from zero that the step is lost in rounding
            first, last = first - 1, last + 1
        return Axis(first * step, last * step, tuple(index * step for index in range(first, last + 1)))

    @staticmethod
    def counting(count: int, most: int = 10) -> Axis:
        """Return an axis of 0 to `count` - 1 with room on both sides, whole numbers written."""
        step = max(1, math.ceil(count / most))
        for nice in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000):
            if nice >= step:
                step = nice
                break
        return Axis(-0.6, count - 0.4, tuple(float(index) for index in range(0, count, step)))

    def place(self, value: float) -> float:
        """Return where a number lies, from 0 at the beginning to 1 at the end."""
        return (value - self.low) / (self.high - self.low)

    def spelled(self, tick: float) -> str:
        """Return a tick as short as it can be told from its neighbours."""
        step = self.ticks[1] - self.ticks[0] if len(self.ticks) > 1 else 1.0
        digits = max(0, -math.floor(math.log10(step) + 1e-9))
        return f"{tick + 0.0:.{digits}f}".replace("-", "\u2212")


@dataclasses.dataclass(frozen=True)
class Frame:
    """A picture's frame: two axes, their names, a heading."""

    width: float
    height: float
    x_axis: Axis
    y_axis: Axis

    def x(self, value: float) -> float:
        """Return where a number of the horizontal axis lies."""
        return LEFT + self.x_axis.place(value) * (self.width - LEFT - RIGHT)

    def y(self, value: float) -> float:
        """Return where a number of the vertical axis lies."""
        return self.height - BOTTOM - self.y_axis.place(value) * (self.height - TOP - BOTTOM)

    def drawn(self, heading: str, x_name: str, y_name: str) -> str:
        """Return grid, ticks and names.

        Args:
            heading: Markup above the frame.
            x_name: What runs along.
            y_name: What runs up.
        """
        left, right, bottom = LEFT, self.width - RIGHT, self.height - BOTTOM
        rules = [
            element("line", x1=left, x2=right, y1=self.y(tick), y2=self.y(tick), stroke=GRID, class_="grid")
            for tick in self.y_axis.ticks
        ]
        rules += [
            label(left - 7, self.y(tick) + 4, self.y_axis.spelled(tick), text_anchor="end", class_="tick-y muted")
            for tick in self.y_axis.ticks
        ]
        rules += [
            label(self.x(tick), bottom + 16, self.x_axis.spelled(tick), text_anchor="middle", class_="tick-x muted")
            for tick in self.x_axis.ticks
        ]
        middle = (TOP + bottom) / 2
        return "".join(
            [
                *rules,
                element("line", x1=left, x2=right, y1=bottom, y2=bottom, stroke=MUTED, class_="axis"),
                label(left, 18, heading, font_weight="bold", class_="ink", fill="#1b1f24"),
                label((left + right) / 2, self.height - 10, x_name, text_anchor="middle"),
                label(0, 0, y_name, text_anchor="middle", transform=f"translate(13 {middle:.1f}) rotate(-90)"),
            ]
        )


def _round_step(step: float) -> float:
    """Return 1, 2 or 5 times a power of ten, the nearest from above."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(power * digit for digit in (1, 2, 5, 10) if power * digit >= step * 0.999)

"""How long a condition has held over samples that come every few steps."""

import msgspec

FEW, LONG = 2, 200
"""Samples that are enough where they lie so many steps apart: what holds so long is no passing mood."""


class Spell(msgspec.Struct):
    """A condition over consecutive samples: since when it holds, and since when it does not."""

    samples: int = 0
    since: int = 0
    """The step from which on it held."""
    misses: int = 0
    missed_since: int = 0
    open: bool = False

    def take(self, step: int, holds: bool, samples: int, steps: int, clear: bool = False) -> bool:
        """One more sample; whether this opens or closes the spell.

        It opens once it held in so many samples over so many steps, or, where it holds by far (`clear`),
        in two over 200 steps. It closes after as many samples in which it did not hold, or two over 200.
        """
        if holds:
            if self.samples == 0:
                self.since = step
            self.samples += 1
            self.misses = 0
            enough = self.samples >= samples and step - self.since >= steps
            few = clear and self.samples >= FEW and step - self.since >= max(steps, LONG)
            if not self.open and (enough or few):
                self.open = True
                return True
        elif self.open:
            if self.misses == 0:
                self.missed_since = step
            self.misses += 1
            if self.misses >= samples or (self.misses >= FEW and step - self.missed_since >= LONG):
                self.open, self.samples = False, 0
                return True
        else:
            self.samples = 0
        return False

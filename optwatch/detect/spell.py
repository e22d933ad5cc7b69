"""How long a condition has held over samples that come every few steps."""

import msgspec


class Spell(msgspec.Struct):
    """A condition over consecutive samples: since when it holds, and since when it does not."""

    samples: int = 0
    since: int = 0
    """The step from which on it held."""
    misses: int = 0
    open: bool = False

    def take(self, step: int, holds: bool, samples: int, steps: int) -> bool:
        """One more sample; whether this opens or closes the spell.

        It opens once it held in so many samples over so many steps, and closes after as many samples in
        which it did not.
        """
        if holds:
            if self.samples == 0:
                self.since = step
            self.samples += 1
            self.misses = 0
            if not self.open and self.samples >= samples and step - self.since >= steps:
                self.open = True
                return True
        elif self.open:
            self.misses += 1
            if self.misses >= samples:
                self.open, self.samples = False, 0
                return True
        else:
            self.samples = 0
        return False

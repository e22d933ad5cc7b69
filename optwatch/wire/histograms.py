"""How the magnitudes of a tensor's elements are spread: a count for each power of two, by sign.

A histogram is a row of `WIDTH` counts: of the negative elements for each power of two from 2^`LEAST` to
2^`MOST`, of the positive ones likewise, of zeros, of elements that are not finite. An element x counts for
the power floor(log2 |x|); what is smaller or larger than the range counts for its end. Rows of the shards
of a tensor add up to the row of the whole. A row without any count was not measured.
"""

LEAST = -96
MOST = 31
POWERS = MOST - LEAST + 1
ZEROS = 2 * POWERS
NONFINITE = ZEROS + 1
WIDTH = NONFINITE + 1
MAX_COUNT = 2**32 - 1
"""Where a count of one rank ends, which is uint32 on the wire."""

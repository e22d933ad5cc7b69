"""Commands that no agent and no daemon may take, whatever is wrong with them, for hypothesis to draw from."""

import math
from typing import Any

from hypothesis import strategies as st

from optwatch.wire.actions import ACTIONS

Asked = tuple[str, dict[str, Any]]

NUMBERS = st.sampled_from([math.nan, math.inf, -math.inf, -1, -0.5, 1e300, 10**31, -(10**31), 1 << 63])
JUNK = st.one_of(
    st.none(),
    st.booleans(),
    st.text(max_size=8),
    st.binary(max_size=4),
    st.lists(st.integers(), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
    NUMBERS,
)
UNKNOWN = st.tuples(
    st.text(max_size=12).filter(lambda name: name not in ACTIONS),
    st.dictionaries(st.text(max_size=5), JUNK, max_size=2),
)
UNKNOWN_FIELD = st.tuples(
    st.sampled_from(sorted(ACTIONS)),
    st.dictionaries(st.sampled_from(["x", "Factor", "", "action "]), JUNK, min_size=1),
)
OUT_OF_RANGE = st.one_of(
    st.tuples(st.just("restart"), st.fixed_dictionaries({"warmup": NUMBERS})),
    st.tuples(
        st.just("restart"),
        st.fixed_dictionaries({"moments": JUNK.filter(lambda m: m not in ("all", "first", "second"))}),
    ),
    st.tuples(st.just("scale_lr"), st.fixed_dictionaries({"factor": NUMBERS})),
    st.tuples(st.just("scale_lr"), st.fixed_dictionaries({"factor": st.just(0.5), "ramp": NUMBERS})),
    st.tuples(st.just("clip"), st.fixed_dictionaries({"max_norm": NUMBERS.filter(lambda x: x != 1 << 63)})),
    st.tuples(st.just("perturb"), st.fixed_dictionaries({"std": NUMBERS})),
    st.tuples(
        st.just("perturb"),
        st.fixed_dictionaries({"std": st.just(0.1), "decay": st.sampled_from([-1, math.nan, 11])}),
    ),
    st.tuples(st.just("perturb"), st.fixed_dictionaries({"std": st.just(0.1), "seed": NUMBERS})),
    st.tuples(st.just("rollback"), st.fixed_dictionaries({"to_step": NUMBERS})),
)
CONTRADICTORY = st.sampled_from(
    [
        ("scale_lr", {}),
        ("scale_lr", {"factor": 0.5, "reset": True}),
        ("clip", {}),
        ("clip", {"max_norm": 1.0, "off": True}),
        ("clip", {"adapt": True, "off": True}),
        ("perturb", {}),
        ("perturb", {"std": 0.1, "off": True}),
        ("perturb", {"target": "param", "off": True}),
    ]
)
MALFORMED = st.one_of(UNKNOWN, UNKNOWN_FIELD, OUT_OF_RANGE, CONTRADICTORY)
"""What the contract rules out."""
IMPOSSIBLE = st.one_of(
    st.sampled_from([("snapshot", {}), ("rollback", {}), ("clip", {"max_norm": "auto"})]),
    st.tuples(st.just("rollback"), st.fixed_dictionaries({"to_step": st.integers(0, 1 << 53)})),
)
"""What an agent cannot do that has no memory for snapshots, in the first steps of its run."""
WRONG = st.one_of(MALFORMED, IMPOSSIBLE)

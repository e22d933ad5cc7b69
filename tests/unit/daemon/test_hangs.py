"""Which rank is named when training stands still, and that none is while it goes on."""

from optwatch.daemon.hangs import BEHIND, SILENT, Hangs, Standing


def standings(*ranks: tuple[int, float]) -> list[Standing]:
    """(step, silence) of each rank."""
    return [Standing(i, step, "before backward", silence) for i, (step, silence) in enumerate(ranks)]


def test_the_silent_rank_that_others_wait_for_is_named_once_and_resolved() -> None:
    hangs = Hangs()
    assert hangs.look(standings((7, 0.1), (7, 0.1), (7, 0.1)), 0.0) is None
    assert hangs.look(standings((7, 0.1), (7, SILENT - 1), (7, 0.1)), SILENT - 1) is None
    signal = hangs.look(standings((7, 0.1), (7, SILENT + 1), (7, 0.1)), SILENT + 1)
    assert signal is not None
    assert (signal.kind, signal.severity, signal.rank, signal.over) == ("stalled_rank", "critical", 1, False)
    assert hangs.look(standings((7, 0.1), (7, SILENT + 2), (7, 0.1)), SILENT + 2) is None
    assert hangs.look(standings((8, 0.1), (7, 0.1), (8, 0.1)), SILENT + 3) is None, "only some have stepped"
    over = hangs.look(standings((8, 0.1), (8, 0.1), (8, 0.1)), SILENT + 3)
    assert over is not None
    assert (over.key, over.over) == (signal.key, True)


def test_nobody_is_named_while_training_goes_on_or_all_are_silent_or_all_are_busy() -> None:
    hangs = Hangs()
    for second in range(60):
        assert hangs.look(standings((second, 0.1), (second, SILENT + second)), float(second)) is None
    hangs = Hangs()
    for second in range(60):
        assert hangs.look(standings((7, float(second)), (7, float(second))), float(second)) is None
    hangs = Hangs()
    for second in range(600):
        assert hangs.look(standings((7, 0.1), (7, 0.1)), float(second)) is None


def test_a_rank_behind_the_others_is_named_after_a_while() -> None:
    hangs = Hangs()
    for second in range(int(BEHIND)):
        assert hangs.look(standings((8, 0.1), (7, 0.1)), float(second)) is None
    signal = hangs.look(standings((8, 0.1), (7, 0.1)), BEHIND)
    assert signal is not None
    assert signal.rank == 1


def test_the_silent_rank_that_is_ahead_is_not_the_one() -> None:
    hangs = Hangs()
    for second in range(20):
        assert hangs.look(standings((7, 0.1), (8, float(second))), float(second)) is None


def test_a_rank_in_an_earlier_phase_of_the_same_step_is_named() -> None:
    phases = ("backward", "data loading", "backward")
    hangs = Hangs()
    hangs.look([Standing(i, 7, phase, 0.1) for i, phase in enumerate(phases)], 0.0)
    signal = hangs.look([Standing(i, 7, phase, 0.1) for i, phase in enumerate(phases)], BEHIND)
    assert signal is not None
    assert (signal.rank, signal.evidence["phase"]) == (1, "data loading")
    hangs = Hangs()
    for phases in (("data loading", "data loading", "backward"), ("start", "start", "start")):
        assert hangs.look([Standing(i, 7, phase, 0.1) for i, phase in enumerate(phases)], 0.0) is None
        assert hangs.look([Standing(i, 7, phase, 0.1) for i, phase in enumerate(phases)], 2 * BEHIND) is None

"""When the steps of a recording are due, and how it is cut."""

from pathlib import Path

import numpy as np
import pytest

from optwatch.cli.recording import LOG_PACE, PAUSE, ROWS, cut, find_recording


def test_a_log_without_a_clock_has_a_pace(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    log.write_text("step,loss\n10,3\n20,2\n30,1\n")
    (track,) = find_recording(str(log), None, {}).tracks
    assert track.due.tolist() == [0, 1 / LOG_PACE, 2 / LOG_PACE]
    np.testing.assert_allclose(np.diff(track.wall), 1 / LOG_PACE, rtol=1e-5)


def test_tensorboard_has_a_clock_and_long_pauses_are_cut(tmp_path: Path) -> None:
    writing = pytest.importorskip("tensorboard.summary.writer.event_file_writer")
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    walls = [1e9, 1e9 + 0.25, 1e9 + 0.5, 1e9 + 3_600.5, 1e9 + 3_600.75]
    writer = writing.EventFileWriter(str(tmp_path))
    for step, wall in enumerate(walls):
        value = Summary.Value(tag="loss", simple_value=1.0)
        writer.add_event(Event(step=step, wall_time=wall, summary=Summary(value=[value])))
    writer.close()
    (track,) = find_recording(str(tmp_path), None, {}).tracks
    assert track.wall.tolist() == walls
    assert track.due.tolist() == [0, 0.25, 0.5, 0.5 + PAUSE, 0.75 + PAUSE]
    assert list(track.points.columns) == ["loss"]


def test_the_parts_and_their_cuts_are_the_whole(tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    steps = 2 * ROWS + 7
    log.write_text("loss\n" + "".join(f"{step}\n" for step in range(steps)))
    (track,) = find_recording(str(log), None, {}).tracks
    halves = [half for _, blocks in track.parts() for half in cut(blocks, 5)]
    assert [len(half.step) for half in halves] == [5, ROWS - 5, 5, ROWS - 5, 5, 2]
    assert np.concatenate([half.step for half in halves]).tolist() == list(range(1, steps + 1))
    assert np.concatenate([half.scalars[:, 0] for half in halves]).tolist() == list(range(steps))

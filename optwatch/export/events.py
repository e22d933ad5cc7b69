"""TensorBoard's event files without TensorFlow or torch: building events, and reading back our own.

Importing this module needs the package `tensorboard`; `optwatch.export.tensorboard` says so in words.
"""

import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError
from tensorboard.compat.proto import summary_pb2
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.custom_scalar import metadata as custom_scalar
from tensorboard.plugins.histogram import metadata as histogram_metadata
from tensorboard.plugins.hparams import api_pb2, plugin_data_pb2
from tensorboard.plugins.hparams import metadata as hparams_metadata
from tensorboard.plugins.hparams import summary_v2 as hparams
from tensorboard.plugins.text import metadata as text_metadata
from tensorboard.summary.writer.event_file_writer import EventFileWriter
from tensorboard.util import tensor_util

F8 = npt.NDArray[np.float64]

LAYOUT_TAG: str = custom_scalar.CONFIG_SUMMARY_TAG
HPARAMS_TAG: str = hparams_metadata.SESSION_START_INFO_TAG
END_TAG: str = hparams_metadata.SESSION_END_INFO_TAG


def open_writer(directory: Path) -> EventFileWriter:
    """A new event file in a directory; what is added reaches the disk within two seconds."""
    return EventFileWriter(str(directory), max_queue_size=1_000, flush_secs=2)


def scalars_event(step: int, wall: float, values: Sequence[tuple[str, float]]) -> Event:
    """One event with many scalars: four times as fast as one event each."""
    summary = summary_pb2.Summary(
        value=[summary_pb2.Summary.Value(tag=tag, simple_value=value) for tag, value in values]
    )
    return Event(step=step, wall_time=wall, summary=summary)


def text_event(step: int, wall: float, tag: str, text: str) -> Event:
    """Markdown for the Text dashboard."""
    value = summary_pb2.Summary.Value(
        tag=tag,
        metadata=text_metadata.create_summary_metadata(None, None),
        tensor=tensor_util.make_tensor_proto([text.encode()]),
    )
    return Event(step=step, wall_time=wall, summary=summary_pb2.Summary(value=[value]))


def layout_event(wall: float, charts: Mapping[str, Mapping[str, Sequence[str]]]) -> Event:
    """The Custom Scalars dashboard: categories of charts, each chart a list of tag expressions.

    TensorBoard's own helper for this imports TensorFlow, so the summary is made here.
    """
    layout = layout_pb2.Layout(
        category=[
            layout_pb2.Category(
                title=category,
                chart=[
                    layout_pb2.Chart(title=title, multiline=layout_pb2.MultilineChartContent(tag=tags))
                    for title, tags in contents.items()
                ],
            )
            for category, contents in charts.items()
        ]
    )
    value = summary_pb2.Summary.Value(
        tag=LAYOUT_TAG,
        metadata=custom_scalar.create_summary_metadata(),
        tensor=tensor_util.make_tensor_proto(layout.SerializeToString()),
    )
    return Event(step=0, wall_time=wall, summary=summary_pb2.Summary(value=[value]))


def hparams_event(wall: float, values: Mapping[str, str | float | bool], trial: str) -> Event:
    """A run's hyper-parameters for the HParams dashboard."""
    summary = hparams.hparams_pb(dict(values), trial_id=trial, start_time_secs=wall)
    return Event(step=0, wall_time=wall, summary=summary)


def end_event(step: int, wall: float, well: bool) -> Event:
    """The end of a run for the HParams dashboard. TensorBoard's own helper for it imports TensorFlow."""
    status = api_pb2.STATUS_SUCCESS if well else api_pb2.STATUS_FAILURE
    info = plugin_data_pb2.SessionEndInfo(status=status, end_time_secs=wall)
    value = summary_pb2.Summary.Value(
        tag=END_TAG,
        metadata=hparams_metadata.create_summary_metadata(
            plugin_data_pb2.HParamsPluginData(session_end_info=info)
        ),
        tensor=hparams_metadata.NULL_TENSOR,
    )
    return Event(step=step, wall_time=wall, summary=summary_pb2.Summary(value=[value]))


def histograms_event(step: int, wall: float, values: Sequence[tuple[str, F8]]) -> Event:
    """One event with histograms by their tags: f8[k, 3] of left edge, right edge and count each."""
    metadata = histogram_metadata.create_summary_metadata(None, None)
    summary = summary_pb2.Summary(
        value=[
            summary_pb2.Summary.Value(
                tag=tag, metadata=metadata, tensor=tensor_util.make_tensor_proto(buckets, dtype=np.float64)
            )
            for tag, buckets in values
        ]
    )
    return Event(step=step, wall_time=wall, summary=summary)


@dataclass
class Written:
    """What a run's directory already holds."""

    last: int = -1
    """The last step of the training's scalars."""
    marks: set[tuple[str, int]] = field(default_factory=set)
    """Tag and step of each marker."""
    texts: dict[str, str] = field(default_factory=dict)
    """The newest text of each tag."""
    tags: set[str] = field(default_factory=set)
    spread: int = -1
    """The last step of the histograms."""


def read_written(directory: Path, others: tuple[str, ...]) -> Written:
    """What the event files of a directory hold; a torn end of a file is left out.

    Args:
        directory: A run's directory; it need not exist.
        others: The prefixes of the scalars that are not of the training's steps, such as markers.
    """
    written = Written()
    for path in sorted(directory.glob("events.out.tfevents.*")):
        for event in _events(path):
            for value in event.summary.value:
                written.tags.add(value.tag)
                if value.metadata.plugin_data.plugin_name == text_metadata.PLUGIN_NAME:
                    written.texts[value.tag] = value.tensor.string_val[0].decode(errors="replace")
                elif value.metadata.plugin_data.plugin_name == histogram_metadata.PLUGIN_NAME:
                    written.spread = max(written.spread, event.step)
                elif value.tag.startswith(others):
                    written.marks.add((value.tag, event.step))
                elif value.HasField("simple_value"):
                    written.last = max(written.last, event.step)
    return written


def _events(path: Path) -> Iterator[Event]:
    """The events of a file. A record: length u64, its CRC, the event, its CRC (CRCs of 4 bytes)."""
    with path.open("rb") as file:
        while len(header := file.read(12)) == 12:
            (length,) = struct.unpack("<Q", header[:8])
            if length > 1 << 28 or len(body := file.read(length + 4)) < length + 4:
                return
            try:
                yield Event.FromString(body[:length])
            except DecodeError:
                return

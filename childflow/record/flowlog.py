"""Which recorder a run has: none, one that counts for the summary, or one that writes a flow log too.

Not here: what they do (`null.py`, `recorder.py`), the lines' shape (`events.py`), the file (`log_file.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from childflow.record.null import NullRecorder

if TYPE_CHECKING:
    from childflow.settings import Settings


def make_recorder(settings: Settings) -> NullRecorder:
    """The recorder that `settings` ask for. UsageError or ChildflowError when the flow log can't be written."""
    if settings.flow_log is None and not settings.summary:
        return NullRecorder(settings)
    from childflow.record.recorder import Recorder

    if settings.flow_log is None:
        return Recorder(settings, None)
    from childflow.record.log_file import LogFile

    return Recorder(settings, LogFile(settings.flow_log, NullRecorder(settings).warn))

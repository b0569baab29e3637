"""Breaks a member's training stream, as a network would."""

from ps.line import Line
from ps.transport import streams


def break_stream(line: Line) -> None:
    """The stream ends soon, for the member and for the server."""
    stream = line._stream
    assert stream is not None and stream._call is not None

    async def cancel() -> None:
        stream._call.cancel()

    streams.run(cancel())

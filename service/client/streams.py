"""What the streams of both transports share."""

from __future__ import annotations

from service.client.calls import Context
from service.client.faults import BadAnswer
from service.client.images import Image
from service.client.results import Answer, answer
from service.client.sequence_calls import stream_message
from service.wire import MSGPACK, decode


class StreamState:
    """Counts of a stream, and its messages.

    Args:
        context: of the sequence.

    Attributes:
        sent: frames.
        received: answers; each frame gets one.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self.sent = 0
        self.received = 0

    @property
    def pending(self) -> int:
        """Frames that have no answer yet."""
        return self.sent - self.received

    def _message(self, image: Image, stamp_ns: int, frame_id: str | None, right: Image | None) -> bytes:
        return stream_message(self._context, image, stamp_ns, frame_id, right)

    def _answer(self, data: bytes | str) -> Answer:
        self.received += 1
        try:
            if isinstance(data, str):
                raise ValueError("it is text")
            return answer(decode(data, MSGPACK))
        except (KeyError, TypeError, ValueError) as error:
            reason = f"it has no {error}" if isinstance(error, KeyError) else str(error)
            detail = f"an answer of the stream cannot be read: {reason}"
            raise BadAnswer(None, "bad_answer", detail, maybe_processed=True) from None

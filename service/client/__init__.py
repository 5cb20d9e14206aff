"""The client of the service, for threads and for asyncio; it needs neither torch nor what the server is made of.

with Client("http://robot:8000") as client:
    result = client.match(Path("a.jpg"), Path("b.jpg"))
    with client.sequence(camera=camera) as sequence:
        frame = sequence.track(image, stamp_ns)
"""

from service.client.aio import AsyncClient, AsyncSequence, AsyncStream
from service.client.faults import (
    BadAnswer,
    BadImage,
    BadRequest,
    Deadline,
    FeaturesLost,
    NotFound,
    OutOfOrder,
    Overloaded,
    SequenceLost,
    ServiceFault,
    TooLarge,
    Unauthorized,
    Unavailable,
)
from service.client.results import (
    Dropped,
    ManyMatches,
    Model,
    Refused,
    SequenceFrame,
    SequenceStatus,
    StoredFeatures,
    StoredMatch,
)
from service.client.retry import Retry
from service.client.sync import Client, Sequence, Stream

__all__ = [
    "AsyncClient",
    "AsyncSequence",
    "AsyncStream",
    "BadAnswer",
    "BadImage",
    "BadRequest",
    "Client",
    "Deadline",
    "Dropped",
    "FeaturesLost",
    "ManyMatches",
    "Model",
    "NotFound",
    "OutOfOrder",
    "Overloaded",
    "Refused",
    "Retry",
    "Sequence",
    "SequenceFrame",
    "SequenceLost",
    "SequenceStatus",
    "ServiceFault",
    "StoredFeatures",
    "StoredMatch",
    "Stream",
    "TooLarge",
    "Unauthorized",
    "Unavailable",
]

"""Exit code 0 where the service in this container is ready, 1 where it is not: for HEALTHCHECK."""

import os
import sys
from http.client import HTTPConnection, HTTPException


def port() -> int:
    """That the service listens at: as in service/settings.py, an address is none, which a service's name brings."""
    given = os.environ.get("SUPERPOINT_PORT", "")
    return 8000 if not given or given.startswith(("tcp://", "udp://", "sctp://")) else int(given)


def ready() -> bool:
    # not urllib: it would ask the proxy of the environment
    connection = HTTPConnection("127.0.0.1", port(), timeout=5)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(not ready())

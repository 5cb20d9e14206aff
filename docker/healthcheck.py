"""Exit code 0 where the service in this container is ready, 1 where it is not: for HEALTHCHECK."""

import os
import sys
from http.client import HTTPConnection, HTTPException


def ready() -> bool:
    # not urllib: it would ask the proxy of the environment
    connection = HTTPConnection("127.0.0.1", int(os.environ.get("SUPERPOINT_PORT") or 8000), timeout=5)
    try:
        connection.request("GET", "/readyz")
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(not ready())

"""The REST service; ``service.app.create_app`` makes the application."""

import frontend  # noqa: F401  # before NumPy, whose threads it tells how to wait

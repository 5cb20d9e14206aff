"""The REST service; ``service.app.create_app`` makes the application."""

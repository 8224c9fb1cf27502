"""The API under many generated requests, and hostile or slow clients."""

"""The HTTP API: FastAPI over the job record. No torch and no worker here: it starts in a second and stays small."""

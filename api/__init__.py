"""The HTTP API: FastAPI over the job record. It imports no torch, so it starts in a second and stays small."""

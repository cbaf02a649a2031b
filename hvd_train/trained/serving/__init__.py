"""Answer requests over HTTP with a trained model: FastAPI, uvicorn and dynamic batches."""

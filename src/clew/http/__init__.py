"""What a process answers over HTTP beside the app's own: health and jobs, as routers for FastAPI and in a small server."""

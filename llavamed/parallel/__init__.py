"""Work that is handed to Ray: pipelines over data, and why a worker has failed."""

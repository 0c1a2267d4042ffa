"""Work that is handed to Ray: pipelines over data, warnings of workers, and why one failed."""

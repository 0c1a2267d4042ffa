"""Work that is handed to Ray: pipelines over data, what workers warn of, and why one has failed."""

"""MLflow: its client, and the exports that its registry names."""

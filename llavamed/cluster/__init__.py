"""The Kubernetes side: submit runs, watch them, and find out what is wrong with a cluster."""

"""Files at any URI, retries and leases."""

"""Look at data, before and after it is prepared."""

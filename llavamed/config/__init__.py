"""The one typed tree of settings, one file per section, and how a YAML file is read into it."""

"""The one typed tree of settings, a file a section, and how a YAML file becomes it (`load`)."""

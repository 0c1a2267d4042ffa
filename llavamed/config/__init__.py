"""The one typed tree of settings (`schema`) and how a YAML file becomes it (`load`)."""

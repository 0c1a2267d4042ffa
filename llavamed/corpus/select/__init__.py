"""Choose figures of one panel and a known modality that may be used, and say why not the others."""

"""PubMed Central: read its articles."""

"""Answer questions with a model and its controls, score the answers, and report them."""

"""llavamed: train biomedical vision-language models with Ray, DeepSpeed and MLflow."""

__version__ = "0.1.0"

"""Making a bundle: the pipeline, its stages, its checks and the bundle it writes."""

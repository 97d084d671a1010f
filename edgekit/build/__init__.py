"""The build of a bundle: the pipeline, its stages, its checks and the written bundle."""

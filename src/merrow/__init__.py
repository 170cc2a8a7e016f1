"""merrow: an inference server that speaks Triton's whole network API."""

__version__ = "0.1.0"

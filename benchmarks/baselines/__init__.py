"""Plain-PyTorch implementations of the formulations that pyg-se3 is measured against."""

"""The Kaggle side: what a running kernel needs, how kernels are packed, pushed and collected."""

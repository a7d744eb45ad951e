"""The whole way on a GPU, as one prepared run: `python -m benchmarks.gpu`."""

"""One forward pass over shards: landmark, confidence and descriptor of every image, and its files.

describe       shards of images -> descriptions, a file for each shard
descriptions   rows of descriptors and their files
"""

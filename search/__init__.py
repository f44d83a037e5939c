"""From descriptors to rankings and names.

parts           one part of a split: described and searched
in_parts        what retrieval.py and nearest.py share: their steps, here or on workers
exact           exact nearest neighbors of one part (the only file that knows faiss); asks a GPU
on_gpu          proposals for the exact search, from a GPU
candidates      which index images of a part each rerank can need
merging         parts, complete, none twice -> ranking: exact rerank, ties, cut to 100
reranks         the reranks, one object each; landmarks that an image may show
expansion       query expansion, database augmentation
naming          who names landmarks: the head, the nearest train images, both
voting          nearest train images -> landmark and confidence
gallery_parts   parts of the gallery: their files, and the gallery of all
gallery         the train images that are nearest to others; likeness; names.npz
"""

"""The parts that networks are built of, and where they run.

backbones    networks of Keras and keras-hub by name; preprocessing inside, weights
layers       pooling, neck, cosine heads and their losses; fused batch normalisation
heads        pooling, neck, logits or cosines, the loss
plain        a classifier of Keras' own layers alone
optimizers   Adam, AdamW, SGD; backbone and head at rates of their own
loading      what surrounds the import of Keras
devices      one device or several: each takes its share of a batch
"""

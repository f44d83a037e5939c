"""The Kaggle side, which runs on your machine.

results   results of finished kernels: collected, checked, submitted
chain     what to do next: kernels pushed in order, waited for
states    what Kaggle says of each kernel's last session
packing   kernels, each packed as one script
plan      the kernels of a chain: what each runs, reads and leaves
client    Kaggle's official client, asked patiently
"""

"""The training run.

loop          mini-epochs over a stream of shards, and validation
frozen        the run on a frozen backbone: images described once, the head trained
checkpoints   the checkpoint of a run: written, found again, restored, or refused
history       history.csv, history.png, a line for each mini-epoch
"""

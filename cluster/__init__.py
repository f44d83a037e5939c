"""Other processes and machines.

dask_workers   jobs on the workers of a Dask cluster, for --scheduler
machines       the machines of one run, by the runtime of JAX: facts, shards and stops that they share
"""

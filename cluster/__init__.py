"""Other processes and machines.

dask_workers   jobs on the workers of a Dask cluster, for --scheduler
machines       the machines of one run, by JAX's runtime: shared facts, shards and stops
"""

"""Other processes and machines.

dask_workers   jobs on the workers of a Dask cluster, for --scheduler
machines       the machines of one run: found, asked, watched
"""

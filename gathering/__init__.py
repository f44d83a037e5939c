"""Folders of photos -> a data set in the CVDF layout.

folders    photos found below folders of landmarks, and read
division   what stays together, and which split and shard it goes to
data_set   the shards, the tables and the ground truth, written
"""

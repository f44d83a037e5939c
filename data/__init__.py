"""What a run reads and writes: shards, images, tables, submissions.

sources       the shards and files of a data set: folders and addresses
download      verified downloads that continue after a fault
connections   how many shards are downloaded at once
tars          tars to read and write, and folders that a mount unpacked tars into
images        an image's bytes -> pixels: decoded, upright, squared, augmented
landmarks     image ids, landmark names, the class table
tables        a CSV -> a checked DataFrame, a DataFrame -> a CSV
submissions   submissions and ground truth: read, written, checked
arrays        files of arrays: atomic, with a digest, checked when read
"""

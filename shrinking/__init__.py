"""Shards with small pictures.

small_shards   shards -> shards with small pictures
slices         images that a person chose, tables cut to these
manifests      the page beside each of these, what is done
"""

"""Shards with small pictures.

small_shards   shards -> shards with small pictures
manifests      the page beside each of these, what is done
"""

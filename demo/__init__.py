"""The embedded default: a miniature landmark world, drawn by code and served over HTTP.

It has the files and the layout of Google Landmarks v2 as CVDF publishes it, at a thousandth of the
size, so that the whole job can be seen offline in minutes. Imported only with `--demo`. To look at
the world alone:

    python -m demo --output output/world

A larger one, for which `--source output/many` and not `--demo` is the option of the scripts:

    python -m demo --landmarks 300 --output output/many

    start       what --demo begins with: other defaults, the world drawn and served
    world       its shards, tables and ground truth
    plan        what is in every picture
    generated   landmarks made up by a seed, for a world of hundreds of them
    art         how it is drawn
    overview    a contact sheet of it
    photos      a few test pictures of it as files, for identify.py
    server      served over HTTP on this machine
"""

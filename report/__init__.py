"""What a person looks at: the report, pictures, the answer to a photo.

write           report.html: every finished run adds to it
recognised      ... what it says of a recognition
retrieved       ... of a retrieval
chance          what it would reach by chance
scores          what a submission reaches, computed in memory
run             ... of any run; pictures made small
page            ... the document, its looks
sections        ... what is in each section
charts          ... charts, as SVG
markup          ... HTML in strings
neighbors       neighbors.png
photos          a person's photos: found, read, drawn with what they were named
photo_answer    one photo: its landmark, the runners-up, how sure
photo_nearest   described pictures, and those nearest to one photo
take_away       a folder to take along: model, names, threshold, example, card
threshold       below which confidence a photo probably shows no landmark
"""

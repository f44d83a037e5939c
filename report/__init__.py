"""What a person looks at: the report, pictures, the answer to a photo.

write           report.html: every finished run adds to it
recognised      ... what it says of a recognition
retrieved       ... of a retrieval
chance          what it would reach by chance
untrained       ... and what its network scored before the training
scores          what a submission reaches, computed in memory
run             ... of any run; pictures made small
page            ... the document, its looks
sections        ... what is in each section
charts          ... charts, as SVG
markup          ... HTML in strings
neighbors       neighbors.png
photos          a person's photos: found, drawn with what they were named; described pictures near
photo_answer    one photo: its landmark, the runners-up, how sure
take_away       a folder to take along: model, names, threshold, example, card
threshold       below which confidence a photo probably shows no landmark
"""

"""What every run of a script has: options, output, time, and a Kaggle kernel around it.

session        Session: output, source, scratch, time; every file name of the output
command_line   options that all scripts share, errors with the flag to change, exit codes
folders        one run at a time in a folder, and a folder for scratch
pictures       pictures and pages, which never end a run
kernel         inside a Kaggle kernel: folders, mounts, missing packages
"""

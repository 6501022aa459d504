"""Campaign of faulty and hostile inputs: killed processes, full disks, attacks, damaged files.

Each kind is a function that makes one trial from a seed and raises if the program did something
other than its work or a refusal in words. The suite runs a few trials of each; ``make campaign``
runs many.
"""
